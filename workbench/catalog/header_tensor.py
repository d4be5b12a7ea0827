"""One tensor as every kind of weight file describes it."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a model's files.

    Attributes:
        name: Its name in the file.
        shape: Its dimensions, the outermost first (those of a GGUF file are reversed).
        dtype: Its type in the file's own words: ``BF16``, ``F8_E4M3``, ``Q4_K``, ``MXFP4``.
        bytes: Bytes that it takes in the file.
        file: Name of its file, relative to the model's folder.
        start: Its first byte within the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    file: str
    start: int = 0

    @property
    def elements(self) -> int:
        """Values of the shape; a packed tensor stores several weights in each."""
        return math.prod(self.shape)
