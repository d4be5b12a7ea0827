"""Choose the next token from logits in MLX, as a part of its graph: greedy or sampled."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from workbench.messages import Sampling

_KEYS_AT_ONCE = 256


class MlxChoice:
    """Chooses the tokens of one reply; nothing is computed before somebody reads a token.

    The order is transformers' own: repetition penalty, temperature, top-k, top-p, min-p. Each
    token has a random key of its own, so that a seed gives the same reply whatever else draws.

    Args:
        sampling: How to choose.
        prompt: Token ids of the prompt, which the repetition penalty counts in.
        vocabulary: Length of the logits.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocabulary: int) -> None:
        import mlx.core as mx
        import numpy as np

        self._mx = mx
        self._sampling = sampling
        self._greedy = sampling.temperature == 0
        self._ids = mx.arange(vocabulary)
        self._seen: Any = None
        if sampling.repetition_penalty != 1:
            seen = np.zeros(vocabulary, bool)
            seen[list(prompt)] = True
            self._seen = mx.array(seen)
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed % 2**64
        self._key = mx.random.key(seed)
        self._keys: Any = None
        self._drawn = 0

    @property
    def is_plain(self) -> bool:
        """Whether it takes the likeliest token and counts nothing."""
        return self._greedy and self._seen is None

    @property
    def state(self) -> tuple[Any, ...]:
        """Arrays that the next choice needs, to be computed with the token."""
        return () if self._seen is None else (self._seen,)

    def __call__(self, logits: Any) -> Any:
        """Return the id chosen from the logits of one position, shape [vocab], as an array []."""
        mx = self._mx
        if self._seen is not None:
            logits = _penalized(mx, logits, self._seen, self._sampling.repetition_penalty)
        if self._greedy:
            chosen = mx.argmax(logits)
        else:
            chosen = mx.random.categorical(self._cut(logits), key=self._next_key())
        if self._seen is not None:
            self._seen = self._seen | (self._ids == chosen)
        return chosen

    def _cut(self, logits: Any) -> Any:
        mx, sampling = self._mx, self._sampling
        scores = logits.astype(mx.float32) / sampling.temperature
        if 0 < sampling.top_k < scores.shape[-1]:
            least = mx.min(mx.topk(scores, sampling.top_k))
            scores = mx.where(scores < least, -mx.inf, scores)
        if sampling.top_p < 1:
            scores = _nucleus(mx, scores, self._ids, sampling.top_p)
        if sampling.min_p:
            shares = mx.softmax(scores)
            scores = mx.where(shares < sampling.min_p * mx.max(shares), -mx.inf, scores)
        return scores

    def _next_key(self) -> Any:
        """Return the next key; they are made in rows, and at once, to cost little."""
        at = self._drawn % _KEYS_AT_ONCE
        if at == 0:
            made = self._mx.random.split(self._key, _KEYS_AT_ONCE + 1)
            self._keys, self._key = made[1:], made[0]
            self._mx.eval(self._keys, self._key)
        self._drawn += 1
        return self._keys[at]


def _penalized(mx: Any, logits: Any, seen: Any, penalty: float) -> Any:
    """Divide positive logits of seen tokens by the penalty, multiply negative ones by it."""
    scores = logits.astype(mx.float32)
    changed = mx.where(scores < 0, scores * penalty, scores / penalty)
    return mx.where(seen, changed, scores)


def _nucleus(mx: Any, scores: Any, ids: Any, mass: float) -> Any:
    """Keep the likeliest tokens that together reach the mass, at least one."""
    order = mx.argsort(scores)
    reached = mx.cumsum(mx.softmax(scores[order]))
    cut = (reached <= 1 - mass) & (ids < ids.shape[0] - 1)
    return mx.where(mx.put_along_axis(cut, order, cut, axis=0), -mx.inf, scores)
