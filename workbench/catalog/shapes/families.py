"""Every family's tensors by ``model_type``, and a guess by sizes for the others."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NoReturn

from workbench.catalog.architecture import Architecture
from workbench.catalog.shapes.decoder import (
    Traits,
    attention,
    decoder,
    ends,
    heads_of,
    vocabulary_of,
)
from workbench.catalog.shapes.encoder import bert
from workbench.catalog.shapes.gemma import gemma3n
from workbench.catalog.shapes.shape import Builder, Shape, ShapeList, needed
from workbench.catalog.shapes.vision import tower
from workbench.errors import UnsupportedError, did_you_mean

_WIDTH_STEP = 256
_LLAMA = Traits()
_GEMMA3 = Traits(post_norms=True, qk_norm=True)
_QWEN3 = Traits(qk_norm=True)
_DEEPSEEK_V3 = Traits(router_correction=True)
_TRAITS: dict[str, Traits] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mistral3": _LLAMA,
    "ministral": _LLAMA,
    "ministral3": _LLAMA,
    "mixtral": Traits(),
    "smollm3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": Traits(post_norms=True),
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "qwen2": Traits(qkv_bias=True),
    "qwen2_moe": Traits(qkv_bias=True, shared_gate=True),
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "seed_oss": Traits(qkv_bias=True),
    "phi3": Traits(qkv="fused", feed_forward="fused"),
    "phimoe": Traits(norm_bias=True, qkv_bias=True, output_bias=True, head_bias=True),
    "phi": Traits(
        norm_bias=True,
        qkv_bias=True,
        output_bias=True,
        one_norm=True,
        feed_forward="plain",
        feed_forward_bias=True,
        head_bias=True,
    ),
    "gpt_oss": Traits(
        qkv_bias=True, output_bias=True, router_bias=True, expert_bias=True, sinks=True
    ),
    "granite": _LLAMA,
    "granitemoe": _LLAMA,
    "granitemoehybrid": _LLAMA,
    "deepseek_v2": _LLAMA,
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "idefics3": _LLAMA,
    "stablelm": Traits(norm_bias=True),
    "gpt2": Traits(
        norm_bias=True,
        qkv="fused",
        qkv_bias=True,
        output_bias=True,
        feed_forward="plain",
        feed_forward_bias=True,
        positions=1024,
    ),
}
_TRAITS["stablelm_epoch"] = _TRAITS["stablelm"]
_TRAITS["moondream1"] = _TRAITS["phi"]
# The names that llama.cpp has for them in GGUF files.
_TRAITS |= {
    "deepseek2": _DEEPSEEK_V3,
    "gpt-oss": _TRAITS["gpt_oss"],
    "granitehybrid": _LLAMA,
    "phi2": _TRAITS["phi"],
    "qwen2moe": _TRAITS["qwen2_moe"],
    "qwen3moe": _QWEN3,
    "qwen3vl": _QWEN3,
    "qwen3vlmoe": _QWEN3,
}
_OTHERS: dict[str, Callable[[Architecture], Builder]] = {"gemma3n": gemma3n, "bert": bert}
FAMILIES = tuple(sorted({*_TRAITS, *_OTHERS}))
"""Every ``model_type`` whose tensors are known."""


@functools.lru_cache(maxsize=512)
def shapes(architecture: Architecture) -> ShapeList:
    """Return all tensors of a model by the rules of its family.

    Raises:
        UnsupportedError: The family is not known, or a size that it needs is not.
    """
    kind = architecture.model_type
    if kind in _OTHERS:
        text = _OTHERS[kind](architecture)
    elif kind in _TRAITS:
        text = decoder(architecture, _TRAITS[kind])
    else:
        _unknown(kind)
    return _whole(architecture, text)


def known_or_guessed(architecture: Architecture) -> ShapeList:
    """Return the tensors by family, else by ``shapes_by_facts``, which says that it guesses.

    Raises:
        UnsupportedError: Not even the sizes that a guess needs are known.
    """
    if architecture.model_type in FAMILIES:
        return shapes(architecture)
    return shapes_by_facts(architecture)


@functools.lru_cache(maxsize=512)
def shapes_by_facts(architecture: Architecture) -> ShapeList:
    """Guess the tensors of an unknown family: Llama's, with layers scaled to the parameters.

    Raises:
        UnsupportedError: Layers, width, or both parameters and feed-forward width are not known.
    """
    facts, kind = architecture, architecture.model_type
    hidden = needed(facts.hidden_size, "hidden_size", kind)
    layers = needed(facts.layers, "layers", kind)
    if facts.parameters is None or facts.vocab_size is None:
        width = needed(facts.intermediate_size, "intermediate_size", kind)
        built = decoder(facts.changed(intermediate_size=width), _LLAMA)
        return _guess(facts, built)
    built = Builder()
    ends(built, facts, hidden, norm_bias=False, head_bias=False)
    for layer in range(layers):
        built.norm("attn_norm", layer, hidden)
        built.norm("ffn_norm", layer, hidden)
        if facts.attention_heads:
            heads_of(facts)
            attention(built, facts, _LLAMA, layer, hidden)
    if facts.vision and facts.vision.parameters:
        encoder = Shape("v.encoder", None, (facts.vision.parameters,), "other", "vision")
        built.tensors.append(encoder)
    _fill(built, facts, facts.parameters - sum(shape.count for shape in built.tensors))
    return _guess(facts, built)


def _fill(built: Builder, facts: Architecture, left: int) -> None:
    """Add feed-forward parts of equal width, a multiple of every block, and one matrix of the rest.

    Raises:
        UnsupportedError: Nothing is left for them.
    """
    hidden, layers = facts.hidden_size or 1, facts.layers or 1
    if left < hidden * layers:
        raise UnsupportedError(
            f"The sizes of this {facts.model_type} model hold more than its "
            f"{facts.parameters:,} parameters.",
            hint="Correct the card's architecture, or use the model's files.",
        )
    width = left // (3 * hidden * layers) // _WIDTH_STEP * _WIDTH_STEP
    for layer in range(layers if width else 0):
        built.linear("ffn_gate", layer, width, hidden)
        built.linear("ffn_up", layer, width, hidden)
        built.linear("ffn_down", layer, hidden, width)
    rest = left - 3 * hidden * layers * width
    if rest >= hidden:
        built.linear("remainder", None, rest // hidden, hidden)
    if rest % hidden:
        built.add("remainder_row", None, "other", rest % hidden)


def _guess(facts: Architecture, built: Builder) -> ShapeList:
    return ShapeList(
        tensors=tuple(built.tensors),
        model_type=facts.model_type,
        exact=False,
        source="facts",
        notes=(
            f"The tensors of a {facts.model_type} model are not known here; they are guessed "
            "as Llama's, scaled to the stated parameters.",
        ),
    )


def _unknown(kind: str | None) -> NoReturn:
    raise UnsupportedError(
        f"The tensors of models of type {kind!r} are not known here.",
        hint=did_you_mean(str(kind), FAMILIES),
    )


def _whole(facts: Architecture, text: Builder) -> ShapeList:
    """Add the image encoder and check the sum against the stated parameters."""
    tensors, notes = list(text.tensors), []
    counted = sum(shape.count for shape in tensors if shape.role != "exp_probs_b")
    left = None if facts.parameters is None else facts.parameters - counted
    encoder = tower(facts, facts.hidden_size or 0)
    if encoder is not None:
        size = sum(shape.count for shape in encoder.tensors)
        stated = facts.vision.parameters if facts.vision else None
        if size == stated or (stated is None and left in (None, size)):
            tensors += encoder.tensors
            left = None if left is None else left - size
        elif stated or (left and left > 0):
            part = stated or left or 0
            tensors.append(Shape("v.encoder", None, (part,), "other", "vision"))
            notes.append(f"The image encoder is one sum of {part:,} parameters.")
            left = None if left is None else left - part
    if left:
        notes.append(
            f"The tensors hold {-left:+,} parameters against the {facts.parameters:,} stated."
        )
    if left and facts.kv_layers and -left == _shared_key_norms(facts):
        left = 0
        notes.append("They are the key norms of layers that share keys: stored, but not stated.")
    return ShapeList(
        tensors=tuple(tensors),
        model_type=facts.model_type,
        exact=not left,
        notes=tuple(notes),
    )


def _shared_key_norms(facts: Architecture) -> int:
    """Return the parameters of the key norms in layers without keys of their own (Gemma 3n)."""
    return ((facts.layers or 0) - (facts.kv_layers or 0)) * (facts.head_dim or 0)


def vocabulary(architecture: Architecture) -> int:
    """Return the rows of the embedding.

    Raises:
        UnsupportedError: They are not known.
    """
    return vocabulary_of(architecture)
