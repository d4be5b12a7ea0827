"""Read the header of a GGUF file without loading it, and check that the file is whole."""

from __future__ import annotations

import dataclasses
import functools
import struct
from pathlib import Path
from typing import Any, NamedTuple

from workbench.catalog.header_source import LocalFile, Source, shown
from workbench.errors import FormatError

GGUF_MAGIC = b"GGUF"
MOST_HEADER = 256 << 20
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MOST_ENTRIES = 1_000_000
_MOST_DIMENSIONS = 4
_KEPT_STRING = 1 << 20
_KEPT_NUMBERS = 4096
_KEPT_STRINGS = 64
_CHUNK = 256 << 10
_LARGEST = 1 << 63

# GGUF specification: value types of the metadata, by number.
_SCALARS = {
    code: struct.Struct("<" + letter)
    for code, letter in {
        0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
    }.items()
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_U32, _U64 = _SCALARS[4], _SCALARS[10]


class GgmlType(NamedTuple):
    """A tensor type of ggml: its name, values of one block and bytes of one block."""

    name: str
    values: int
    bytes: int


# ggml: tensor types by number.
GGML_TYPES = {
    number: GgmlType(*fields)
    for number, fields in {
        0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
        6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36),
        10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
        13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
        16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
        19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
        22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
        26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
        30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
        39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
    }.items()
}  # fmt: skip

# llama.cpp: general.file_type, by number.
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0",
    38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class GgufArray:
    """An array in the metadata.

    Attributes:
        length: Its entries, counted.
        values: The entries themselves, where they are at most 4096 numbers or 64 strings.
    """

    length: int
    values: tuple[Any, ...] = dataclasses.field(default=(), compare=False)


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

    @property
    def dtype(self) -> str:
        """Name of its ggml type, ``type 99`` where this reader does not know it."""
        known = GGML_TYPES.get(self.kind)
        return known.name if known else f"type {self.kind}"


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
        return value if type(value) is int and value > 0 else None


class _Cursor:
    """Reads forward through a file's first bytes and never past their end."""

    def __init__(self, source: Source) -> None:
        self.source, self.at = source, 0
        self._buffer, self._base = b"", 0

    def fail(self, reason: str) -> FormatError:
        return FormatError(
            f"{self.source.name} is not a whole GGUF file: {reason}.",
            hint="It was cut off or damaged; get it again.",
        )

    def _ended(self) -> FormatError:
        return self.fail(f"it ends within its header, at byte {self.source.size}")

    def check(self, size: int) -> None:
        """Refuse ``size`` further bytes that the file does not have, or that no header takes."""
        if self.source.size is not None and self.at + size > self.source.size:
            raise self._ended()
        if self.at + size > MOST_HEADER:
            raise self.fail(f"its header is longer than {MOST_HEADER >> 20} MiB")

    def need(self, size: int) -> int:
        """Hold ``size`` bytes from here in the buffer and return where they begin in it."""
        at = self.at - self._base
        if at + size > len(self._buffer):
            self.check(size)
            self._buffer = self.source.read(self.at, size, max(size, _CHUNK))
            self._base, at = self.at, 0
            if len(self._buffer) < size:
                raise self._ended()
        return at

    def skip(self, size: int) -> None:
        self.check(size)
        self.at += size

    def number(self, code: struct.Struct) -> Any:
        at = self.need(code.size)
        self.at += code.size
        return code.unpack_from(self._buffer, at)[0]

    def text(self) -> str:
        length = self.number(_U64)
        kept = min(length, _KEPT_STRING)
        self.check(length)
        at = self.need(kept)
        self.at += length
        return self._buffer[at : at + kept].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise self.fail(f"its metadata has a value of the unknown type {kind}")
        return self._array(self.number(_U32), self.number(_U64))

    def _array(self, kind: int, count: int) -> GgufArray:
        if kind in _SCALARS:
            code = _SCALARS[kind]
            self.check(count * code.size)
            if count > _KEPT_NUMBERS:
                self.skip(count * code.size)
                return GgufArray(count)
            return GgufArray(count, tuple(self.number(code) for _ in range(count)))
        if kind != _STRING:
            raise self.fail(f"its metadata has an array of the unknown type {kind}")
        self.check(count * _U64.size)
        if count <= _KEPT_STRINGS:
            return GgufArray(count, tuple(self.text() for _ in range(count)))
        self._skip_strings(count)
        return GgufArray(count)

    def _skip_strings(self, count: int) -> None:
        # Vocabularies have 10^5 entries: the buffer is looked into without a call for each.
        length, size = _U64.unpack_from, _U64.size
        while count:
            self.need(size)
            buffer, base, at = self._buffer, self._base, self.at - self._base
            last = len(buffer) - size
            while count and at <= last:
                at += size + length(buffer, at)[0]
                count -= 1
            self.at = base + at
            self.check(0)


def read_gguf_header(path: Path) -> GgufHeader:
    """Read metadata and tensor table of one file; strings over 1 MiB are cut, long arrays counted.

    Raises:
        NotFoundError: There is no such file.
        FormatError: It does not begin like a GGUF file of version 2 or 3, or the header is
            damaged or cut off.
    """
    with LocalFile(path) as file:
        return parse_gguf(file)


def parse_gguf(source: Source) -> GgufHeader:
    """Read metadata and tensor table from ``source``, which is read no further than needed.

    Raises:
        FormatError: As ``read_gguf_header``.
    """
    head = source.read(0, 8, 8)
    version = _U32.unpack(head[4:])[0] if len(head) == 8 else 0
    _check_version(source.name, head, version)
    cursor = _Cursor(source)
    cursor.skip(8)
    tensor_count, value_count = cursor.number(_U64), cursor.number(_U64)
    if tensor_count > _MOST_ENTRIES or value_count > _MOST_ENTRIES:
        raise cursor.fail(f"it claims {tensor_count} tensors and {value_count} values")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.text()
        if key in metadata:
            raise cursor.fail(f"its metadata has the key {shown(key)} twice")
        metadata[key] = cursor.value(cursor.number(_U32))
    tensors = tuple(_tensor(cursor) for _ in range(tensor_count))
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise cursor.fail("two of its tensors have the same name")
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.fail(f"its alignment is {shown(str(alignment))}")
    start = -(-cursor.at // alignment) * alignment
    for tensor in tensors:
        if tensor.offset % alignment:
            raise cursor.fail(f"the tensor {shown(tensor.name)} is not aligned to {alignment}")
    return GgufHeader(version=version, metadata=metadata, tensors=tensors, data_start=start)


def _check_version(name: str, head: bytes, version: int) -> None:
    if head[:4] == GGUF_MAGIC and version in _VERSIONS:
        return
    begins = f"{name} does not begin like a GGUF file (version 2 or 3)"
    if head[:4] == GGUF_MAGIC and version == 1:
        raise FormatError(
            f"{begins}: it is of version 1.", hint="Convert the model again; no engine reads it."
        )
    if head[:4] == GGUF_MAGIC and int.from_bytes(head[4:], "big") in (1, *_VERSIONS):
        raise FormatError(
            f"{begins}: it is big-endian.", hint="Convert it with gguf-convert-endian, or get"
            " the little-endian file.",
        )  # fmt: skip
    raise FormatError(f"{begins}.", hint="Check that it is one, and that the download is whole.")


def _tensor(cursor: _Cursor) -> GgufTensor:
    name = cursor.text()
    dimensions = cursor.number(_U32)
    if dimensions > _MOST_DIMENSIONS:
        raise cursor.fail(f"the tensor {shown(name)} has {dimensions} dimensions")
    shape = tuple(cursor.number(_U64) for _ in range(dimensions))
    kind, offset = cursor.number(_U32), cursor.number(_U64)
    values = 1
    for length in shape:
        values *= length
    known, size = GGML_TYPES.get(kind), None
    if values >= _LARGEST or offset >= _LARGEST:
        raise cursor.fail(f"the tensor {shown(name)} claims the shape {shape} at {offset}")
    if known is not None:
        if (shape[0] if shape else 1) % known.values:
            raise cursor.fail(
                f"the tensor {shown(name)} has rows of {shape[0] if shape else 1} values, which "
                f"{known.name} cannot divide into blocks of {known.values}"
            )
        size = values // known.values * known.bytes
    return GgufTensor(name=name, shape=shape, kind=kind, offset=offset, size=size)


def check_layout(header: GgufHeader, name: str, size: int | None) -> None:
    """Check that the tensors lie within a file of ``size`` bytes and do not overlap.

    Raises:
        FormatError: They do not.
    """
    after, before = 0, ""
    for tensor in sorted(header.tensors, key=lambda tensor: (tensor.offset, tensor.size or 0)):
        length = 1 if tensor.size is None else tensor.size
        end = header.data_start + tensor.offset + length
        problem = None
        if size is not None and end > size:
            problem = f"the tensor {shown(tensor.name)} ends at byte {end}, the file has {size}"
        elif length and tensor.offset < after:
            problem = f"the tensors {shown(before)} and {shown(tensor.name)} overlap"
        if problem:
            raise FormatError(
                f"{name} is not a whole GGUF file: {problem}.",
                hint="It was cut off or damaged; get it again.",
            )
        after, before = max(after, tensor.offset + length), tensor.name


def check_gguf(path: Path) -> GgufHeader:
    """Check that a GGUF file is whole: its header, and that every tensor lies within the file.

    llama.cpp can end the process on a file that is not; this is asked before it gets to see one.
    An unchanged file (same size and time) is read once.

    Raises:
        NotFoundError: There is no such file.
        FormatError: The file is damaged, cut off or no GGUF.
    """
    with LocalFile(path) as file:
        found = file.status
    return _checked(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@functools.lru_cache(maxsize=64)
def _checked(path: Path, _state: tuple[int, ...]) -> GgufHeader:
    with LocalFile(path) as file:
        header = parse_gguf(file)
        check_layout(header, file.name, file.size)
    return header
