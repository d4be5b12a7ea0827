"""What is to be estimated: the model's facts and tensors, and how it is run, checked once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from workbench.catalog.architecture import Architecture
from workbench.catalog.card import Card, StoredForm
from workbench.catalog.header_view import Header
from workbench.catalog.shapes import ShapeList, known_or_guessed
from workbench.errors import InputError, UnsupportedError, did_you_mean
from workbench.memory.estimate import Part, Place
from workbench.memory.weight_form import FLOAT_BYTES, WeightForm, weight_form
from workbench.memory.weights import Weights, stored_parts, weigh

if TYPE_CHECKING:
    from workbench.catalog.shapes import Shape

ENGINES = ("llama.cpp", "transformers", "mlx", "vllm", "sglang", "tensorrt-llm")
DEVICES = ("cuda", "mps", "cpu")
Attention = Literal["sdpa", "eager", "flash"]
_BITS = {"float": 0, "nf4": 4.5, "fp4": 4.5, "int8": 8, "fp8": 8, "awq": 4.16, "gptq": 4.16,
         "packed": 4.13, "mxfp4": 4.25, "mlx": 4.5}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model as the estimator sees it.

    Attributes:
        name: For labels.
        facts: Its architecture.
        context: Tokens it was made for, or None.
        dtype: Dtype of its weights, or None.
        stored: How its own files are quantized.
        shapes: Its tensors, or None where too little is known.
        header: Its files' headers, where these were given.
        tasks: What the card says it is for.
        doubts: Why something about it is uncertain, in sentences.
    """

    name: str
    facts: Architecture
    context: int | None = None
    dtype: str | None = None
    stored: StoredForm | None = None
    shapes: ShapeList | None = None
    header: Header | None = None
    tasks: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def generates(self) -> bool:
        """Whether the model writes text, and so keeps keys and values."""
        return not self.tasks or bool(set(self.tasks) - {"embedding", "rerank"})


def subject(model: Card | Header | Architecture | str | Path) -> Subject:
    """Return the model with its tensors; a name is looked up on the shelf.

    Raises:
        NotFoundError: No such card, folder or file.
        InputError: It is nothing that has an architecture.
    """
    if isinstance(model, (str, Path)):
        from workbench.catalog import resolve

        model = resolve(model)
    if isinstance(model, Card):
        shapes, doubts = _tensors(lambda: known_or_guessed(model.architecture))
        return Subject(
            name=model.id,
            facts=model.architecture,
            context=model.context_length,
            dtype=model.dtype,
            stored=model.stored,
            shapes=shapes,
            tasks=model.tasks,
            doubts=doubts,
        )
    if isinstance(model, Header):
        from workbench.catalog.shapes.from_header import shapes_of_header

        header = model
        shapes, doubts = _tensors(lambda: shapes_of_header(header))
        return Subject(
            name=header.name,
            facts=header.architecture(),
            context=header.context_length,
            stored=header.stored,
            shapes=shapes,
            header=header,
            doubts=doubts,
        )
    if isinstance(model, Architecture):
        facts = model
        shapes, doubts = _tensors(lambda: known_or_guessed(facts))
        return Subject(name=facts.model_type or "model", facts=facts, shapes=shapes, doubts=doubts)
    raise InputError(
        f"Memory is estimated of a card, a header or an architecture, not of a "
        f"{type(model).__name__}."
    )


def _tensors(make: Callable[[], ShapeList]) -> tuple[ShapeList | None, tuple[str, ...]]:
    try:
        made = make()
    except UnsupportedError as error:
        return None, (error.message,)
    return made, () if made.exact else made.notes


def check_engine(name: str) -> str:
    """Return an engine whose memory can be estimated.

    Raises:
        InputError: There is no such engine, or it runs elsewhere.
    """
    if name not in ENGINES:
        raise InputError(
            f"The memory of the engine {name!r} cannot be estimated.",
            hint=did_you_mean(name, ENGINES),
        )
    return name


def check_count(name: str, value: int, *, least: int = 1) -> int:
    """Return a whole number that is large enough.

    Raises:
        InputError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number of {least} or more, not {value!r}.")
    return value


def check_choice(name: str, value: str, known: tuple[str, ...]) -> str:
    """Return a name that is known.

    Raises:
        InputError: It is not.
    """
    if value not in known:
        raise InputError(f"There is no {name} {value!r}.", hint=did_you_mean(value, known))
    return value


def check_context(context: int | None, found: Subject) -> int:
    """Return the tokens of a sequence; None is the model's context, at most 8192.

    Raises:
        InputError: It is none, or more than the model was made for.
    """
    if context is None:
        return min(found.context or 4096, 8192)
    check_count("context", context)
    if found.context and context > found.context:
        raise InputError(
            f"context={context} is more than {found.name} was made for ({found.context}).",
            hint=f"Take at most {found.context}.",
        )
    return context


def compute_dtype(dtype: str | None, found: Subject) -> str:
    """Return the dtype of computing: as given, else the card's, else bf16.

    Raises:
        InputError: There is no such dtype.
    """
    if dtype is None:
        return found.dtype if found.dtype in ("fp32", "fp16") else "bf16"
    return check_choice("dtype", dtype, ("fp32", "bf16", "fp16"))


def weigh_subject(
    found: Subject, quantization: str, dtype: str, engine: str
) -> tuple[Weights | None, WeightForm]:
    """Return the weights tensor by tensor, or None where the tensors are not known.

    Raises:
        UnsupportedError: Nothing is known of the form's bytes.
    """
    form = weight_form(quantization, dtype=dtype, engine=engine, stored=found.stored)
    if found.shapes is None or len(found.shapes) == 0:
        return None, form
    return weigh(found.shapes, form), form


def parts_of_weights(
    found: Subject,
    weights: Weights | None,
    form: WeightForm,
    *,
    quantization: str,
    place: Place,
    gpu_layers: int | None,
    unified: bool,
) -> tuple[Part, ...]:
    """Return the weights as parts: by tensors, by the files' own table, or by their number.

    Raises:
        UnsupportedError: Not even the number of parameters is known.
    """
    header = found.header if quantization == "none" and gpu_layers in (None, 0) else None
    if header is not None and (header.kind != "gguf" or place == "host" or unified):
        return stored_parts(header, place=place)
    if weights is not None:
        return weights.parts(place=place, gpu_layers=gpu_layers, unified=unified)
    count = found.facts.parameters
    if count is None:
        raise UnsupportedError(
            f"Nothing is known of the size of {found.name}: neither tensors nor parameters.",
            hint="Give the card architecture.parameters, or estimate from the model's files.",
        )
    bits = _BITS.get(form.kind) or 8 * form.width
    if form.kind == "gguf":
        bits = _gguf_bits(form.file_type or "")
    return (
        Part(
            name="weights",
            bytes=round(count * bits / 8),
            rule=f"{count:,} parameters x {bits:g} bits; their tensors are not known",
            place=place,
        ),
    )


def _gguf_bits(file_type: str) -> float:
    """Return about how many bits a weight takes; mixes are a tenth above their main type."""
    plain = {"F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.57}
    if file_type in plain:
        return plain[file_type]
    digits = [int(letter) for letter in file_type if letter.isdigit()]
    return digits[0] + 0.9 if digits else 5.0


def experts_moved(weights: Weights, layers: int) -> int:
    """Return bytes of the experts of the first layers, which ``--n-cpu-moe`` keeps in RAM."""

    def moved(shape: Shape) -> bool:
        return shape.kind == "expert" and shape.layer is not None and shape.layer < layers

    return sum(held.bytes for held in weights.tensors if moved(held.shape))


def float_width(dtype: str) -> int:
    """Return bytes of a value of a compute dtype."""
    return FLOAT_BYTES[dtype]
