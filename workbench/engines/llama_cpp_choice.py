"""Choose the next token from llama.cpp's logits: the largest, or by its sampler chain."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from workbench.errors import EngineError
from workbench.messages import Sampling

_SEED_BITS = 0xFFFFFFFF


class Choice:
    """Chooses the tokens of one reply from the last decoded position.

    The order is that of transformers, so that the engines mean the same by the same settings:
    repetition penalty, temperature, top-k, top-p, min-p.

    Args:
        module: The ``llama_cpp`` module.
        context: The native context.
        vocabulary: Number of token ids.
        sampling: How to choose.
        prompt: Token ids of the prompt, which the repetition penalty counts in.
    """

    def __init__(
        self, module: Any, context: Any, vocabulary: int, sampling: Sampling, prompt: Sequence[int]
    ) -> None:
        self._c, self._context, self._vocabulary = module, context, vocabulary
        self._chain: Any = None
        self._address = 0
        self._logits: Any = None
        self._first = True
        if sampling.temperature > 0 or sampling.repetition_penalty != 1:
            self._chain = _chain(module, vocabulary, sampling, module.llama_n_ctx(context))
            for token in prompt:
                module.llama_sampler_accept(self._chain, token)

    def __call__(self) -> int:
        """Return the chosen id.

        Raises:
            EngineError: The logits are not finite numbers.
        """
        if self._chain is None:
            logits = self._last_logits()
            chosen = int(logits.argmax())
            if self._first:
                self._check_finite(logits[chosen])
            return chosen
        if self._first:
            logits = self._last_logits()
            self._check_finite(logits[int(logits.argmax())])
        return int(self._c.llama_sampler_sample(self._chain, self._context, -1))

    def _last_logits(self) -> Any:
        import ctypes

        import numpy as np

        pointer = self._c.llama_get_logits_ith(self._context, -1)
        address = ctypes.cast(pointer, ctypes.c_void_p).value or 0
        if address != self._address or self._logits is None:
            self._address = address
            self._logits = np.ctypeslib.as_array(pointer, (self._vocabulary,))
        return self._logits

    def _check_finite(self, value: Any) -> None:
        import math

        self._first = False
        if not math.isfinite(value):
            raise EngineError("The model's output is not a number (NaN or infinite).")

    def close(self) -> None:
        """Free the chain; safe to call twice."""
        chain, self._chain, self._logits = self._chain, None, None
        if chain is not None:
            self._c.llama_sampler_free(chain)


def _chain(module: Any, vocabulary: int, sampling: Sampling, context: int) -> Any:
    chain = module.llama_sampler_chain_init(module.llama_sampler_chain_default_params())

    def add(sampler: Any) -> None:
        module.llama_sampler_chain_add(chain, sampler)

    if sampling.repetition_penalty != 1:
        add(
            module.llama_sampler_init_penalties(
                vocabulary, context, sampling.repetition_penalty, 0.0, 0.0
            )
        )
    if sampling.temperature == 0:
        add(module.llama_sampler_init_greedy())
        return chain
    if sampling.temperature != 1:
        add(module.llama_sampler_init_temp(sampling.temperature))
    if sampling.top_k:
        add(module.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1:
        add(module.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p:
        add(module.llama_sampler_init_min_p(sampling.min_p, 1))
    seed = secrets.randbits(31) if sampling.seed is None else sampling.seed & _SEED_BITS
    add(module.llama_sampler_init_dist(seed))
    return chain
