"""What each decoder layer keeps for a token: everything, a window, a state, or nothing."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

from workbench.catalog.architecture import Architecture
from workbench.errors import UnsupportedError

Keeps = Literal["full", "sliding", "state", "shared", "nothing"]

# Every n-th layer sees the whole context (config.json, layer_types); the last of each group does.
_PERIODS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gemma3n": 5, "gpt_oss": 2}
_ENCODERS = ("bert", "roberta", "xlm-roberta", "modernbert", "nomic_bert")


@dataclasses.dataclass(frozen=True, slots=True)
class Heads:
    """Widths of attention.

    Attributes:
        query: Query heads times head width.
        key: Key heads times head width; for values the same.
        head: Width of one head.
        heads: Query heads.
    """

    query: int
    key: int
    head: int
    heads: int


def heads(facts: Architecture) -> Heads:
    """Return the widths of attention.

    Raises:
        UnsupportedError: The card does not say how many heads there are.
    """
    if facts.attention_heads is None or facts.hidden_size is None:
        raise UnsupportedError(
            "The KV cache needs attention_heads and hidden_size, which are not known.",
            hint="Add them to the card's architecture, or estimate from the model's files.",
        )
    width = facts.head_dim or facts.hidden_size // facts.attention_heads
    keys = facts.kv_heads or facts.attention_heads
    return Heads(facts.attention_heads * width, keys * width, width, facts.attention_heads)


def is_encoder(facts: Architecture) -> bool:
    """Return whether the model reads all tokens at once and keeps none."""
    return facts.model_type in _ENCODERS or facts.kv_cache_bytes_per_token_16bit == 0


@functools.lru_cache(maxsize=512)
def layers(facts: Architecture) -> tuple[Keeps, ...]:
    """Return what each layer keeps, in order.

    Raises:
        UnsupportedError: The number of layers is not known.
    """
    if facts.layers is None:
        raise UnsupportedError(
            "The KV cache needs the number of layers, which is not known.",
            hint="Add architecture.layers to the card, or estimate from the model's files.",
        )
    if is_encoder(facts):
        return tuple("nothing" for _ in range(facts.layers))
    attends = facts.attention_layers if facts.state_space else None
    owners = facts.kv_layers or facts.layers
    kept: list[Keeps] = []
    for index in range(facts.layers):
        if attends is not None and index not in attends:
            kept.append("state")
        elif index >= owners:
            kept.append("shared")
        else:
            kept.append("sliding" if _slides(facts, index) else "full")
    return tuple(kept)


def _slides(facts: Architecture, index: int) -> bool:
    window = facts.sliding_window
    if window is None:
        return False
    period = _PERIODS.get(facts.model_type or "")
    if period is None and window.full_layers:
        period = (facts.layers or 1) // window.full_layers
    return (index + 1) % period != 0 if period else window.full_layers in (None, 0)
