"""Architecture facts from config.json and the shapes of the stored tensors; nothing guessed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from workbench.catalog.architecture import (
    Architecture,
    Experts,
    LatentAttention,
    SlidingWindow,
    StateSpace,
    Vision,
)
from workbench.catalog.header_count import Counted
from workbench.catalog.header_facts import Facts, Shapes, active, cache_bytes, checked
from workbench.catalog.header_roles import AUDIO, VISION

MOST_LAYERS = 65_536
_TEXT = ("text_config", "llm_config", "language_config")
# Every n-th layer sees all, the others slide: fixed by the architecture's published code where
# config.json does not say it.
_PERIODS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gpt_oss": 2, "cohere2": 4}
# A tensor that only a layer with attention has; and one that only a layer without it has.
_ATTENDS = re.compile(
    r"\.([0-9]{1,5})\.(?:.*\.)?(?:self_attn|self_attention|attn|attention|mixer)\."
    r"(?:(?:q|k|qkv|q_a|q_b|kv_b)_proj|kv_a_proj\w*|query_key_value|c_attn|Wqkv|W_pack|query)\."
)
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.([0-9]{1,5})\.")
_STATE = re.compile(r"\.(mamba|mixer|ssm)\.")
_ALL_SLIDE = ("mistral", "mixtral", "phi3", "phimoe", "starcoder2")


def architecture_of_config(
    config: Mapping[str, Any],
    counted: tuple[Counted, ...],
    stored: Mapping[str, Any],
) -> Architecture:
    """Return the facts of a safetensors model.

    Args:
        config: config.json; of a model that sees, the language part is looked into.
        counted: Its tensors with the weights that they stand for.
        stored: Facts that the tensor list alone tells: embeddings and parameters.
    """
    whole = Facts(config)
    text = Facts({**config, **whole.inner(*_TEXT).values})
    shapes = Shapes(counted)
    layers = text.number("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    layers = layers if layers and layers <= MOST_LAYERS else None
    heads = text.number("num_attention_heads", "n_head", "n_heads")
    latent = _latent(text)
    head_dim = None if latent else _head_dim(text, shapes, heads)
    kv_heads = _kv_heads(text, shapes, heads, head_dim)
    attending = _attention_layers(text, layers, counted)
    experts = _experts(text)
    owning = _kv_layers(text, layers)
    facts = {
        **stored,
        "model_type": whole.text("model_type"),
        "classes": whole.words("architectures"),
        "layers": layers,
        "hidden_size": text.number("hidden_size", "n_embd", "d_model"),
        "intermediate_size": _intermediate(text),
        "attention_heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": stored.get("vocab_size") or text.number("vocab_size"),
        "qkv_bias": _bias(shapes),
        "qk_norm": _qk_norm(shapes, head_dim),
        "sliding_window": _sliding(text, layers),
        "experts": experts,
        "active_parameters": active(counted, stored.get("parameters"), experts),
        "latent_attention": latent,
        "state_space": _state_space(text),
        "attention_layers": attending,
        "kv_layers": owning,
        "per_layer_input_dim": text.number("hidden_size_per_layer_input"),
        "altup_inputs": text.number("altup_num_inputs"),
        "laurel_rank": text.number("laurel_rank"),
        "vision": _vision(whole, counted),
        "kv_cache_bytes_per_token_16bit": cache_bytes(
            owning or (len(attending) if attending is not None else layers),
            kv_heads,
            head_dim,
            head_dim,
            latent,
        ),
    }
    return Architecture.of({name: value for name, value in facts.items() if value is not None})


def _head_dim(text: Facts, shapes: Shapes, heads: int | None) -> int | None:
    said = text.number("head_dim", "kv_channels")
    if said or not heads:
        return said
    rows = shapes.rows("q_proj")
    if rows and rows % heads == 0:
        return rows // heads
    kv_heads, fused = text.number("num_key_value_heads"), shapes.rows("qkv_proj")
    if kv_heads and fused and fused % (heads + 2 * kv_heads) == 0:
        return fused // (heads + 2 * kv_heads)
    width = text.number("hidden_size", "n_embd", "d_model")
    return width // heads if width and width % heads == 0 else None


def _kv_heads(text: Facts, shapes: Shapes, heads: int | None, head_dim: int | None) -> int | None:
    said = text.number("num_key_value_heads", "num_kv_heads", "multi_query_group_num")
    if said:
        return said
    rows = shapes.rows("k_proj")
    if rows and head_dim and rows % head_dim == 0:
        return rows // head_dim
    if text.flag("multi_query"):
        return 1
    # gpt2 and its kin have one fused matrix and no word for fewer key heads.
    return heads if shapes.has("c_attn.weight") or shapes.has("query_key_value.weight") else None


def _intermediate(text: Facts) -> int | None:
    widths = text.values.get("intermediate_size")
    if isinstance(widths, list) and widths and all(width == widths[0] for width in widths):
        text = Facts({"intermediate_size": widths[0]})
    return text.number("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim")


def _bias(shapes: Shapes) -> bool | None:
    modules = ("q_proj", "qkv_proj", "c_attn", "query_key_value", "Wqkv")
    if any(shapes.has(f"{module}.bias") for module in modules):
        return True
    found = (shapes.rows(m) is not None or shapes.has(f"{m}.weight") for m in modules)
    return False if any(found) else None


def _qk_norm(shapes: Shapes, head_dim: int | None) -> bool | None:
    widths = [shapes.width(f"{name}.weight") for name in ("q_norm", "q_layernorm")]
    if any(width is not None and width == head_dim for width in widths):
        return True
    return False if shapes.has("q_proj.weight") or shapes.has("qkv_proj.weight") else None


def _sliding(text: Facts, layers: int | None) -> SlidingWindow | None:
    size = text.number("sliding_window", "sliding_window_size")
    used, kind = text.flag("use_sliding_window"), text.text("model_type") or ""
    if size is None or used is False or (kind.startswith("qwen") and not used):
        return None
    kinds = text.words("layer_types")
    period = text.number("sliding_window_pattern", "_sliding_window_pattern")
    period = period or _PERIODS.get(kind)
    sliding, pattern = None, None
    if kinds:
        sliding = sum("sliding" in kind for kind in kinds)
        layers = len(kinds)
    elif layers and period:
        sliding, pattern = (
            layers - layers // period,
            f"every {period}. layer sees the whole context",
        )
    elif layers and kind in _ALL_SLIDE:
        sliding, pattern = layers, "all layers slide"
    elif layers and (first := text.count("max_window_layers")) is not None:
        sliding, pattern = max(layers - first, 0), f"layers from {first} slide"
    if sliding == 0:
        return None
    full = layers - sliding if layers and sliding is not None else None
    made: SlidingWindow | None = checked(
        SlidingWindow, size=size, sliding_layers=sliding, full_layers=full, pattern=pattern
    )
    return made


def _experts(text: Facts) -> Experts | None:
    own = text.number("moe_intermediate_size", "expert_ffn_hidden_size")
    shared_width = text.number("shared_expert_intermediate_size", "shared_intermediate_size")
    dense = text.values.get("mlp_only_layers")
    made: Experts | None = checked(
        Experts,
        experts=text.number(
            "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"
        ),
        experts_per_token=text.number(
            "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"
        ),
        intermediate_size=own or text.number("intermediate_size"),
        shared_experts=text.count(
            "n_shared_experts", "num_shared_experts", "moe_num_shared_experts"
        ),
        shared_intermediate_size=shared_width,
        dense_layers=text.count("first_k_dense_replace")
        or (len(dense) if isinstance(dense, list) and dense == list(range(len(dense))) else None)
        or None,
    )
    return made


def _latent(text: Facts) -> LatentAttention | None:
    made: LatentAttention | None = checked(
        LatentAttention,
        **{
            name: text.number(name)
            for name in (
                "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
            )
        },
    )  # fmt: skip
    return made


def _state_space(text: Facts) -> StateSpace | None:
    heads = text.number("mamba_n_heads", "mamba_num_heads", "n_mamba_heads")
    width = text.number("mamba_d_head", "mamba_head_dim", "mamba_headdim")
    if text.text("model_type") == "mamba2":
        heads, width = text.number("num_heads"), text.number("head_dim")
    made: StateSpace | None = checked(
        StateSpace,
        heads=heads,
        head_dim=width,
        state_size=text.number("mamba_d_state", "ssm_state_size", "state_size"),
        conv_kernel=text.number("mamba_d_conv", "conv_kernel", "conv_kernel_size"),
        groups=text.number("mamba_n_groups", "mamba_ngroups", "n_groups"),
        inner_size=heads * width if heads and width else None,
    )
    return made


def _attention_layers(
    text: Facts, layers: int | None, counted: Iterable[Counted]
) -> tuple[int, ...] | None:
    """Return the layers that attend; None where all do, or nothing tells."""
    kinds = text.words("layer_types", "layers_block_type")
    letters = text.text("hybrid_override_pattern")
    found: Iterable[int]
    if letters and re.fullmatch(r"[M*E-]+", letters):
        found = (at for at, letter in enumerate(letters) if letter == "*")
    elif kinds and len(kinds) == layers:
        attend = ["attention" in kind and "linear" not in kind for kind in kinds]
        found = (at for at, does in enumerate(attend) if does)
    else:
        names = [each.tensor.name for each in counted if not VISION.search(each.tensor.name)]
        present = {int(match[1]) for name in names if (match := _LAYER.search(name))}
        matches = (_ATTENDS.search(name) for name in names)
        found = sorted({int(match[1]) for match in matches if match})
        whole = layers is not None and present >= set(range(layers))
        if not whole or not (found or any(_STATE.search(name) for name in names)):
            return None
    attending = tuple(at for at in found if layers is not None and at < layers)
    return None if len(attending) == layers else attending


def _kv_layers(text: Facts, layers: int | None) -> int | None:
    shared = text.number("num_kv_shared_layers")
    return layers - shared if layers and shared and shared < layers else None


def _vision(whole: Facts, counted: tuple[Counted, ...]) -> Vision | None:
    seen = whole.inner("vision_config")
    inside = [each for each in counted if VISION.search(each.tensor.name)]
    if not seen.values and not inside:
        return None
    sizes = [each.weights for each in inside]
    other = [
        each.weights
        for each in counted
        if not VISION.search(each.tensor.name) and not AUDIO.search(each.tensor.name)
    ]
    deep = seen.values.get("deepstack_visual_indexes")
    made: Vision | None = checked(
        Vision,
        tower=seen.text("model_type"),
        parameters=_total(sizes),
        text_parameters=_total(other) if inside else None,
        depth=seen.number("depth", "num_hidden_layers", "num_layers"),
        hidden_size=seen.number("embed_dim", "hidden_size"),
        intermediate_size=seen.number("intermediate_size"),
        patch=seen.number("patch_size"),
        merge=seen.number("spatial_merge_size"),
        deepstack_layers=len(deep) if isinstance(deep, list) else None,
    )
    return made


def _total(sizes: list[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) or None if len(known) == len(sizes) else None
