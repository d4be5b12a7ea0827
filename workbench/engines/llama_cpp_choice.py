"""Choose the next token from llama.cpp's logits: the largest, by its samplers, by a grammar."""

from __future__ import annotations

import codecs
import ctypes
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from workbench.errors import EngineError, InputError
from workbench.messages import Likelihood, Sampling

_RANDOM_SEED = 0xFFFFFFFF  # llama.cpp draws a fresh one for it
_NEVER = -math.inf


class Choice:
    """Chooses the tokens of one reply from the last decoded position.

    The order is that of transformers, so that the engines mean the same by the same settings:
    repetition penalty, temperature, top-k, top-p, min-p. A grammar is asked first: what it forbids
    has no probability left to divide.

    Args:
        module: The ``llama_cpp`` module.
        context: The native context.
        vocabulary: Number of token ids.
        sampling: How to choose.
        prompt: Token ids of the prompt, which the repetition penalty counts in.
        grammar: What the reply must follow, or None; it is closed with the choice.
    """

    def __init__(
        self,
        module: Any,
        context: Any,
        vocabulary: int,
        sampling: Sampling,
        prompt: Sequence[int],
        grammar: Grammar | None = None,
    ) -> None:
        self._c, self._context, self._vocabulary = module, context, vocabulary
        self._chain: Any = None
        self._grammar = grammar
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
            EngineError: The logits are not finite numbers, or the grammar allows no token.
        """
        if self._first:
            logits = self._last_logits()
            self._check_finite(logits[int(logits.argmax())])
        if self._grammar is not None:
            return self._by_grammar(self._grammar)
        if self._chain is None:
            return int(self._last_logits().argmax())
        return int(self._c.llama_sampler_sample(self._chain, self._context, -1))

    def _by_grammar(self, grammar: Grammar) -> int:
        """Choose freely, and only where the grammar forbids that, among what it allows."""
        logits = self._last_logits()
        token = self._of(logits)
        if not grammar.allows(token):
            allowed = grammar.only_allowed(logits)
            token = self._of(allowed)
            while not grammar.is_text(token):
                allowed[token] = _NEVER
                grammar.check_any(allowed)
                token = self._of(allowed)
        if self._chain is not None:
            self._c.llama_sampler_accept(self._chain, token)
        grammar.accept(token)
        return token

    def _of(self, logits: Any) -> int:
        if self._chain is None:
            return int(logits.argmax())
        candidates = Candidates(self._c, self._vocabulary)
        candidates.fill(logits)
        self._c.llama_sampler_apply(self._chain, ctypes.byref(candidates.array))
        return candidates.selected()

    def likelihood(
        self, token: int, count: int, text_of: Callable[[int], str]
    ) -> tuple[float, tuple[Likelihood, ...]]:
        """Return log p of a token at the last decoded position, and the ``count`` likeliest.

        The natural log of softmax of the raw logits, before penalties, temperature and grammar.
        """
        import numpy as np

        logits = self._last_logits()
        largest = float(logits.max())
        total = largest + float(np.log(np.exp(logits - largest).sum(dtype=np.float64)))
        kept = np.argpartition(logits, -min(count, len(logits)))[-count:]
        best = sorted(kept.tolist(), key=lambda index: (-logits[index], index))
        return float(logits[token]) - total, tuple(
            Likelihood(token_id=index, text=text_of(index), logprob=float(logits[index]) - total)
            for index in best
        )

    def _last_logits(self) -> Any:
        import numpy as np

        pointer = self._c.llama_get_logits_ith(self._context, -1)
        address = ctypes.cast(pointer, ctypes.c_void_p).value or 0
        if address != self._address or self._logits is None:
            self._address = address
            self._logits = np.ctypeslib.as_array(pointer, (self._vocabulary,))
        return self._logits

    def _check_finite(self, value: Any) -> None:
        self._first = False
        if not math.isfinite(value):
            raise EngineError("The model's output is not a number (NaN or infinite).")

    def close(self) -> None:
        """Free the samplers; safe to call twice."""
        chain, self._chain, self._logits = self._chain, None, None
        if chain is not None:
            self._c.llama_sampler_free(chain)
        if self._grammar is not None:
            self._grammar.close()


class Candidates:
    """The native array of candidates that samplers read and write."""

    def __init__(self, module: Any, size: int) -> None:
        import numpy as np

        self._kind = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._data = np.zeros(size, self._kind)
        self._pointer = self._data.ctypes.data_as(ctypes.POINTER(module.llama_token_data))
        self.array = module.llama_token_data_array(self._pointer, size, -1, False)

    def fill(self, logits: Any) -> None:
        """Make every id a candidate with its logit."""
        import numpy as np

        self._data["id"] = np.arange(len(self._data))
        self._data["logit"] = logits
        self._data["p"] = 0
        self.array.data, self.array.size = self._pointer, len(self._data)
        self.array.selected, self.array.sorted = -1, False

    def one(self, token: int) -> None:
        """Make one id the only candidate."""
        self._data[0] = (token, 1.0, 0.0)
        self.array.data, self.array.size = self._pointer, 1
        self.array.selected, self.array.sorted = 0, False

    @property
    def logits(self) -> Any:
        """The logits as they are now, in the order of the array."""
        return self._data["logit"]

    def selected(self) -> int:
        """Return the id that the samplers chose."""
        return int(self.array.data[self.array.selected].id)


class Grammar:
    """llama.cpp's state of a grammar within one reply.

    llama.cpp takes any byte for the next one of a character whose last six bits fit, so whether
    the bytes are UTF-8 is checked here.

    Args:
        module: The ``llama_cpp`` module.
        vocab: The native vocabulary.
        vocabulary: Number of token ids.
        text: GBNF, already known to be sound.
        banned: Ids that never come: the text of a control token could fit the grammar, but it adds
            nothing to the reply.
        bytes_of: The bytes that a token adds to the reply.

    Raises:
        InputError: llama.cpp does not take the grammar.
    """

    def __init__(
        self,
        module: Any,
        vocab: Any,
        vocabulary: int,
        text: str,
        *,
        banned: Sequence[int],
        bytes_of: Callable[[int], bytes],
    ) -> None:
        self._c, self._candidates = module, Candidates(module, vocabulary)
        self._sampler = module.llama_sampler_init_grammar(vocab, text.encode(), b"root")
        if not self._sampler:
            raise InputError("llama.cpp does not take this grammar.")
        self._banned, self._bytes_of = list(banned), bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def allows(self, token: int) -> bool:
        """Return whether this token may come next."""
        if token in self._banned or not self.is_text(token):
            return False
        self._candidates.one(token)
        self._c.llama_sampler_apply(self._sampler, ctypes.byref(self._candidates.array))
        return bool(self._candidates.logits[0] > _NEVER)

    def only_allowed(self, logits: Any) -> Any:
        """Return the logits with minus infinity for what may not come next.

        Raises:
            EngineError: Nothing may.
        """
        self._candidates.fill(logits)
        self._candidates.logits[self._banned] = _NEVER
        self._c.llama_sampler_apply(self._sampler, ctypes.byref(self._candidates.array))
        allowed = self._candidates.logits.copy()
        self.check_any(allowed)
        return allowed

    def check_any(self, logits: Any) -> None:
        """Raise an EngineError where nothing is left to choose."""
        if not math.isfinite(logits.max()):
            raise EngineError(
                "The grammar allows none of the model's tokens at this place.",
                hint="Widen the grammar, or use another model.",
            )

    def is_text(self, token: int) -> bool:
        """Return whether the reply stays UTF-8, perhaps with a character begun, by this token."""
        state = self._decoder.getstate()
        try:
            self._decoder.decode(self._bytes_of(token))
        except UnicodeDecodeError:
            return False
        finally:
            self._decoder.setstate(state)
        return True

    def accept(self, token: int) -> None:
        """Go on to the state behind this token, which must be allowed: llama.cpp aborts else."""
        self._c.llama_sampler_accept(self._sampler, token)
        self._decoder.decode(self._bytes_of(token))

    def close(self) -> None:
        """Free it; safe to call twice."""
        sampler, self._sampler = self._sampler, None
        if sampler:
            self._c.llama_sampler_free(sampler)


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
    seed = secrets.randbits(31) if sampling.seed is None else sampling.seed % _RANDOM_SEED
    add(module.llama_sampler_init_dist(seed))
    return chain
