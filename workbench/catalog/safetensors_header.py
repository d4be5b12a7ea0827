"""Read the header of a safetensors file without loading it, and check that the file is whole."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench.catalog.header_source import LocalFile, Source, read_object, shown
from workbench.catalog.header_tensor import Tensor
from workbench.errors import FormatError

MOST_HEADER = 100_000_000  # the specification's limit
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_LONGEST_ENTRY = 4096
_MOST_TENSORS = 1_000_000
_LARGEST = 1 << 63

# safetensors specification: bits of one value by dtype.
DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip

_BLANK = re.compile(r"[ \t\n\r]*")
_DTYPE = re.compile(r"[A-Za-z0-9_]{1,32}")
# An entry as every library writes it; anything else takes the slower way below.
_USUAL = re.compile(
    r' ?\{"dtype": ?"([A-Za-z0-9_]{1,32})", ?"shape": ?\[([0-9, ]{0,400})\], ?'
    r'"data_offsets": ?\[([0-9]{1,18}), ?([0-9]{1,18})\]\}'
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsHeader:
    """What one safetensors file says of itself.

    Attributes:
        tensors: Its tensors, in the order of the header.
        metadata: The texts under ``__metadata__``.
        data_start: First byte of the data section.
    """

    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, str]
    data_start: int


def check_safetensors(path: Path) -> SafetensorsHeader:
    """Read one file's header and check that it is whole: no gap, no overlap, nothing cut off.

    An unchanged file (same size and time) is read once.

    Raises:
        NotFoundError: There is no such file.
        FormatError: The file is damaged, cut off or no safetensors.
    """
    with LocalFile(path) as file:
        found = file.status
    return _checked(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@functools.lru_cache(maxsize=256)
def _checked(path: Path, _state: tuple[int, ...]) -> SafetensorsHeader:
    with LocalFile(path) as file:
        return parse_safetensors(file)


def parse_safetensors(source: Source) -> SafetensorsHeader:
    """Read and check the header in ``source``.

    Raises:
        FormatError: It is damaged, or the file is not as long as it says.
    """
    head = source.read(0, 8, 8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or (source.size is not None and length + 8 > source.size):
        raise _damaged(
            source.name, f"it has {source.size} bytes", "The download was cut off; download it"
        )
    if length > MOST_HEADER:
        raise _damaged(source.name, f"it claims a header of {length} bytes")
    data = source.read(8, length, length)
    if len(data) < length:
        raise _damaged(source.name, "it ends within its header")
    try:
        text = data.decode("utf-8")
        del data
        tensors, metadata = _Reader(text, source.name, 8 + length).read()
    except RecursionError:
        raise _damaged(source.name, "its header is nested too deep") from None
    except ValueError as error:
        raise _damaged(source.name, f"its header is no JSON ({str(error)[:80]})") from None
    _check_offsets(source.name, tensors, 8 + length, source.size)
    return SafetensorsHeader(tensors=tensors, metadata=metadata, data_start=8 + length)


def _damaged(name: str, reason: str, hint: str = "Download it") -> FormatError:
    return FormatError(f"{name} is not a whole safetensors file: {reason}.", hint=f"{hint} again.")


class _Reader:
    """Goes through the header's text once, so that a bomb of JSON never becomes objects."""

    def __init__(self, text: str, name: str, start: int) -> None:
        self.text, self.name, self.start, self.at = text, name, start, 0
        self._decode = json.JSONDecoder().raw_decode

    def read(self) -> tuple[tuple[Tensor, ...], dict[str, str]]:
        tensors: dict[str, Tensor] = {}
        metadata: dict[str, str] | None = None
        if not self.text.startswith("{"):
            raise _damaged(self.name, "its header does not begin with a brace")
        for key in self._keys():
            if key == "__metadata__" and metadata is None:
                metadata = self._metadata()
                continue
            if key in tensors or key == "__metadata__":
                raise _damaged(self.name, f"its header has {shown(key)} twice")
            tensors[key] = self._usual(key) or self._unusual(key)
            if len(tensors) > _MOST_TENSORS:
                raise _damaged(self.name, f"it claims more than {_MOST_TENSORS} tensors")
        if self._blank() != len(self.text):
            raise _damaged(self.name, "something follows its header's closing brace")
        return tuple(tensors.values()), metadata or {}

    def _blank(self) -> int:
        found = _BLANK.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return self.at

    def _take(self, letters: str) -> str:
        letter = self.text[self._blank() : self.at + 1]
        if not letter or letter not in letters:
            raise _damaged(self.name, f"its header is no JSON at character {self.at}")
        self.at += 1
        return letter

    def _string(self) -> str:
        if self.text[self._blank() : self.at + 1] != '"':
            raise _damaged(self.name, f"its header has no text at character {self.at}")
        value, self.at = self._decode(self.text, self.at)
        str(value).encode()  # half of a surrogate pair is no text; this raises ValueError
        return str(value)

    def _keys(self) -> Iterator[str]:
        """Yield the keys of the object that begins here; the caller takes each value."""
        self._take("{")
        if self.text[self._blank() : self.at + 1] == "}":
            self.at += 1
            return
        while True:
            key = self._string()
            self._take(":")
            yield key
            if self._take(",}") == "}":
                return

    def _metadata(self) -> dict[str, str]:
        values: dict[str, str] = {}
        for key in self._keys():
            if key in values:
                raise _damaged(self.name, f"its metadata has {shown(key)} twice")
            values[key] = self._string()
        return values

    def _usual(self, name: str) -> Tensor | None:
        """Return the tensor of an entry as every library writes it; None where it is not."""
        found = _USUAL.match(self.text, self.at)
        if found is None:
            return None
        dtype, sizes, begin, last = found.groups()
        shape = tuple([int(size) for size in sizes.split(",")]) if sizes else ()
        self.at = found.end()
        return self._made(name, shape, dtype, int(begin), int(last))

    def _unusual(self, name: str) -> Tensor:
        first = self._blank()
        end = self.text.find("}", first, first + _LONGEST_ENTRY) + 1
        if not end or self.text[first] != "{":
            raise self._bad(name)
        entry = json.loads(self.text[first:end], object_pairs_hook=_unique)
        self.at = end
        try:
            shape, (begin, last), dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
        except (KeyError, TypeError, ValueError):
            raise self._bad(name) from None
        numbers = [*shape, begin, last] if isinstance(shape, list) else [None]
        if not all(type(number) is int and 0 <= number < _LARGEST for number in numbers):
            raise self._bad(name)
        if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
            raise self._bad(name)
        return self._made(name, tuple(shape), dtype, begin, last)

    def _made(self, name: str, shape: tuple[int, ...], dtype: str, begin: int, last: int) -> Tensor:
        elements = 1
        for number in shape:
            elements *= number
            if elements >= _LARGEST:
                raise self._bad(name)
        if begin > last:
            raise self._bad(name)
        bits = DTYPE_BITS.get(dtype)
        if bits is not None and elements * bits != (last - begin) * 8:
            raise _damaged(
                self.name,
                f"the tensor {shown(name)} of {dtype} and shape {shape} has {last - begin} bytes",
            )
        return Tensor(name, shape, dtype, last - begin, self.name, self.start + begin)

    def _bad(self, name: str) -> FormatError:
        return _damaged(self.name, f"the entry of the tensor {shown(name)} makes no sense")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is there twice")
    return values


def _check_offsets(
    name: str, tensors: tuple[Tensor, ...], data_start: int, size: int | None
) -> None:
    """Check that the tensors follow one another without gap or overlap to the end of the file."""
    after = data_start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.bytes)):
        if size is not None and tensor.start + tensor.bytes > size:
            break
        if tensor.start != after:
            relation = "overlaps the one before it" if tensor.start < after else "follows a gap"
            raise _damaged(name, f"the tensor {shown(tensor.name)} {relation}")
        after += tensor.bytes
    end = max((tensor.start + tensor.bytes for tensor in tensors), default=data_start)
    if size is not None and end != size:
        hint = "The download was cut off; download it" if end > size else "Download it"
        raise _damaged(name, f"its header describes {end} bytes, it has {size}", hint)


def shard_names(index: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return tensor name to file name of an index of shards.

    Raises:
        FormatError: There is no such mapping, or a name leads out of the folder.
    """
    weights = index.get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise FormatError(f"{name} has no weight_map.", hint="Download it again.")
    for file in set(map(str, weights.values())):
        parts = file.split("/")
        odd = "\\" in file or "\0" in file or file.startswith("/") or ".." in parts
        if odd or not file.endswith(".safetensors") or "" in parts:
            raise FormatError(f"{name} names the file {shown(file)}, which is refused.")
    if not all(isinstance(file, str) for file in weights.values()):
        raise FormatError(f"{name} has a weight_map with values that are no file names.")
    return weights


_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")


def local_files(folder: Path) -> tuple[tuple[str, ...], dict[str, str] | None]:
    """Return the weight files of a folder and, where there is an index, which tensor is where.

    An index comes first, then ``model.safetensors``, then all that is there.

    Raises:
        FormatError: The index is damaged, or a shard is missing.
    """
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    indexes.sort(key=lambda path: path.name != INDEX)
    if indexes:
        weights = shard_names(read_object(indexes[0]), indexes[0].name)
        names = tuple(sorted(set(weights.values())))
        _check_present(folder, names)
        return names, weights
    if (folder / SINGLE).exists():
        return (SINGLE,), None
    found = tuple(sorted(path.name for path in folder.glob("*.safetensors")))
    parts = [match for name in found if (match := _PART.fullmatch(name))]
    if parts and len(parts) == len(found) and len({(part[1], part[3]) for part in parts}) == 1:
        count = int(parts[0][3])
        _check_present(
            folder,
            tuple(f"{parts[0][1]}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)),
        )
    return found, None


def _check_present(folder: Path, names: tuple[str, ...]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FormatError(
            f"{folder.name} lacks {shown(missing[0])}{more} of its {len(names)} weight files.",
            hint="The download is not complete; download the model again.",
        )
