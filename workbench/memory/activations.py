"""Activations of transformers while it reads a prompt: what is alive at once, for one token.

The terms were read in ``modeling_*.py`` of transformers 5.19 and are checked against the bytes of
live tensors on the meta device. ``h`` is the width of the residual stream, ``f`` that of the
feed-forward part.
"""

from __future__ import annotations

import dataclasses

from workbench.catalog.architecture import Architecture
from workbench.memory.estimate import Part, Place
from workbench.memory.layers import heads, layers

_FUSED_GATE = ("phi3",)
_PLAIN = ("gpt2", "phi", "moondream1", "bert")
_PARALLEL = ("stablelm", "stablelm_epoch")
_TURNED = {"stablelm": 0.25, "stablelm_epoch": 0.25}  # share of a head that is rotated
_GATE_STEPS = {"gpt_oss": 9}  # clamped gate and up, sigmoid, products: not one fused operation
_CHUNK = 256
_LAYERS_IN_FLIGHT = 2.5
_SORT = 48  # int64 of expert, order and inverse order, for each expert of a token
_SCORES = {"bf16": 10, "fp16": 6, "fp32": 8}
"""Bytes of one attention score at softmax: bf16 scores, an fp32 copy, the fp32 result."""


@dataclasses.dataclass(frozen=True, slots=True)
class Live:
    """Bytes alive for one token and what they are.

    Attributes:
        bytes: Bytes for each token.
        rule: The terms, in words.
        certain: Whether checked against live tensors.
    """

    bytes: float
    rule: str
    certain: bool = True


def per_token(facts: Architecture, *, width: int) -> Live:
    """Return what is alive for one token in the layer that needs most, without attention scores.

    Args:
        facts: The architecture.
        width: Bytes of a value.
    """
    hidden = facts.hidden_size or 0
    kind = facts.model_type or ""
    sets = 2 if kind.startswith("gemma3") else 1  # rotary tables of sliding and full layers
    rope = int(2 * width * heads(facts).head * sets * _TURNED.get(kind, 1))
    least = rope + 8
    found = [_feed_forward(facts, hidden, width, least)]
    if facts.experts:
        found.append(_experts(facts, hidden, width, least))
    if facts.latent_attention:
        latent = facts.latent_attention
        values = heads(facts).heads * (
            3 * (latent.qk_nope_head_dim + latent.qk_rope_head_dim) + 2 * latent.v_head_dim
        )
        rule = f"{width} B x ({values} of unpacked keys, queries and values + 4 x {hidden})"
        found.append(Live(width * (values + 4 * hidden) + least, rule))
    if "state" in layers(facts) and facts.state_space:
        scan = 7 * 4 * _CHUNK * facts.state_space.heads
        rule = f"7 x 4 B x {_CHUNK} x {facts.state_space.heads} of PyTorch's chunked scan"
        found.append(Live(scan + least, rule, certain=False))
    return max(found, key=lambda live: live.bytes)


def _feed_forward(facts: Architecture, hidden: int, width: int, least: int) -> Live:
    inner = facts.intermediate_size or 4 * hidden
    kind = facts.model_type or ""
    wide, narrow = 3, 4
    if kind in _FUSED_GATE:
        wide = 4
    elif kind in _PLAIN:
        wide = 6
    elif kind in _PARALLEL:
        narrow = 6
    if facts.experts and not facts.experts.dense_layers:
        wide, inner = 3, facts.experts.shared_intermediate_size or 0
    rule = f"{width} B x ({wide} x {inner} feed-forward + {narrow} x {hidden} residual) + rotary"
    return Live(width * (wide * inner + narrow * hidden) + least, rule)


def _experts(facts: Architecture, hidden: int, width: int, least: int) -> Live:
    experts = facts.experts
    assert experts is not None
    used, inner = experts.experts_per_token, experts.intermediate_size
    gate = _GATE_STEPS.get(facts.model_type or "", 4)
    row = max(4 * hidden, hidden + gate * inner)
    rule = f"{used} experts x {width} B x {row} + {width} B x 4 x {hidden} residual"
    size = used * (width * row + _SORT) + 4 * width * hidden + least
    return Live(size, rule, certain=facts.model_type != "gpt_oss")


def prefill_part(
    facts: Architecture,
    *,
    tokens: int,
    sequences: int,
    dtype: str,
    attention: str,
    place: Place,
    shards: int = 1,
) -> Part:
    """Return the activations at the peak of reading a prompt.

    Args:
        facts: The architecture.
        tokens: Tokens of the prompt.
        sequences: Prompts at a time.
        dtype: Compute dtype.
        attention: ``eager`` holds every score; ``sdpa`` and ``flash`` none.
        place: Where it is.
        shards: Devices that share the feed-forward part.
    """
    width = 4 if dtype == "fp32" else 2
    live = per_token(facts, width=width)
    size, rule = tokens * sequences * live.bytes / shards, f"{tokens} tokens x {live.rule}"
    if attention == "eager":
        found = heads(facts)
        score = _SCORES[dtype]
        each = found.heads * tokens * score + width * tokens + width * (3 * found.query)
        eager = tokens * sequences * (each + width * 3 * (facts.hidden_size or 0) + 4 * found.head)
        if eager > size:
            size = eager
            rule = f"{tokens} tokens x {found.heads} heads x {tokens} scores x {score} B, one layer"
    many = f", {sequences} sequences" if sequences > 1 else ""
    return Part(
        name="activations", bytes=round(size), rule=rule + many, place=place, group="activations"
    )


def in_flight_part(facts: Architecture, *, tokens: int, dtype: str, place: Place) -> Part:
    """Return MLX's activations: the outputs of all operations that are under way.

    MLX keeps what at most ten tasks need (``MAX_ACTIVE_TASKS``), about 2.5 layers: so much is in
    the published peaks of Qwen3-4B and of Qwen3-30B-A3B at a prompt of 2048 tokens.

    Args:
        facts: The architecture.
        tokens: Tokens of one step of the prompt.
        dtype: Compute dtype.
        place: Where they are.
    """
    width = 4 if dtype == "fp32" else 2
    hidden, found = facts.hidden_size or 0, heads(facts)
    inner = 3 * (facts.intermediate_size or 4 * hidden)
    if facts.experts:
        experts = facts.experts
        inner = experts.experts_per_token * (3 * experts.intermediate_size + 2 * hidden)
        inner += 3 * (experts.shared_intermediate_size or 0)
    values = inner + 6 * hidden + 3 * found.query + 4 * found.key
    rule = f"{tokens} tokens x {_LAYERS_IN_FLIGHT} layers x {width} B x {values} outputs"
    size = round(tokens * _LAYERS_IN_FLIGHT * width * values)
    return Part(name="activations", bytes=size, rule=rule, place=place, group="activations")


def logits_part(
    facts: Architecture, *, rows: int, dtype: str, place: Place, every: bool = False
) -> Part:
    """Return the logits: of the last token, or of every one with the copy in fp32.

    Args:
        facts: The architecture.
        rows: Tokens whose logits are kept.
        dtype: Compute dtype.
        place: Where they are.
        every: Whether all tokens' logits are kept, and cast to fp32 for a score.
    """
    width = 4 if dtype == "fp32" else 2
    each = width + (4 if every or dtype != "fp32" else 0)
    words = f"{rows} tokens x {facts.vocab_size or 0} x {each} B (as computed, and in fp32)"
    return Part(
        name="logits",
        bytes=rows * (facts.vocab_size or 0) * each,
        rule=words,
        place=place,
        group="logits",
    )
