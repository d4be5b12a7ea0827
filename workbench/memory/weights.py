"""Bytes of a model's weights in every form, from its tensors alone: no files, no torch."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from workbench.catalog.card import StoredForm
from workbench.catalog.shapes import Shape, ShapeList
from workbench.memory.estimate import Part, Place
from workbench.memory.ggml import row_bytes
from workbench.memory.gguf_mix import mixed
from workbench.memory.weight_bytes import stored_as
from workbench.memory.weight_form import WeightForm, weight_form

if TYPE_CHECKING:
    from workbench.catalog.header_view import Header

_ALIGNMENT = 32
_HEADER_BYTES = 80  # name, dimensions, type and offset of a tensor in a GGUF header, about
# Bytes of the tokenizer in a GGUF file for each token: text, type and score of SentencePiece; text,
# type and merges of byte-level BPE.
_SENTENCEPIECE_BYTES, _BPE_BYTES = 25, 40
_SENTENCEPIECE = ("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n")
_SMALL_VOCABULARY = 40_000
_NAMES = {
    "embedding": "token embedding",
    "output": "output matrix",
    "expert": "experts",
    "attn": "attention",
    "ffn": "feed-forward",
    "ssm": "state space",
}
_REST, _VISION, _METADATA = "norms and the rest", "image encoder", "GGUF metadata"


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """One tensor as it is held: the tensor, what it is held as, and its bytes."""

    shape: Shape
    label: str
    bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A model's weights in one form.

    Attributes:
        form: The form.
        tensors: Every tensor with its bytes.
        layers: Bytes of each decoder layer, in order.
        metadata: Bytes of a GGUF file that are no tensors, about; 0 for other forms.
        tied: Whether input and output share one matrix.
    """

    form: WeightForm
    tensors: tuple[Held, ...]
    layers: tuple[int, ...]
    metadata: int
    tied: bool

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(held.bytes for held in self.tensors)

    @property
    def embedding(self) -> int:
        """Bytes of the input embedding, the per-layer one of Gemma 3n with it."""
        return sum(h.bytes for h in self.tensors if _name(h.shape) == _NAMES["embedding"])

    @property
    def output(self) -> int:
        """Bytes of the output matrix, which is the input embedding where they are tied."""
        role = "token_embd" if self.tied else "output"
        return sum(h.bytes for h in self.tensors if h.shape.role == role)

    @property
    def quantized(self) -> int:
        """Parameters that are held in fewer than 16 bits."""
        plain = ("fp32", "bf16", "fp16", "F32", "F16", "BF16")
        return sum(h.shape.count for h in self.tensors if h.label not in plain)

    @property
    def largest_matrix(self) -> int:
        """Parameters of the largest quantized matrix: what is unpacked at once."""
        return max((h.shape.count for h in self.tensors if h.shape.kind == "linear"), default=0)

    def parts(
        self, *, place: Place = "device", gpu_layers: int | None = None, unified: bool = False
    ) -> tuple[Part, ...]:
        """Return the weights as parts of an estimate.

        Args:
            place: Where the weights go.
            gpu_layers: llama.cpp's ``n_gpu_layers``: the last layers, the output first; None all.
                For other engines: the last layers, with all that is no layer.
            unified: Whether device and RAM are one memory, as on a Mac: nothing is held twice.
        """
        split: dict[tuple[str, Place], list[Held]] = {}
        names: dict[tuple[str, str, str], str] = {}
        for held in self.tensors:
            shape = held.shape
            key = shape.role, shape.kind, shape.part
            if key not in names:
                names[key] = _name(shape)
            where = self._place(shape, place, gpu_layers, unified=unified)
            split.setdefault((names[key], where), []).append(held)
        parts = [
            Part(name=name, bytes=sum(h.bytes for h in group), rule=_rule(group), place=where)
            for (name, where), group in split.items()
        ]
        on_device = place == "device" and gpu_layers != 0 and not unified
        if self.form.kind == "gguf" and self.tied and on_device and self.output:
            rule = "the input embedding once more, as the output matrix on the device"
            parts.append(Part(name=_NAMES["output"], bytes=self.output, rule=rule))
        if self.metadata:
            rule = "tokenizer and tensor table of the file, by the size of the vocabulary"
            parts.append(Part(name=_METADATA, bytes=self.metadata, rule=rule, place="host"))
        return tuple(parts)

    def _place(self, shape: Shape, place: Place, gpu_layers: int | None, *, unified: bool) -> Place:
        """Return where llama.cpp puts a tensor: the input embedding stays in RAM."""
        if place == "host" or gpu_layers == 0:
            return "host"
        first = 0 if gpu_layers is None else len(self.layers) - gpu_layers
        if self.form.kind == "gguf":
            if shape.kind == "embedding" and shape.part == "text" and not unified:
                return "host"
            first += 0 if gpu_layers is None else 1
        inside = shape.layer is not None and shape.part == "text"
        return "host" if inside and (shape.layer or 0) < first else "device"

    @property
    def file_bytes(self) -> int:
        """Bytes of a file with these weights, about: tensors aligned, and metadata."""
        if self.form.kind != "gguf":
            return self.bytes
        return sum(-(-h.bytes // _ALIGNMENT) * _ALIGNMENT for h in self.tensors) + self.metadata


@functools.lru_cache(maxsize=256)
def weigh(shapes: ShapeList, form: WeightForm) -> Weights:
    """Return the bytes of every tensor of a model in a form.

    Args:
        shapes: The model's tensors; the same list gives the kept result.
        form: The form, see ``weight_form``.

    Raises:
        UnsupportedError: llama.cpp cannot make the file type of these tensors.
    """
    held = _gguf(shapes, form) if form.kind == "gguf" else _plain(shapes, form)
    layers = [0] * shapes.layers
    for each in held:
        if each.shape.layer is not None and each.shape.part == "text":
            layers[each.shape.layer] += each.bytes
    return Weights(
        form=form,
        tensors=tuple(held),
        layers=tuple(layers),
        metadata=gguf_metadata_bytes(shapes) if form.kind == "gguf" else 0,
        tied=shapes.tied,
    )


def weight_parts(
    shapes: ShapeList,
    form: WeightForm | None = None,
    *,
    quantization: str | None = None,
    dtype: str | None = None,
    engine: str | None = None,
    stored: StoredForm | None = None,
    place: Place = "device",
    gpu_layers: int | None = None,
) -> tuple[Part, ...]:
    """Return a model's weights as parts of an estimate; see ``weight_form`` and ``Weights.parts``.

    Raises:
        UnsupportedError: Nothing is known of the form's bytes.
    """
    chosen = form or weight_form(quantization, dtype=dtype, engine=engine, stored=stored)
    return weigh(shapes, chosen).parts(place=place, gpu_layers=gpu_layers)


def stored_parts(header: Header, *, place: Place = "device") -> tuple[Part, ...]:
    """Return the weights of files as they are stored, by their own tensor tables.

    A tensor stored twice counts twice, as it does when the file is mapped.
    """
    from workbench.catalog.header_roles import role

    groups: dict[str, Counter[str]] = {}
    for tensor in header.tensors:
        groups.setdefault(role(tensor.name), Counter())[tensor.dtype] += tensor.bytes
    return tuple(
        Part(
            name=name,
            bytes=sizes.total(),
            rule="as stored: " + ", ".join(f"{size:,} B {kind}" for kind, size in sizes.items()),
            place=place,
        )
        for name, sizes in groups.items()
    )


def gguf_metadata_bytes(shapes: ShapeList) -> int:
    """Return about how many bytes of a GGUF file are no tensors: the tokenizer, mostly."""
    embedding = shapes.find("token_embd")
    rows = embedding.shape[0] if embedding is not None else 0
    pieces = shapes.model_type in _SENTENCEPIECE or rows < _SMALL_VOCABULARY
    return rows * (_SENTENCEPIECE_BYTES if pieces else _BPE_BYTES) + _HEADER_BYTES * len(shapes)


def _plain(shapes: ShapeList, form: WeightForm) -> list[Held]:
    known: dict[tuple[str, str, str, tuple[int, ...]], tuple[str, int]] = {}
    held = []
    for shape in shapes:
        if shape.part == "vision" and not form.vision:
            continue
        key = shape.role, shape.kind, shape.part, shape.shape
        if key not in known:
            known[key] = stored_as(shape, form, shapes.model_type)
        held.append(Held(shape, *known[key]))
    return held


def _gguf(shapes: ShapeList, form: WeightForm) -> list[Held]:
    assert form.file_type is not None
    keep = {r"ffn_(gate|up|down)_exps\.weight": form.expert_type} if form.expert_type else None
    mix = mixed(
        shapes,
        form.file_type,
        source=form.gguf_float,
        imatrix=form.imatrix,
        overrides=keep,
    )
    known: dict[tuple[str, tuple[int, ...]], int] = {}
    held = []
    for shape, kind in mix:
        size = known.get((kind, shape.shape))
        if size is None:
            size = known[kind, shape.shape] = shape.rows * row_bytes(kind, shape.columns)
        held.append(Held(shape, kind, size))
    if form.vision:  # the projector's own file (mmproj) is not quantized
        held += [Held(s, "F16", 2 * s.count) for s in shapes if s.part == "vision"]
    return held


def _name(shape: Shape) -> str:
    """Return the part of the estimate that a tensor belongs to."""
    if shape.part == "vision":
        return _VISION
    if shape.kind in ("embedding", "output", "expert"):
        return _NAMES[shape.kind]
    if "_shexp" in shape.role or shape.role in ("ffn_gate_inp", "exp_probs_b"):
        return _NAMES["expert"]
    if shape.kind == "linear":
        return _NAMES.get(shape.role.partition("_")[0], _REST)
    return _REST


def _rule(group: Iterable[Held]) -> str:
    """Say how the bytes of a part come about: values and bits of each type."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for held in group:
        counts[held.label] += held.shape.count
        sizes[held.label] += held.bytes
    return " + ".join(
        f"{counts[label]:,} x {label} ({8 * sizes[label] / counts[label]:.4g} bits)"
        for label in sorted(counts, key=lambda label: -sizes[label])
    )
