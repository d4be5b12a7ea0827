"""Keep the prompt cache of the last turn, so that MLX computes only what is new in the next one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench.engines.local import shared_beginning

LEAST_SHARED = 16
"""Tokens that must be shared: below it a reuse saves nothing and changes the rounding."""


class KeptPrompt:
    """At most one prompt cache of mlx-lm, with the ids that it holds.

    What is taken is no longer kept: work that fails or is interrupted leaves nothing behind that
    could be half written. A cache is cut where all its layers say that they can be: full attention
    anywhere, a sliding window until it is full. Full windows are only continued, where the new
    prompt begins with all that they hold; recurrent states, which tell no length, are made anew.

    Args:
        enabled: False keeps nothing.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._ids: list[int] = []
        self._cache: list[Any] | None = None

    @property
    def tokens(self) -> int:
        """How many tokens are kept."""
        return len(self._ids)

    def keep(self, ids: Sequence[int], cache: list[Any]) -> None:
        """Keep the cache of these ids instead of the last one, if it holds exactly them."""
        self.drop()
        offsets = {layer.offset for layer in cache if isinstance(getattr(layer, "offset", 0), int)}
        if self._enabled and offsets <= {len(ids)}:
            self._ids, self._cache = list(ids), cache

    def take(self, ids: Sequence[int]) -> tuple[list[Any] | None, int]:
        """Return the cache for the longest useful beginning of ``ids`` and its length.

        The last id is always left to compute: its logits are wanted. Without a use it is
        ``(None, 0)``; in any case nothing is kept afterwards.
        """
        kept, cache = self._ids, self._cache
        self.drop()
        if cache is None:
            return None, 0
        shared = min(shared_beginning(kept, ids), len(ids) - 1)
        if shared < LEAST_SHARED or not _cut(cache, len(kept) - shared):
            return None, 0
        return cache, shared

    def drop(self) -> None:
        """Keep nothing."""
        self._ids, self._cache = [], None

    def close(self) -> None:
        """Keep nothing from now on, whoever still brings a cache."""
        self._enabled = False
        self.drop()


def _cut(cache: list[Any], removed: int) -> bool:
    """Cut the last tokens off; False where a layer cannot, and the cache is of no use."""
    from mlx_lm.models.cache import can_trim_prompt_cache

    if removed == 0:
        return True
    return can_trim_prompt_cache(cache) and all(layer.trim(removed) == removed for layer in cache)
