"""Architecture facts from the metadata and the tensor table of a GGUF file; nothing guessed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.catalog.architecture import (
    Architecture,
    Experts,
    LatentAttention,
    SlidingWindow,
    StateSpace,
)
from workbench.catalog.gguf_header import GgufArray
from workbench.catalog.header_config import MOST_LAYERS
from workbench.catalog.header_count import Counted
from workbench.catalog.header_facts import Facts, active, cache_bytes, checked

# Every n-th layer sees all, the others slide: fixed in llama.cpp where the file does not say it.
_PERIODS = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2, "cohere2": 4, "gemma3n": 5}


class _Section:
    """The architecture's own section of the metadata."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        name = metadata.get("general.architecture")
        self.name = name[:80] if isinstance(name, str) else None
        start = f"{name}."
        own = {key[len(start) :]: at for key, at in metadata.items() if key.startswith(start)}
        self.facts = Facts(own)

    def each(self, name: str) -> tuple[int, ...]:
        """Return the whole numbers of an array with one entry for each layer."""
        value = self.facts.values.get(name)
        found = value.values if isinstance(value, GgufArray) else ()
        return tuple(int(entry) for entry in found if isinstance(entry, int))

    def number(self, name: str) -> int | None:
        """Return a number; of an array, the one that all its positive entries share."""
        found = {entry for entry in self.each(name) if entry > 0}
        return self.facts.number(name) or (found.pop() if len(found) == 1 else None)


def architecture_of_metadata(
    metadata: Mapping[str, Any], counted: tuple[Counted, ...], stored: Mapping[str, Any]
) -> Architecture:
    """Return the facts of a GGUF file.

    Args:
        metadata: Its metadata, of a split file that of the first part.
        counted: Its tensors with the weights that they stand for.
        stored: Facts that the tensor list alone tells: embeddings and parameters.
    """
    section = _Section(metadata)
    number = section.number
    layers = _layers(section)
    heads, kv_heads = number("attention.head_count"), number("attention.head_count_kv")
    width = number("embedding_length")
    key = number("attention.key_length")
    if key is None and width and heads and width % heads == 0:
        key = width // heads  # llama.cpp's own rule where the key is missing
    value = number("attention.value_length") or key
    latent = _latent(section)
    experts = _experts(section)
    names = {each.tensor.name for each in counted}
    attending = _attention_layers(section, layers, names)
    shared = section.facts.number("attention.shared_kv_layers")
    owning = layers - shared if layers and shared and shared < layers else None
    keeping = owning or (len(attending) if attending is not None else layers)
    cache = cache_bytes(keeping, kv_heads or None, key, value, latent)
    facts = {
        **stored,
        "model_type": section.name,
        "layers": layers,
        "hidden_size": width,
        "intermediate_size": number("feed_forward_length"),
        "attention_heads": heads,
        "kv_heads": kv_heads,
        "head_dim": None if latent else key,
        "vocab_size": stored.get("vocab_size") or _vocabulary(section, metadata),
        "qkv_bias": _named(names, ("attn_q.bias", "attn_qkv.bias"), ("attn_q.", "attn_qkv.")),
        "qk_norm": _named(names, ("attn_q_norm.weight",), ("attn_q.", "attn_qkv.")),
        "sliding_window": _sliding(section, layers),
        "experts": experts,
        "active_parameters": active(counted, stored.get("parameters"), experts),
        "latent_attention": latent,
        "state_space": _state_space(section),
        "attention_layers": attending,
        "kv_layers": owning,
        "per_layer_input_dim": number("embedding_length_per_layer_input"),
        "altup_inputs": number("altup.num_inputs"),
        "kv_cache_bytes_per_token_16bit": _uneven_cache(section, layers, key, value) or cache,
    }
    return Architecture.of({name: fact for name, fact in facts.items() if fact is not None})


def _layers(section: _Section) -> int | None:
    blocks = section.facts.number("block_count")
    if blocks is None or blocks > MOST_LAYERS:
        return None
    ahead = section.facts.number("nextn_predict_layers") or 0
    return blocks - ahead if ahead < blocks else blocks


def _vocabulary(section: _Section, metadata: Mapping[str, Any]) -> int | None:
    tokens = metadata.get("tokenizer.ggml.tokens")
    counted = tokens.length if isinstance(tokens, GgufArray) else None
    return section.facts.number("vocab_size") or counted or None


def _named(names: set[str], ends: tuple[str, ...], present: tuple[str, ...]) -> bool | None:
    if any(name.endswith(ends) for name in names):
        return True
    return False if any(f".{part}" in name for name in names for part in present) else None


def _sliding(section: _Section, layers: int | None) -> SlidingWindow | None:
    size = section.facts.number("attention.sliding_window")
    if size is None:
        return None
    flags = section.each("attention.sliding_window_pattern")
    period = section.facts.number("attention.sliding_window_pattern")
    period = period or _PERIODS.get(section.name or "")
    sliding, pattern = None, None
    if layers and len(flags) >= layers:
        sliding = sum(1 for flag in flags[:layers] if flag)
    elif layers and period:
        sliding, pattern = (
            layers - layers // period,
            f"every {period}. layer sees the whole context",
        )
    if sliding == 0:
        return None
    full = layers - sliding if layers and sliding is not None else None
    made: SlidingWindow | None = checked(
        SlidingWindow, size=size, sliding_layers=sliding, full_layers=full, pattern=pattern
    )
    return made


def _experts(section: _Section) -> Experts | None:
    width = section.number("expert_feed_forward_length") or section.number("feed_forward_length")
    made: Experts | None = checked(
        Experts,
        experts=section.facts.number("expert_count"),
        experts_per_token=section.facts.number("expert_used_count"),
        intermediate_size=width,
        shared_experts=section.facts.count("expert_shared_count"),
        shared_intermediate_size=section.number("expert_shared_feed_forward_length"),
        dense_layers=section.facts.number("leading_dense_block_count"),
    )
    return made


def _latent(section: _Section) -> LatentAttention | None:
    rotary = section.number("rope.dimension_count")
    # Files for absorbed MLA give the heads' true widths under names of their own.
    key = section.number("attention.key_length_mla") or section.number("attention.key_length")
    value = section.number("attention.value_length_mla") or section.number("attention.value_length")
    made: LatentAttention | None = checked(
        LatentAttention,
        kv_lora_rank=section.number("attention.kv_lora_rank"),
        q_lora_rank=section.number("attention.q_lora_rank"),
        qk_nope_head_dim=key - rotary if key and rotary else None,
        qk_rope_head_dim=rotary,
        v_head_dim=value,
    )
    return made


def _state_space(section: _Section) -> StateSpace | None:
    heads, inner = section.number("ssm.time_step_rank"), section.number("ssm.inner_size")
    if not heads or not inner or inner % heads or section.facts.number("ssm.group_count") is None:
        return None  # Mamba-1 has no groups, and its rank is no number of heads
    made: StateSpace | None = checked(
        StateSpace,
        heads=heads,
        head_dim=inner // heads,
        state_size=section.number("ssm.state_size"),
        conv_kernel=section.number("ssm.conv_kernel"),
        groups=section.number("ssm.group_count"),
        inner_size=inner,
    )
    return made


def _attention_layers(
    section: _Section, layers: int | None, names: set[str]
) -> tuple[int, ...] | None:
    """Return the layers of a hybrid that attend: those with key heads, or with a key matrix."""
    if layers is None or section.number("ssm.conv_kernel") is None:
        return None
    each = section.each("attention.head_count_kv")
    if len(each) >= layers:
        return tuple(at for at in range(layers) if each[at] > 0)
    ends = ("attn_k.weight", "attn_kv_a_mqa.weight")
    return tuple(at for at in range(layers) if any(f"blk.{at}.{end}" in names for end in ends))


def _uneven_cache(
    section: _Section, layers: int | None, key: int | None, value: int | None
) -> int | None:
    each = section.each("attention.head_count_kv")
    if layers is None or len(each) < layers or not key or not value:
        return None
    return 2 * sum(max(count, 0) for count in each[:layers]) * (key + value) or None
