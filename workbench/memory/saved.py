"""What autograd keeps of a decoder layer for the backward pass, in bytes for one token.

Counted with hooks on saved tensors over transformers 5.19 and peft 0.21; the tests count again.
Below, ``h`` is the width of the residual stream, ``A`` and ``K`` the widths of queries and keys,
``f`` that of the feed-forward part, ``w`` the bytes of a value.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from workbench.catalog.architecture import Architecture
from workbench.errors import InputError, did_you_mean
from workbench.memory.layers import heads

Cast = Literal["same", "fp32", "autocast"]
ROLES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "qkv_proj": "attn_qkv",
    "q_a_proj": "attn_q_a",
    "q_b_proj": "attn_q_b",
    "kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "kv_b_proj": "attn_kv_b",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "gate_up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "in_proj": "ssm_in",
    "out_proj": "ssm_out",
    "c_attn": "attn_qkv",
    "c_fc": "ffn_up",
}
"""Names of linear layers in transformers, and what they are called here."""
_OF_NORM = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_q_a", "attn_kv_a_mqa")
_QK_NORM = ("qwen3", "qwen3_moe", "qwen3_vl", "qwen3_vl_moe", "gemma3", "gemma3_text", "gemma3n")
_FOUR_NORMS = ("gemma2", "gemma3", "gemma3_text", "gemma3n")
_LAYER_NORM = ("stablelm", "stablelm_epoch", "gpt2", "phi", "phimoe", "moondream1")
_LLAMA = (
    "llama", "mistral", "mistral3", "ministral3", "qwen2", "qwen3", "granite", "gemma2", "gemma3",
    "gemma3_text", "phi3", "seed_oss", "stablelm", "stablelm_epoch", "idefics3", "smollm3",
)  # fmt: skip
_INDEX = 50  # order of the experts, for each expert of a token


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """The linear layers of one decoder layer that get a LoRA, and how.

    Attributes:
        roles: Role to (outputs, inputs).
        rank: LoRA rank.
        cast: ``same``: adapters in the dtype of what they read; ``fp32``: their input is copied to
            fp32; ``autocast``: copied to 16 bit, as autocast does with fp32 adapters.
        dropout: Whether some of the input is dropped.
        fused_mask: Whether dropout keeps one byte for a value (CUDA), else a whole value.
    """

    roles: dict[str, tuple[int, int]]
    rank: int
    cast: Cast = "same"
    dropout: bool = False
    fused_mask: bool = True

    @property
    def parameters(self) -> int:
        """Trained weights of this layer."""
        return sum(self.rank * (rows + columns) for rows, columns in self.roles.values())


@dataclasses.dataclass(frozen=True, slots=True)
class Saved:
    """Bytes of one token in one layer.

    Attributes:
        kept: What the backward pass needs.
        moment: What comes on top while the layer goes backward.
        rule: The terms, in words.
        certain: Whether the family was counted.
    """

    kept: float
    moment: float
    rule: str
    certain: bool


def roles_of(targets: str | tuple[str, ...], known: dict[str, tuple[int, int]]) -> tuple[str, ...]:
    """Return the roles that ``target_modules`` means in this model.

    Raises:
        InputError: A name that no linear layer has.
    """
    if targets == "all-linear":
        return tuple(known)
    if targets == "attention":
        return tuple(role for role in known if role.startswith("attn"))
    names = (targets,) if isinstance(targets, str) else targets
    found = []
    for name in names:
        role = ROLES.get(name, name)
        if role not in known:
            have = [word for word, each in ROLES.items() if each in known]
            raise InputError(
                f"targets names {name!r}, which no linear layer of this model is called.",
                hint=did_you_mean(name, [*have, "all-linear", "attention"]),
            )
        found.append(role)
    return tuple(found)


def saved_bytes(
    facts: Architecture, *, width: int, adapted: Adapted | None, eager_tokens: int = 0
) -> Saved:
    """Return what one layer keeps for one token.

    Args:
        facts: The architecture.
        width: Bytes of a value of the activations.
        adapted: The LoRA layers, or None where all weights are trained.
        eager_tokens: Tokens of a sequence where attention is eager, else 0.
    """
    kind = facts.model_type or ""
    hidden, w = facts.hidden_size or 0, width
    found = heads(facts)
    kept = _norms(facts, w, full=adapted is None)
    kept += w * (2 * found.query + 2 * found.key) + 4 * found.heads
    if kind == "phi3":  # values are a view that keeps the whole fused projection
        kept += w * (found.query + found.key)
    if kind == "seed_oss":
        kept += 2 * hidden  # masks of its residual dropout
    kept += _inner(facts, w, adapted)
    if adapted is None:
        kept += w * 2 * hidden
    else:
        kept += _of_adapters(facts, w, adapted)
    if eager_tokens:
        kept += found.heads * eager_tokens * (4 + w)
    wide = facts.intermediate_size or 0
    moment = max(0.0, w * 2 * wide - 2 * w * hidden)
    if adapted is not None and adapted.cast == "fp32" and "ffn_up" in adapted.roles:
        moment = 4 * wide + 8 * hidden
    elif adapted is not None and adapted.cast == "autocast" and "ffn_up" in adapted.roles:
        moment = 8 * wide - 2 * hidden
    elif kind in _FOUR_NORMS or (adapted is not None and "ffn_up" not in adapted.roles):
        moment = 6 * wide
    rule = f"{kept:,.0f} B for each token and layer"
    return Saved(kept, moment, rule, kind in _LLAMA)


def _norms(facts: Architecture, w: int, *, full: bool) -> float:
    """Return what the norms keep: an fp32 input each, and where trained what they scaled."""
    hidden, kind, found = facts.hidden_size or 0, facts.model_type or "", heads(facts)
    if kind in _LAYER_NORM:  # native: its input as it is, mean and deviation
        return 2.0 * (w * hidden + 8)
    count = 4 if kind in _FOUR_NORMS else 2
    scaled = (4 if kind in _FOUR_NORMS else w) if full else 0
    kept = float(count * (4 * hidden + 4 + scaled * hidden))
    if kind in _QK_NORM:
        kept += 4 * (found.query + found.key) + 4 * (found.query + found.key) / found.head
        kept += scaled * (found.query + found.key)
    return kept


def _inner(facts: Architecture, w: int, adapted: Adapted | None) -> float:
    """Return what the feed-forward part keeps: gate, up and the activated gate."""
    hidden, experts = facts.hidden_size or 0, facts.experts
    dense = 3 * w * (facts.intermediate_size or 0)
    if adapted is None:
        dense = 4 * w * (facts.intermediate_size or 0)
    if experts is None:
        return dense
    wide = experts.intermediate_size
    steps = 6 if facts.model_type == "gpt_oss" else 3
    row = w * (hidden + steps * wide)
    if adapted is None:
        row += w * (hidden + wide)
    if facts.model_type == "gpt_oss":
        row += w * hidden
    shared = experts.shared_intermediate_size or (
        (experts.shared_experts or 0) * experts.intermediate_size
    )
    return experts.experts_per_token * (row + _INDEX) + 3 * w * shared


def _of_adapters(facts: Architecture, w: int, adapted: Adapted) -> float:
    """Return what LoRA keeps besides: its inputs, in the dtype that it reads, and the low rank."""
    kept, width = 0.0, {"same": w, "fp32": 4, "autocast": 2}[adapted.cast]
    shared: set[str] = set()
    mask = 1 if adapted.fused_mask else (w if adapted.cast == "same" else 4)
    for role, (_, columns) in adapted.roles.items():
        kept += width * adapted.rank
        if adapted.dropout:
            kept += (width + mask) * columns
        elif adapted.cast != "same":
            kept += width * columns
        elif role in ("attn_output", "ssm_out"):
            continue  # the output of attention is kept by attention itself
        else:
            source = "attn_norm" if role in _OF_NORM else "ffn_norm" if role != "ffn_down" else role
            kept += 0 if source in shared else width * columns
            shared.add(source)
    return kept
