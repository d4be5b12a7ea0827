"""Which ggml type each tensor of a GGUF file gets: llama.cpp's own rules (src/llama-quant.cpp).

Checked per tensor against ``llama_model_quantize`` of llama-cpp-python 0.3.36. The rules change
with llama.cpp; a file that exists is always judged by its own tensor table.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from workbench.catalog.shapes import Shape, ShapeList
from workbench.errors import InputError, UnsupportedError, did_you_mean
from workbench.memory.ggml import BLOCKS, divides, row_bytes
from workbench.memory.gguf_form import float_type, gguf_tensors

Category = Literal[
    "output", "embedding", "value", "key", "query", "attention_output", "gate", "up", "down",
    "other",
]  # fmt: skip

FILE_TYPES: dict[str, str] = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "Q4_0": "Q4_0", "Q4_1": "Q4_1", "Q5_0": "Q5_0",
    "Q5_1": "Q5_1", "Q8_0": "Q8_0", "Q1_0": "Q1_0", "Q2_0": "Q2_0", "MXFP4_MOE": "MXFP4",
    "Q2_K_S": "Q2_K", "Q2_K": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K",
    "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K",
    "TQ1_0": "TQ1_0", "TQ2_0": "TQ2_0", "IQ1_S": "IQ1_S", "IQ1_M": "IQ1_M",
    "IQ2_XXS": "IQ2_XXS", "IQ2_XS": "IQ2_XS", "IQ2_S": "IQ2_XS", "IQ2_M": "IQ2_S",
    "IQ3_XXS": "IQ3_XXS", "IQ3_XS": "IQ3_S", "IQ3_S": "IQ3_S", "IQ3_M": "IQ3_S",
    "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS",
}  # fmt: skip
"""File type to the type that most tensors get."""
NEEDS_IMATRIX = frozenset(
    {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}
)
"""File types that llama.cpp makes only with an importance matrix."""
_LOWEST = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"}
_FLOATS = {"F32", "F16", "BF16"}
_NEVER = (
    "_norm.weight", "ffn_gate_inp.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "attn_rel_b.weight",
)  # fmt: skip
_NEVER_NAMED = {"position_embd.weight", "token_types.weight"}
_FALLBACKS = {
    "Q2_0": "Q4_0", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL", "IQ3_S": "IQ4_NL",
    "IQ3_XXS": "IQ4_NL", "IQ2_S": "IQ4_NL", "IQ2_XS": "IQ4_NL", "IQ2_XXS": "IQ4_NL",
    "IQ1_S": "IQ4_NL", "IQ1_M": "IQ4_NL",
}  # fmt: skip
_OUTPUT = {**dict.fromkeys({*_LOWEST, "IQ3_XXS"}, "Q5_K"), "MXFP4_MOE": "Q8_0"}
_EMBEDDING = {
    "IQ1_S": "Q2_K", "IQ1_M": "Q2_K", "IQ2_XXS": "Q2_K", "IQ2_XS": "Q2_K", "IQ2_S": "IQ3_S",
    "IQ2_M": "IQ3_S", "IQ3_XXS": "IQ3_S", "TQ1_0": "Q4_K", "TQ2_0": "Q4_K", "Q2_0": "Q4_K",
}  # fmt: skip
_MANY_QUERIES = {
    "Q2_K": "Q4_K", "Q2_K_S": "Q4_K", "IQ3_XXS": "Q4_K", "IQ3_XS": "Q4_K", "IQ3_S": "Q4_K",
    "IQ4_NL": "Q5_K", "IQ4_XS": "Q5_K",
}  # fmt: skip
_EIGHT_EXPERTS_OUTPUT = {
    "Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S",
    "IQ3_M", "IQ4_XS",
}  # fmt: skip
_ATTENTION_OUTPUT = {
    "Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K",
}  # fmt: skip
_LOWEST_ATTENTION_OUTPUT = {
    "IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S",
}  # fmt: skip
_QUERY = {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}
_SEVENTY_LAYERS = 80
_LEAST_BLOCK = 32


@dataclasses.dataclass(slots=True)
class _State:
    """What the rules count while they pass over the tensors in llama.cpp's order."""

    file_type: str
    layers: int
    values: int
    tied: bool
    experts: int
    queries_per_key: int
    seventy: bool
    imatrix: bool
    seen: dict[str, int] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(("value", "down", "gate", "up"), 0)
    )

    def next(self, category: str) -> int:
        """Return how many of a category came before, and count this one."""
        number = self.seen[category]
        self.seen[category] = number + 1
        return number


def gguf_mix(
    shapes: ShapeList | Iterable[Shape],
    file_type: str,
    *,
    model_type: str | None = None,
    source: str = "BF16",
    imatrix: bool | None = None,
    overrides: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the ggml type of every tensor of a quantized file, by its name in the file.

    Args:
        shapes: All tensors of the model.
        file_type: llama.cpp's name of the mix, for example ``Q4_K_M``.
        model_type: The family, where ``shapes`` does not know it.
        source: Type of the file that is quantized: tensors that are never quantized keep it.
        imatrix: Whether an importance matrix is given; None: where the file type needs one.
        overrides: Regular expression over names to the type that these tensors get instead, as
            llama-quantize's ``--tensor-type``, ``--output-tensor-type``.

    Raises:
        InputError: There is no such file type.
    """
    return {
        shape.name: kind
        for shape, kind in mixed(
            shapes,
            file_type,
            model_type=model_type,
            source=source,
            imatrix=imatrix,
            overrides=overrides,
        )
    }


def mixed(
    shapes: ShapeList | Iterable[Shape],
    file_type: str,
    *,
    model_type: str | None = None,
    source: str = "BF16",
    imatrix: bool | None = None,
    overrides: Mapping[str, str] | None = None,
) -> list[tuple[Shape, str]]:
    """Return every tensor of the file with its type, in llama.cpp's order; see ``gguf_mix``.

    Raises:
        InputError: There is no such file type.
        UnsupportedError: llama.cpp refuses this type for a tensor of this model.
    """
    if file_type not in FILE_TYPES:
        raise InputError(
            f"llama.cpp has no file type {file_type!r}.", hint=did_you_mean(file_type, FILE_TYPES)
        )
    given = shapes if isinstance(shapes, ShapeList) else None
    tensors = gguf_tensors(given) if given is not None else tuple(shapes)
    known: dict[tuple[str, str, tuple[int, ...]], _Class] = {}
    ordered = sorted(
        ((shape, _class(shape, known)) for shape in tensors),
        key=lambda pair: (-1 if pair[0].layer is None else pair[0].layer, pair[1].tail),
    )
    kind = model_type or (given.model_type if given is not None else None)
    wanted = file_type in NEEDS_IMATRIX if imatrix is None else imatrix
    state = _state(ordered, file_type, kind, imatrix=wanted)
    patterns = [(re.compile(text), to) for text, to in (overrides or {}).items()]
    default = FILE_TYPES[file_type]
    plain = default if default in _FLOATS else source
    result = []
    for shape, found in ordered:
        if not found.allowed:
            result.append((shape, float_type(shape, plain)))
            continue
        name = shape.name if patterns else ""
        manual = next((to for pattern, to in patterns if pattern.search(name)), None)
        float_file = default if default in _FLOATS else None
        choice = manual or float_file or _choice(state, shape, found.category)
        result.append((shape, fallback(choice, shape.columns)))
    return result


@dataclasses.dataclass(frozen=True, slots=True)
class _Class:
    """What a tensor's role alone decides: its name without the layer, and what llama.cpp sees."""

    tail: str
    category: Category
    allowed: bool


def _class(shape: Shape, known: dict[tuple[str, str, tuple[int, ...]], _Class]) -> _Class:
    key = shape.role, shape.kind, shape.shape
    found = known.get(key)
    if found is None:
        tail = dataclasses.replace(shape, layer=None).name
        found = known[key] = _Class(tail, _category(tail), _allowed(shape, tail))
    return found


def mix_bytes(mix: Iterable[tuple[Shape, str]]) -> int:
    """Return the bytes of all tensors, without the padding between them."""
    return sum(shape.rows * row_bytes(kind, shape.columns) for shape, kind in mix)


def fallback(kind: str, columns: int) -> str:
    """Return the type that a row of this length can have instead.

    Raises:
        UnsupportedError: llama.cpp knows none and refuses the tensor.
    """
    if divides(kind, columns):
        return kind
    if kind not in _FALLBACKS and BLOCKS[kind][0] > _LEAST_BLOCK:
        raise UnsupportedError(
            f"llama.cpp cannot make {kind} of rows of {columns} values.",
            hint="Choose another quantization for this model.",
        )
    other = _FALLBACKS.get(kind, kind)
    return other if divides(other, columns) else "F16"


def _allowed(shape: Shape, name: str) -> bool:
    """Return whether llama.cpp quantizes the tensor at all."""
    if len(shape.shape) < 2 or not name.endswith("weight") or name in _NEVER_NAMED:
        return False
    return not any(part in name for part in _NEVER)


def _category(name: str) -> Category:
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "embedding"
    for part, category in _PARTS:
        if part in name:
            return category
    return "other"


_PARTS: tuple[tuple[str, Category], ...] = (
    ("attn_qkv.weight", "value"),
    ("attn_kv_b.weight", "value"),
    ("attn_v.weight", "value"),
    ("attn_k.weight", "key"),
    ("attn_q.weight", "query"),
    ("attn_output.weight", "attention_output"),
    ("ffn_up", "up"),
    ("ffn_gate", "gate"),
    ("ffn_down", "down"),
)


def _state(
    ordered: list[tuple[Shape, _Class]],
    file_type: str,
    model_type: str | None,
    *,
    imatrix: bool,
) -> _State:
    layers = 1 + max((shape.layer for shape, _ in ordered if shape.layer is not None), default=-1)
    first = {found.tail: shape for shape, found in ordered if shape.layer == 0}
    queries = _queries_per_key(first)
    return _State(
        file_type=file_type,
        layers=layers,
        values=sum(found.category == "value" for _, found in ordered),
        tied=all(found.tail != "output.weight" for _, found in ordered),
        experts=max((shape.shape[0] for shape, _ in ordered if shape.kind == "expert"), default=0),
        queries_per_key=queries,
        seventy=layers == _SEVENTY_LAYERS
        and (model_type == "qwen2" or (model_type in ("llama", "mistral") and queries != 1)),
        imatrix=imatrix,
    )


def _queries_per_key(first: Mapping[str, Shape]) -> int:
    """Return query heads for each key head of layer 0; 0 where it does not attend."""
    fused, output = first.get("attn_qkv.weight"), first.get("attn_output.weight")
    if fused is not None and output is not None:
        return 2 * output.columns // max(1, fused.rows - output.columns)
    q, k = first.get("attn_q.weight"), first.get("attn_k.weight")
    return 0 if q is None or k is None else q.rows // k.rows


def _more_bits(number: int, count: int) -> bool:
    eighth = count // 8
    return number < eighth or number >= 7 * count // 8 or (number - eighth) % 3 == 2


def _choice(state: _State, shape: Shape, category: Category) -> str:
    """Return the type by the mix, before the row length is looked at."""
    file_type = state.file_type
    default = FILE_TYPES[file_type]
    if category == "output" or (state.tied and category == "embedding"):
        return _output(file_type, default, shape.columns)
    if file_type == "MXFP4_MOE":
        return "MXFP4" if len(shape.shape) > 2 and shape.shape[0] > 1 else "Q8_0"
    if category == "embedding":
        return _EMBEDDING.get(file_type, default)
    if file_type in _LOWEST:
        return _lowest(state, category, default)
    if category == "value":
        return _value(state, default)
    if category == "key" and state.experts == 8:
        return "Q8_0"
    if category in ("key", "query"):
        return _QUERY.get(file_type, default)
    if category == "attention_output":
        if state.experts == 8:
            return "Q5_K" if file_type in _EIGHT_EXPERTS_OUTPUT else default
        return _ATTENTION_OUTPUT.get(file_type, default)
    if category in ("down", "gate", "up"):
        number = state.next(category)
        if state.experts > 1 and shape.layer is not None:
            number = shape.layer
        if category == "down":
            return _down(state, number, default)
        middle = state.layers // 8 <= number < 7 * state.layers // 8
        return "IQ3_XXS" if file_type == "IQ3_XS" and middle else default
    return default


def _output(file_type: str, default: str, columns: int) -> str:
    if file_type == "MXFP4_MOE" or not divides(default, columns):
        return "Q8_0"
    return _OUTPUT.get(file_type) or ("Q8_0" if default == "Q8_0" else "Q6_K")


def _lowest(state: _State, category: Category, default: str) -> str:
    """Rules of the file types of one and two bits."""
    higher = "IQ3_S" if state.file_type in ("IQ2_S", "IQ2_M") else "Q2_K"
    if category == "value":
        state.next("value")
        return "Q4_K" if state.queries_per_key >= 4 or state.experts >= 4 else higher
    if category == "key" and state.experts == 8:
        return "Q4_K"
    if category == "down":
        return higher if state.next("down") < state.layers // 8 else default
    if category == "attention_output":
        if state.experts == 8:
            return "Q5_K"
        return _LOWEST_ATTENTION_OUTPUT.get(state.file_type, default)
    return default


def _value(state: _State, default: str) -> str:
    """Rules of the values, and of projections that hold them."""
    number, file_type, kind = state.next("value"), state.file_type, default
    if file_type in _MANY_QUERIES and state.queries_per_key >= 4:
        kind = _MANY_QUERIES[file_type]
    elif file_type == "Q2_K":
        kind = "Q3_K"
    elif file_type == "IQ3_XXS" and not state.imatrix:
        kind = "IQ3_S"
    elif file_type == "IQ3_M":
        kind = "Q4_K"
    elif file_type == "Q3_K_M":
        kind = "Q5_K" if number < 2 else "Q4_K"
    elif file_type == "Q3_K_L" or (file_type == "Q4_K_S" and number < 4):
        kind = "Q5_K"
    elif file_type in ("Q4_K_M", "Q5_K_M") and _more_bits(number, state.values):
        kind = "Q6_K"
    if state.seventy and kind in ("Q3_K", "Q4_K"):
        kind = "Q5_K"
    return "Q8_0" if state.experts == 8 else kind


def _down(state: _State, number: int, default: str) -> str:
    """Rules of the feed-forward part's last matrix."""
    file_type, count = state.file_type, state.layers
    early, more = number < count // 8, _more_bits(number, count)
    match file_type:
        case "Q2_K":
            return "Q3_K"
        case "Q2_K_S":
            return "Q4_K" if early else default
        case "IQ3_XXS" if not state.imatrix:
            return "Q4_K" if early else "Q3_K"
        case "Q3_K_M":
            return "Q5_K" if number < count // 16 else "Q4_K"
        case "IQ3_M":
            return "Q4_K" if early or (state.experts == 8 and more) else default
        case "Q3_K_L":
            return "Q5_K"
        case "Q4_K_M" | "Q5_K_M":
            return "Q6_K" if more else default
        case "IQ4_NL" | "IQ4_XS" if not state.imatrix:
            return "Q5_K" if early else default
        case "Q4_K_S":
            return "Q5_K" if early else default
        case "Q4_0" | "Q5_0" if state.imatrix:
            return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[file_type] if early else default
    return default
