"""The tensors of image encoders and their projectors."""

from __future__ import annotations

from workbench.catalog.architecture import Architecture, Vision
from workbench.catalog.shapes.shape import Builder

COLOURS = 3
# Towers of one make that cards name without their sizes.
_SIGLIP_SO400M = Vision(depth=27, hidden_size=1152, intermediate_size=4304, patch=14)
_SIGLIP_BASE = Vision(depth=12, hidden_size=768, intermediate_size=3072, patch=16, merge=4)
_PIXTRAL = Vision(depth=24, hidden_size=1024, intermediate_size=4096, patch=14, merge=2)
_QWEN3_VL = Vision(
    depth=27, hidden_size=1152, intermediate_size=4304, patch=16, merge=2, deepstack_layers=3
)
_SIGLIP_PIXELS, _SIGLIP_BASE_PIXELS = 896, 512
_QWEN3_POSITIONS, _QWEN3_FRAMES = 2304, 2


def tower(facts: Architecture, hidden: int) -> Builder | None:
    """Return the encoder of a family whose tower is known, or None.

    Args:
        facts: The model's facts; sizes the card gives go before those of the make.
        hidden: Width of the language part.
    """
    given = facts.vision or Vision()
    if facts.model_type == "gemma3":
        return _gemma3(_sizes(_SIGLIP_SO400M, given), hidden)
    if facts.model_type == "idefics3":
        return _idefics3(_sizes(_SIGLIP_BASE, given), hidden)
    if facts.model_type == "mistral3":
        return _mistral3(_sizes(_PIXTRAL, given), hidden)
    if facts.model_type in ("qwen3_vl", "qwen3_vl_moe"):
        return _qwen3_vl(_sizes(_QWEN3_VL, given), hidden)
    return None


def _sizes(make: Vision, given: Vision) -> dict[str, int]:
    names = ("depth", "hidden_size", "intermediate_size", "patch", "merge", "deepstack_layers")
    return {name: int(getattr(given, name) or getattr(make, name) or 0) for name in names}


def _siglip(built: Builder, sizes: dict[str, int], pixels: int) -> None:
    """Add a SigLIP encoder (arXiv 2303.15343)."""
    wide, inner, patch = sizes["hidden_size"], sizes["intermediate_size"], sizes["patch"]
    built.add("v.patch_embd", None, "conv", wide, COLOURS, patch, patch)
    built.add("v.patch_embd", None, "bias", wide)
    built.add("v.position_embd", None, "embedding", (pixels // patch) ** 2, wide)
    for layer in range(sizes["depth"]):
        built.norm("v.ln1", layer, wide, bias=True)
        for role in ("v.attn_q", "v.attn_k", "v.attn_v", "v.attn_out"):
            built.linear(role, layer, wide, wide, bias=True)
        built.norm("v.ln2", layer, wide, bias=True)
        built.linear("v.ffn_up", layer, inner, wide, bias=True)
        built.linear("v.ffn_down", layer, wide, inner, bias=True)
    built.norm("v.post_ln", None, wide, bias=True)


def _gemma3(sizes: dict[str, int], hidden: int) -> Builder:
    built = Builder("vision")
    _siglip(built, sizes, _SIGLIP_PIXELS)
    # A bare parameter, not a linear layer: no quantization touches it.
    built.add("mm.input_projection", None, "other", sizes["hidden_size"], hidden)
    built.norm("mm.soft_emb_norm", None, sizes["hidden_size"])
    return built


def _idefics3(sizes: dict[str, int], hidden: int) -> Builder:
    built = Builder("vision")
    _siglip(built, sizes, _SIGLIP_BASE_PIXELS)
    built.linear("mm.fc", None, hidden, sizes["hidden_size"] * sizes["merge"] ** 2)
    return built


def _mistral3(sizes: dict[str, int], hidden: int) -> Builder:
    built = Builder("vision")
    wide, inner, patch = sizes["hidden_size"], sizes["intermediate_size"], sizes["patch"]
    built.add("v.patch_embd", None, "conv", wide, COLOURS, patch, patch)
    built.norm("v.pre_ln", None, wide)
    for layer in range(sizes["depth"]):
        built.norm("v.ln1", layer, wide)
        for role in ("v.attn_q", "v.attn_k", "v.attn_v", "v.attn_out"):
            built.linear(role, layer, wide, wide)
        built.norm("v.ln2", layer, wide)
        built.linear("v.ffn_gate", layer, inner, wide)
        built.linear("v.ffn_up", layer, inner, wide)
        built.linear("v.ffn_down", layer, wide, inner)
    built.norm("mm.input_norm", None, wide)
    built.linear("mm.patch_merger", None, wide, wide * sizes["merge"] ** 2)
    built.linear("mm.1", None, hidden, wide)
    built.linear("mm.2", None, hidden, hidden)
    return built


def _qwen3_vl(sizes: dict[str, int], hidden: int) -> Builder:
    built = Builder("vision")
    wide, inner, patch = sizes["hidden_size"], sizes["intermediate_size"], sizes["patch"]
    built.add("v.patch_embd", None, "conv", wide, COLOURS, _QWEN3_FRAMES, patch, patch)
    built.add("v.patch_embd", None, "bias", wide)
    built.add("v.position_embd", None, "embedding", _QWEN3_POSITIONS, wide)
    for layer in range(sizes["depth"]):
        built.norm("v.ln1", layer, wide, bias=True)
        built.linear("v.attn_qkv", layer, 3 * wide, wide, bias=True)
        built.linear("v.attn_out", layer, wide, wide, bias=True)
        built.norm("v.ln2", layer, wide, bias=True)
        built.linear("v.ffn_up", layer, inner, wide, bias=True)
        built.linear("v.ffn_down", layer, wide, inner, bias=True)
    merged = wide * sizes["merge"] ** 2
    mergers = ["mm", *(f"v.deepstack.{index}" for index in range(sizes["deepstack_layers"]))]
    for role in mergers:
        built.norm(f"{role}.norm", None, wide if role == "mm" else merged, bias=True)
        built.linear(f"{role}.fc1", None, merged, merged, bias=True)
        built.linear(f"{role}.fc2", None, hidden, merged, bias=True)
    return built
