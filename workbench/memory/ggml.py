"""Bytes of a row in every ggml type."""

from __future__ import annotations

from workbench.catalog.gguf_header import GGML_TYPES
from workbench.errors import InputError, did_you_mean

BLOCKS: dict[str, tuple[int, int]] = {
    kind.name: (kind.values, kind.bytes) for kind in GGML_TYPES.values()
}
"""Values of a block and its bytes, by name."""


def row_bytes(kind: str, columns: int) -> int:
    """Return the bytes of one row.

    Raises:
        InputError: There is no such type, or its blocks do not divide the row.
    """
    if kind not in BLOCKS:
        raise InputError(f"There is no ggml type {kind!r}.", hint=did_you_mean(kind, BLOCKS))
    values, size = BLOCKS[kind]
    if columns % values:
        raise InputError(
            f"A row of {columns} values does not divide into {kind} blocks of {values}.",
            hint="llama.cpp takes another type for such a tensor.",
        )
    return columns // values * size


def divides(kind: str, columns: int) -> bool:
    """Return whether the blocks of a type divide a row."""
    return columns % BLOCKS[kind][0] == 0
