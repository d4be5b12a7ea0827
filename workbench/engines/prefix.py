"""Keep the KV cache of the last turn, so that the next one computes only what is new in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench.engines.local import shared_beginning

LEAST_SHARED = 16
"""Tokens that must be shared: below it a reuse saves nothing and changes the rounding."""


class KeptPrefix:
    """At most one KV cache of transformers, with the ids whose keys and values it holds.

    What is taken is no longer kept: a forward pass that fails or is interrupted leaves nothing
    behind that could be half written. A cache is given back only where it equals recomputing:

    - layers of full attention are cut anywhere;
    - layers with a sliding window forget what lies before it, so past their window they are only
      continued, never cut;
    - recurrent states (Mamba, linear attention) cannot be cut, and layers of unknown kinds are not
      trusted: those models compute every prompt anew;
    - rotary embeddings that change with the length (longrope, dynamic NTK) are reused only while
      the whole conversation stays in the length that the model was trained on.

    Args:
        config: The model's config.
        enabled: False keeps nothing.
    """

    def __init__(self, config: Any = None, *, enabled: bool = True) -> None:
        self._enabled = enabled and not _is_chunked(config)
        self._border = _rotary_border(config)
        self._ids: list[int] = []
        self._cache: Any = None

    @property
    def tokens(self) -> int:
        """How many tokens are kept."""
        return len(self._ids)

    def keep(self, ids: Sequence[int], cache: Any) -> None:
        """Keep the cache of these ids instead of the last one, if it holds exactly them."""
        self.drop()
        if self._enabled and cache is not None and _is_reusable(cache, len(ids)):
            self._ids, self._cache = list(ids), cache

    def take(self, ids: Sequence[int]) -> tuple[Any, int]:
        """Return the cache for the longest useful beginning of ``ids`` and its length.

        The last id is always left to compute: its logits are wanted. Without a use it is
        ``(None, 0)``; in any case nothing is kept afterwards.
        """
        kept, cache = self._ids, self._cache
        self.drop()
        if cache is None:
            return None, 0
        shared = min(shared_beginning(kept, ids), len(ids) - 1)
        if shared < LEAST_SHARED or not self._in_border(max(len(kept), len(ids))):
            return None, 0
        if shared < len(kept) and not _crop(cache, len(kept) - shared):
            return None, 0
        return cache, shared

    def drop(self) -> None:
        """Keep nothing."""
        self._ids, self._cache = [], None

    def close(self) -> None:
        """Keep nothing from now on, whoever still brings a cache."""
        self._enabled = False
        self.drop()

    def _in_border(self, length: int) -> bool:
        return self._border is None or length <= self._border


def _layers(cache: Any) -> list[Any] | None:
    """Return the layers that hold something, or None where one is of a kind not known to be exact.

    Exact types are compared: a subclass may hold more than keys and values.
    """
    from transformers import cache_utils as library

    known = (library.DynamicLayer, library.DynamicSlidingWindowLayer, library.DynamicIndexedLayer)
    if type(cache) is not library.DynamicCache:
        return None
    layers = list(cache.layers)
    return layers if all(type(layer) in known for layer in layers) else None


def _is_reusable(cache: Any, length: int) -> bool:
    """Whether every layer holds as many tokens as it should; models that share layers skip some."""
    layers = _layers(cache)
    if not layers:
        return False
    lengths = {layer.get_seq_length() for layer in layers}
    return lengths <= {0, length} and length in lengths


def _crop(cache: Any, removed: int) -> bool:
    """Cut the last tokens off; False where a window has moved past what would be needed again."""
    from transformers.cache_utils import DynamicSlidingWindowLayer

    layers = [layer for layer in _layers(cache) or () if layer.get_seq_length()]
    for layer in layers:
        if (
            isinstance(layer, DynamicSlidingWindowLayer)
            and layer.get_seq_length() >= layer.sliding_window
        ):
            return False
    for layer in layers:
        layer.crop(-removed)
    return True


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _is_chunked(config: Any) -> bool:
    """Whether attention runs in chunks (Llama 4), whose borders a reuse would have to match."""
    return getattr(_text_config(config), "attention_chunk_size", None) is not None


def _rotary_border(config: Any) -> int | None:
    """Return the length up to which rotary embeddings stay the same, None where they always do."""
    plain = _text_config(config)
    rope = getattr(plain, "rope_parameters", None)
    if not isinstance(rope, dict):
        return None
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    borders = [
        int(
            part.get("original_max_position_embeddings")
            or getattr(plain, "original_max_position_embeddings", None)
            or getattr(plain, "max_position_embeddings", None)
            or 0
        )
        for part in parts
        if part.get("rope_type") in ("longrope", "dynamic")
    ]
    return min(borders, default=None)
