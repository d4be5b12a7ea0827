"""One tensor of a model by role and shape, and the whole list of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from math import prod
from typing import Literal

from workbench.errors import UnsupportedError

Kind = Literal["embedding", "output", "linear", "expert", "norm", "bias", "conv", "other"]
Where = Literal["text", "vision"]
Source = Literal["architecture", "facts", "header"]
_NO_SUFFIX = {"ssm_a", "ssm_d"}


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """One tensor.

    Attributes:
        role: Its name in llama.cpp's words, without layer and suffix: ``attn_q``, ``ffn_up_exps``.
        layer: Its layer, or None for a tensor of the whole model.
        shape: Rows (outputs), then columns (inputs); experts come first where they are stacked.
        kind: What it is: ``linear`` is what transformers has as ``nn.Linear``, ``expert`` a
            stack of experts in one tensor, ``other`` all that no quantization touches.
        part: ``text``, or ``vision`` for encoder and projector.
    """

    role: str
    layer: int | None
    shape: tuple[int, ...]
    kind: Kind
    part: Where = "text"

    @property
    def count(self) -> int:
        """Values in it."""
        return prod(self.shape)

    @property
    def columns(self) -> int:
        """Values of one row: what must be divisible by a format's block."""
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """Rows, over all stacked experts."""
        return prod(self.shape[:-1])

    @property
    def name(self) -> str:
        """Its name in a GGUF file."""
        start = "" if self.layer is None else f"blk.{self.layer}."
        end = ".bias" if self.kind == "bias" else "" if self.role in _NO_SUFFIX else ".weight"
        return f"{start}{self.role}{end}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShapeList:
    """All tensors of a model; equal only to itself, so that it can be a key.

    Attributes:
        tensors: The tensors, in no promised order.
        model_type: ``model_type`` of config.json, or None where nobody said.
        exact: Whether the parameters add up to those stated, or were read from a file.
        source: ``architecture`` (rules of its family), ``facts`` (a guess by sizes) or ``header``.
        notes: What is not exact, in sentences.
    """

    tensors: tuple[Shape, ...]
    model_type: str | None
    exact: bool = True
    source: Source = "architecture"
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Shape]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def parameters(self, part: Where | None = None) -> int:
        """Return all values, tied ones once.

        Args:
            part: Only ``text`` or ``vision``.
        """
        return sum(shape.count for shape in self.tensors if part in (None, shape.part))

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return 1 + max(
            (s.layer for s in self.tensors if s.layer is not None and s.part == "text"), default=-1
        )

    @property
    def tied(self) -> bool:
        """Whether no output matrix of its own exists."""
        return all(shape.kind != "output" for shape in self.tensors)

    @property
    def experts(self) -> int:
        """Experts of a layer, 0 for a dense model."""
        return max((s.shape[0] for s in self.tensors if s.kind == "expert"), default=0)

    def find(self, role: str, layer: int | None = None) -> Shape | None:
        """Return the weight with this role, or None."""
        return next(
            (s for s in self.tensors if s.role == role and s.layer == layer and s.kind != "bias"),
            None,
        )


class Builder:
    """Collects the tensors of a model."""

    def __init__(self, part: Where = "text") -> None:
        self.tensors: list[Shape] = []
        self.part: Where = part

    def add(self, role: str, layer: int | None, kind: Kind, *shape: int) -> None:
        """Add one tensor."""
        self.tensors.append(Shape(role, layer, shape, kind, self.part))

    def linear(
        self, role: str, layer: int | None, rows: int, columns: int, *, bias: bool = False
    ) -> None:
        """Add a matrix, and its bias."""
        self.tensors.append(Shape(role, layer, (rows, columns), "linear", self.part))
        if bias:
            self.tensors.append(Shape(role, layer, (rows,), "bias", self.part))

    def norm(self, role: str, layer: int | None, width: int, *, bias: bool = False) -> None:
        """Add a normalization, with its bias where it is a LayerNorm."""
        self.tensors.append(Shape(role, layer, (width,), "norm", self.part))
        if bias:
            self.tensors.append(Shape(role, layer, (width,), "bias", self.part))


def needed(value: int | None, name: str, model_type: str | None) -> int:
    """Return a fact that the tensor list cannot do without.

    Raises:
        UnsupportedError: Nobody sourced it.
    """
    if value is None:
        raise UnsupportedError(
            f"The tensors of a {model_type} model need its {name}, which is not known.",
            hint=f"Add architecture.{name} to the card, or use the model's files.",
        )
    return value
