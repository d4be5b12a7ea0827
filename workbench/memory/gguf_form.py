"""The tensors of a GGUF file as llama.cpp's converter writes them from a model's tensors."""

from __future__ import annotations

import dataclasses

from workbench.catalog.shapes import Shape, ShapeList

_GEMMA3_VOCABULARY = 262_144
# Kept as F32 by the converter, and never quantized.
_FLOAT32_ROLES = {
    "ffn_gate_inp",
    "ffn_gate_inp_shexp",
    "position_embd",
    "token_types",
    "ssm_conv1d",
    "altup_correct_coef",
    "altup_predict_coef",
    "attn_sinks",
}


def gguf_tensors(shapes: ShapeList) -> tuple[Shape, ...]:
    """Return the tensors of the main GGUF file; the image encoder has a file of its own (mmproj).

    Not among them, because no card tells: the small tables of a scaled rotary position
    (``rope_freqs``, 4 bytes for each pair of a head).
    """
    if shapes.source == "header":
        return tuple(shape for shape in shapes if shape.part == "text")
    written: list[Shape] = []
    for shape in shapes:
        if shape.part == "text":
            written += _written(shape, shapes)
    return tuple(written)


def float_type(shape: Shape, source: str) -> str:
    """Return the type of a tensor in an unquantized file.

    Args:
        shape: The tensor.
        source: ``F16``, ``BF16`` or ``F32``: the type of the file.
    """
    if len(shape.shape) < 2 or shape.kind in ("norm", "bias", "conv"):
        return "F32"
    return "F32" if shape.role in _FLOAT32_ROLES or shape.role.endswith("_norm") else source


def _written(shape: Shape, shapes: ShapeList) -> list[Shape]:
    """Return what one tensor becomes: itself, nothing, or its parts."""
    kind, role = shapes.model_type, shape.role
    if role == "attn_kv_b":
        return _split_latent(shape, shapes)
    if kind == "gemma3" and role == "token_embd":
        rows = min(shape.shape[0], _GEMMA3_VOCABULARY)
        return [dataclasses.replace(shape, shape=(rows, shape.columns))]
    if kind == "gemma3n":
        return _gemma3n(shape, shapes)
    if kind in ("gpt_oss", "seed_oss") and role == "ffn_norm":
        return [dataclasses.replace(shape, role="post_attention_norm")]
    return [] if kind == "bert" and role == "pooler" else [shape]


def _gemma3n(shape: Shape, shapes: ShapeList) -> list[Shape]:
    """Stack the projections of the parallel streams; pad the per-layer embedding."""
    name, _, stream = shape.role.partition(".")
    if stream:
        count = sum(other.role.startswith(f"{name}.") for other in shapes)
        stacked = dataclasses.replace(shape, role=name, shape=(count, *shape.shape))
        return [stacked] if stream == "0" else []
    embedding = shapes.find("token_embd")
    if name == "per_layer_token_embd" and embedding is not None:
        return [dataclasses.replace(shape, shape=(embedding.shape[0], shape.columns))]
    return [shape]


def _split_latent(shape: Shape, shapes: ShapeList) -> list[Shape]:
    """Split the second projection of MLA's keys and values by head, keys transposed.

    With ``h`` heads: its rows are ``h (nope + v)``, the output's columns ``h v``, the rows of the
    queries ``h (nope + rope)``, and those of the first projection ``rank + rope``.
    """
    layer, rank = shape.layer, shape.columns
    output, first = shapes.find("attn_output", layer), shapes.find("attn_kv_a_mqa", layer)
    queries = shapes.find("attn_q_b", layer) or shapes.find("attn_q", layer)
    if output is None or first is None or queries is None:
        return [shape]
    values = output.columns
    keys = shape.rows - values
    rope = first.rows - rank
    heads = (queries.rows - keys) // rope
    return [
        Shape("attn_k_b", layer, (heads, rank, keys // heads), "linear"),
        Shape("attn_v_b", layer, (heads, values // heads, rank), "linear"),
    ]
