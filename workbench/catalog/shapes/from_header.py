"""The tensors of a model from its files' own tensor tables."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from workbench.catalog.header_roles import AUDIO, VISION
from workbench.catalog.header_tensor import Tensor
from workbench.catalog.shapes.families import known_or_guessed, shapes
from workbench.catalog.shapes.shape import Kind, Shape, ShapeList
from workbench.errors import UnsupportedError

if TYPE_CHECKING:
    from workbench.catalog.header_view import Header

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_LAYER = re.compile(r"(?:.*\.)?(?:layers|h|layer|blocks)\.(\d+)\.(.+)")
_EXPERT = re.compile(r"(?:.*\.)?experts\.(\d+)\.(\w+)")
_EXPERT_ROLES = {
    "gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps",
    "w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps",
}  # fmt: skip
# Ends of names in safetensors, the longest first where one is another's end.
_ENDS = (
    ("embed_tokens", "token_embd"), ("wte", "token_embd"), ("word_embeddings", "token_embd"),
    ("tok_embeddings", "token_embd"), ("wpe", "position_embd"),
    ("position_embeddings", "position_embd"), ("token_type_embeddings", "token_types"),
    ("lm_head", "output"), ("q_a_proj", "attn_q_a"), ("q_b_proj", "attn_q_b"),
    ("kv_a_proj_with_mqa", "attn_kv_a_mqa"), ("kv_b_proj", "attn_kv_b"),
    ("qkv_proj", "attn_qkv"), ("c_attn", "attn_qkv"), ("query_key_value", "attn_qkv"),
    ("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v"), ("o_proj", "attn_output"),
    ("attn.c_proj", "attn_output"), ("self_attn.dense", "attn_output"),
    ("shared_expert.gate_proj", "ffn_gate_shexp"), ("shared_experts.gate_proj", "ffn_gate_shexp"),
    ("shared_expert.up_proj", "ffn_up_shexp"), ("shared_experts.up_proj", "ffn_up_shexp"),
    ("shared_expert.down_proj", "ffn_down_shexp"),
    ("shared_experts.down_proj", "ffn_down_shexp"), ("gate_up_proj", "ffn_up"),
    ("gate_proj", "ffn_gate"), ("up_proj", "ffn_up"), ("down_proj", "ffn_down"),
    ("c_fc", "ffn_up"), ("mlp.c_proj", "ffn_down"), ("fc1", "ffn_up"), ("fc2", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"), ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("router", "ffn_gate_inp"), ("router.layer", "ffn_gate_inp"), ("conv1d", "ssm_conv1d"),
    ("in_proj", "ssm_in"), ("out_proj", "ssm_out"),
)  # fmt: skip
_EMBEDDINGS = {"token_embd", "position_embd", "token_types", "per_layer_token_embd"}


def shapes_of_header(header: Header, *, as_stored: bool = False) -> ShapeList:
    """Return the tensors of a model's files.

    A GGUF file's own table says all. For safetensors the rules of the family are taken where they
    add up to what is stored; else the table itself, read by names and dimensions. Packed weights
    of an unknown family are guessed from its sizes.

    Args:
        header: What the files say of themselves.
        as_stored: Keep an output matrix that is stored although it is the embedding once more:
            a GGUF file made from it keeps it as well.

    Raises:
        UnsupportedError: The weights are packed and the family is not known.
    """
    facts = header.architecture()
    if header.kind == "gguf":
        return _listed(header.tensors, facts.model_type, gguf=True)
    twice = header.tied_embeddings == "twice"
    try:
        known = shapes(facts)
    except UnsupportedError:
        known = None
    if known is not None and known.exact and not (twice and as_stored):
        return dataclasses.replace(known, source="header")
    if any(counted.method is not None for counted in header.counted):
        return known or known_or_guessed(facts)
    read = _listed(header.tensors, facts.model_type, gguf=False)
    if twice and not as_stored:
        kept = tuple(shape for shape in read if shape.role != "output")
        return dataclasses.replace(read, tensors=kept)
    return read


def _listed(tensors: tuple[Tensor, ...], model_type: str | None, *, gguf: bool) -> ShapeList:
    found = []
    stacks: dict[tuple[int | None, str, tuple[int, ...]], int] = {}
    for tensor in tensors:
        expert = None if gguf else _EXPERT.match(tensor.name)
        if expert and expert[2] in _EXPERT_ROLES and len(tensor.shape) == 2:
            key = _layer_of(tensor.name)[0], _EXPERT_ROLES[expert[2]], tensor.shape
            stacks[key] = stacks.get(key, 0) + 1
        else:
            found.append(_gguf_shape(tensor) if gguf else _shape(tensor))
    for (layer, role, shape), count in stacks.items():
        found.append(Shape(role, layer, (count, *shape), "expert"))
    return ShapeList(tensors=tuple(found), model_type=model_type, source="header")


def _gguf_shape(tensor: Tensor) -> Shape:
    match = _BLOCK.fullmatch(tensor.name)
    layer, name = (int(match[1]), match[2]) if match else (None, tensor.name)
    role, _, end = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
    kind = _kind(role, end, tensor.shape)
    vision = VISION.search(tensor.name) or AUDIO.search(tensor.name)
    return Shape(role, layer, tensor.shape, kind, "vision" if vision else "text")


def _layer_of(name: str) -> tuple[int | None, str]:
    match = _LAYER.match(name)
    return (int(match[1]), match[2]) if match else (None, name)


def _shape(tensor: Tensor) -> Shape:
    layer, name = _layer_of(tensor.name)
    base, _, end = name.rpartition(".")
    outside = VISION.search(tensor.name) or AUDIO.search(tensor.name)
    if outside:
        role = base or name
        return Shape(role, layer, tensor.shape, _kind(role, end, tensor.shape), "vision")
    role = next((to for part, to in _ENDS if base == part or base.endswith("." + part)), base)
    if len(tensor.shape) == 3 and "expert" in name:
        return Shape(role or name, layer, tensor.shape, "expert")
    return Shape(role or name, layer, tensor.shape, _kind(role, end, tensor.shape))


def _kind(role: str, end: str, shape: tuple[int, ...]) -> Kind:
    """Return what a tensor is by its role and dimensions."""
    if role in _EMBEDDINGS or role.endswith("position_embd"):
        return "embedding"
    if end == "bias":
        return "bias"
    if role == "output":
        return "output"
    if "norm" in role or role.endswith(("ln1", "ln2", "_ln")):
        return "norm"
    if "conv" in role or "patch_embd" in role or len(shape) > 3:
        return "conv"
    if role.endswith("_exps"):
        return "expert"
    if len(shape) < 2 or role in ("ffn_gate_inp", "ssm_a", "ssm_d", "attn_sinks"):
        return "other"
    return "linear"
