"""Read the header of a GGUF file without loading it, and check that the file is whole."""

from __future__ import annotations

import dataclasses
import functools
import mmap
import struct
from pathlib import Path
from typing import Any

from workbench.errors import FormatError

GGUF_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MOST_ENTRIES = 1_000_000
_MOST_DIMENSIONS = 4
_KEPT_STRING = 1 << 20

# GGUF specification: value types of the metadata, by number.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9

# ggml: values per block and bytes per block of each tensor type, by number.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110),
    22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
    29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36),
    41: (128, 18), 42: (64, 18),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class GgufArray:
    """An array in the metadata, of which only the length is kept."""

    length: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """One tensor's place in a GGUF file.

    Attributes:
        name: Its name.
        shape: Its dimensions, the fastest first, as the file has them.
        kind: Its ggml type, by number.
        offset: First byte within the data section.
        size: Bytes, or None for a type that this reader does not know.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    size: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What a GGUF file says of itself.

    Attributes:
        version: Version of the format.
        metadata: Scalars, strings and ``GgufArray`` by key.
        tensors: Where each tensor lies.
        data_start: First byte of the data section.
    """

    version: int
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    data_start: int

    def fact(self, name: str) -> int | None:
        """Return a positive number of the architecture's own section, else None.

        Args:
            name: Its key without the architecture, for example ``context_length``.
        """
        value = self.metadata.get(f"{self.metadata.get('general.architecture')}.{name}")
        return value if isinstance(value, int) and value > 0 else None


class _Cursor:
    """Reads forward through mapped bytes and never past their end."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self.data, self.name, self.at = data, name, 0

    def fail(self, reason: str) -> FormatError:
        return FormatError(
            f"{self.name} is not a whole GGUF file: {reason}.",
            hint="It was cut off or damaged; get it again.",
        )

    def skip(self, size: int) -> int:
        """Go on by ``size`` bytes and return where they begin."""
        start = self.at
        if size < 0 or start + size > len(self.data):
            raise self.fail(f"it ends within its header, at byte {len(self.data)}")
        self.at = start + size
        return start

    def number(self, code: str) -> Any:
        start = self.skip(struct.calcsize("<" + code))
        return struct.unpack_from("<" + code, self.data, start)[0]

    def text(self) -> str:
        length = self.number("Q")
        start = self.skip(length)
        return self.data[start : start + min(length, _KEPT_STRING)].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise self.fail(f"its metadata has a value of the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in _SCALARS:
            self.skip(count * struct.calcsize("<" + _SCALARS[inner]))
        elif inner == _STRING:
            if count * 8 > len(self.data) - self.at:
                raise self.fail(f"it ends within its header, at byte {len(self.data)}")
            for _ in range(count):
                self.skip(self.number("Q"))
        else:
            raise self.fail(f"its metadata has an array of the unknown type {inner}")
        return GgufArray(count)


def read_gguf_header(path: Path) -> GgufHeader:
    """Read metadata and tensor table; strings over 1 MiB are cut, arrays are only counted.

    Raises:
        FormatError: It does not begin like a GGUF file of version 2 or 3, or the header is
            damaged or cut off.
    """
    with path.open("rb") as stream:
        head = stream.read(8)
        version = struct.unpack("<I", head[4:])[0] if len(head) == 8 else 0
        if head[:4] != GGUF_MAGIC or version not in _VERSIONS:
            raise FormatError(
                f"{path.name} does not begin like a GGUF file (version 2 or 3).",
                hint="Check that it is one, and that the download is whole.",
            )
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Cursor(data, path.name), version)


def _parse(cursor: _Cursor, version: int) -> GgufHeader:
    cursor.skip(8)
    tensor_count, value_count = cursor.number("Q"), cursor.number("Q")
    if tensor_count > _MOST_ENTRIES or value_count > _MOST_ENTRIES:
        raise cursor.fail(f"it claims {tensor_count} tensors and {value_count} values")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("I"))
    tensors = tuple(_tensor(cursor) for _ in range(tensor_count))
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.fail(f"its alignment is {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    return GgufHeader(version=version, metadata=metadata, tensors=tensors, data_start=start)


def _tensor(cursor: _Cursor) -> GgufTensor:
    name = cursor.text()
    dimensions = cursor.number("I")
    if dimensions > _MOST_DIMENSIONS:
        raise cursor.fail(f"the tensor {name!r} has {dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))
    kind, offset = cursor.number("I"), cursor.number("Q")
    size = None
    if kind in _BLOCKS:
        values = 1
        for length in shape:
            values *= length
        per_block, bytes_per_block = _BLOCKS[kind]
        size = -(-values // per_block) * bytes_per_block
    return GgufTensor(name=name, shape=shape, kind=kind, offset=offset, size=size)


def check_gguf(path: Path) -> GgufHeader:
    """Check that a GGUF file is whole: its header, and that every tensor lies within the file.

    llama.cpp can end the process on a file that is not; this is asked before it gets to see one.

    Raises:
        FormatError: The file is damaged, cut off or no GGUF.
    """
    found = path.stat()
    return _checked(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _checked(path: Path, size: int, _modified: int) -> GgufHeader:
    header = read_gguf_header(path)
    for tensor in header.tensors:
        end = header.data_start + tensor.offset + (1 if tensor.size is None else tensor.size)
        if end > size:
            raise FormatError(
                f"{path.name} is not a whole GGUF file: the tensor {tensor.name!r} ends at byte "
                f"{end}, the file has {size}.",
                hint="It was cut off or damaged; get it again.",
            )
    return header
