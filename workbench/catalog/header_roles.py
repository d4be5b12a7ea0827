"""What each stored tensor is for, by its name: embedding, output, attention, experts, vision."""

from __future__ import annotations

import re
from collections.abc import Iterable

from workbench.catalog.header_tensor import Tensor

VISION = re.compile(
    r"(^|\.)(visual|vision_\w+|vision|vit|image_newline|multi_modal_projector|mm_projector"
    r"|embed_vision|connector|aligner|mlp1|v|mm)\."
)
AUDIO = re.compile(r"(^|\.)(audio_\w+|audio|embed_audio)\.")
_EMBEDDINGS = (
    "embed_tokens", "wte", "embed_in", "tok_embeddings", "word_embeddings", "token_embd",
)  # fmt: skip
_EMBEDDING = re.compile(rf"(.*\.)?({'|'.join(_EMBEDDINGS)}|backbone\.embeddings)\.weight")
_OUTPUT = re.compile(r"((.*\.)?(lm_head|embed_out)|output)\.(weight|qweight|weight_packed)")
_ROLES = (
    ("vision", VISION),
    ("audio", AUDIO),
    ("embedding", re.compile(rf"(^|\.)({'|'.join(_EMBEDDINGS)}|wpe|embed\w*|embeddings)(\.|_)")),
    ("output", re.compile(r"((^|\.)(lm_head|embed_out)|^output)\.")),
    ("router", re.compile(r"\.(router|(mlp|moe)\.gate|ffn_gate_inp\w*|exp_probs_b)\.")),
    ("experts", re.compile(r"(\.experts\.|_exps\.|\.(in|out)put_linear\.|_shexp\.|shared_expert)")),
    ("state space", re.compile(r"\.(ssm_\w+|mamba|mixer|linear_attn|conv)\b")),
    ("norm", re.compile(r"(norm|layernorm|ln_\w+|_ln)\d*\.(weight|bias)$")),
    ("attention", re.compile(r"(attn|attention|\.(q|k|v|o)_proj)")),
    ("feed-forward", re.compile(r"(mlp|ffn|feed_forward|\.fc\d|dense_h_to_4h|dense_4h_to_h)")),
)  # fmt: skip
ROUTED = re.compile(r"(\.experts\.|ffn_(gate|up|down|gate_up)_exps\.|moe\.(input|output)_linear\.)")


def role(name: str) -> str:
    """Return what a tensor of this name is for, ``other`` where the name does not say."""
    return next((words for words, pattern in _ROLES if pattern.search(name)), "other")


def embedding(tensors: Iterable[Tensor]) -> Tensor | None:
    """Return the input embedding: the match with the shortest name, or None."""
    found = [tensor for tensor in tensors if _EMBEDDING.fullmatch(tensor.name)]
    found = [tensor for tensor in found if not _elsewhere(tensor.name)]
    return min(found, key=lambda tensor: len(tensor.name), default=None)


def output(tensors: Iterable[Tensor]) -> Tensor | None:
    """Return the output matrix: the match with the shortest name, or None."""
    found = [tensor for tensor in tensors if _OUTPUT.fullmatch(tensor.name)]
    found = [tensor for tensor in found if not _elsewhere(tensor.name)]
    return min(found, key=lambda tensor: len(tensor.name), default=None)


def _elsewhere(name: str) -> bool:
    return bool(VISION.search(name) or AUDIO.search(name))
