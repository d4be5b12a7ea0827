"""A model loaded by mlx-lm: renders, decodes one token ahead, scores, switches adapters."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.engines.base import Power, Stopped, check_ids, never
from workbench.engines.hub_tokenizer import HubTokenizer
from workbench.engines.local import LocalSession
from workbench.engines.mlx_adapters import MlxAdapters
from workbench.engines.mlx_batch import answer_batches, can_batch
from workbench.engines.mlx_choice import MlxChoice
from workbench.engines.mlx_library import begin, check_finite, on_device, settle, states
from workbench.engines.mlx_prefix import KeptPrompt
from workbench.errors import EngineError
from workbench.messages import Likelihood, Message, Reply, Sampling
from workbench.planning import Plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_READ_AT_ONCE = 2048
_SCORED_AT_ONCE = 512
_CLEARED_EVERY = 256
_ALWAYS = (Power.TOKENIZE, Power.COMPLETE, Power.SCORE, Power.ADAPTERS, Power.LOGPROBS)


class MlxSession(LocalSession):
    """A loaded model; MLX computes one token ahead of the reader, as mlx-lm's own loop does.

    Whatever outlives a step is computed or under way when the step returns, so that a stream may
    be read from any thread, and another thread may have loaded the model. A closed stream waits
    for the one token that is under way: no work goes on behind it.

    Args:
        model: The ``mlx.nn.Module``.
        tokenizer: Its tokenizer.
        ends: Ids that end a reply.
        plan: How it was loaded.
    """

    def __init__(
        self, model: Any, tokenizer: HubTokenizer, ends: frozenset[int], plan: Plan
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self.device = plan.device
        self.context = plan.context
        self.ends = ends
        powers = {*_ALWAYS, Power.RENDER} if tokenizer.has_template else set(_ALWAYS)
        self.powers = frozenset(powers)
        self._adapters = MlxAdapters(model)
        self.prefix = KeptPrompt(enabled=bool(plan.options.get("prefix_reuse", True)))
        self._last: tuple[Any, int, int] | None = None
        self.vocabulary = self._rows()
        self.learn_marks(tokenizer.template)
        if can_batch(self.new_cache()):
            self.powers |= {Power.BATCH}

    @property
    def raw(self) -> Any:
        """The ``mlx.nn.Module``."""
        return self._model

    def close(self) -> None:
        """Drop the model and give back what MLX keeps of freed arrays."""
        if self._model is None:
            return
        import mlx.core as mx

        self.prefix.close()
        self._adapters.close()
        self._model = self._last = None
        gc.collect()  # what is still in a cycle would later go to MLX's pool, not to the system
        mx.clear_cache()

    def use_adapter(self, folder: Path | None) -> None:
        """Answer with this LoRA adapter from now on, or with the base model."""
        self.prefix.drop()  # keys and values of the one are not those of the other
        with on_device(self.device):
            self._adapters.use(folder)

    # Text and ids

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text``; special tokens written in it are parsed, none is added."""
        return self._tokenizer.ids(text)

    def detokenize(self, ids: Sequence[int]) -> bytes:
        """Return the exact bytes of the ids, special tokens included."""
        return self._tokenizer.bytes_of.joined(ids)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the prompt as the tokenizer's chat template renders it."""
        return self._tokenizer.render(messages, prompted=add_generation_prompt)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's token ids, exactly as ``stream`` feeds them."""
        return self._tokenizer.prompt_ids(messages)

    def prompt_ids_for(self, messages: Sequence[Message], sampling: Sampling) -> list[int]:
        """Return the prompt's token ids with the tools, and with the wish to think or not."""
        wishes: dict[str, Any] = {}
        if sampling.tools:
            wishes["tools"] = [dict(tool) for tool in sampling.tools]
        if sampling.think is not None:  # templates name it differently, and ignore the other
            wishes |= {"enable_thinking": sampling.think, "thinking": sampling.think}
        return self._tokenizer.prompt_ids(messages, **wishes)

    def _visible(self, token: int) -> bytes:
        return self._tokenizer.bytes_of.visible(token)

    def _with_start(self, text: str) -> list[int]:
        return self._tokenizer.ids_with_start(text)

    # Decoding

    def _tokens(self, ids: list[int], sampling: Sampling) -> Iterator[int]:
        """Yield sampled ids; the cache holds ``known`` exactly, and is kept, while one is read."""
        import mlx.core as mx

        limit = min(sampling.max_tokens, self.context - len(ids))
        prefix, known = self.prefix, list(ids)
        cache, shared = prefix.take(ids)
        whole = False
        try:
            with on_device(self.device):
                cache = self.new_cache() if cache is None else cache
                choose = MlxChoice(sampling, ids, self.vocabulary)
                row = self.read(ids[shared:], cache)
                token, finite = choose(row), mx.isfinite(mx.max(row))
                begin(token, finite, row, choose.state, states(cache))
            for count in range(limit):
                ahead = count + 1 < limit
                value, ahead_row = token, row
                if ahead:
                    with on_device(self.device):
                        row = self.step(token[None, None], cache)
                        token = choose(row)
                        begin(token, row, choose.state, states(cache))
                value = int(value.item())
                if count == 0:
                    check_finite(finite)
                if ahead:
                    known.append(value)
                if sampling.top_logprobs:
                    self._last = (ahead_row, value, sampling.top_logprobs)
                whole = True
                yield value
                whole = False
                if count % _CLEARED_EVERY == _CLEARED_EVERY - 1:
                    mx.clear_cache()
        finally:
            self._last = None
            if whole and cache is not None:
                settle(states(cache))
                prefix.keep(known, cache)
            else:
                mx.synchronize()

    def read(self, ids: list[int], cache: list[Any]) -> Any:
        """Feed a prompt; return the logits after its last token, shape [vocab].

        All but the last token go in steps whose logits nobody asks for: MLX never makes them.
        """
        import mlx.core as mx

        for start in range(0, len(ids) - 1, _READ_AT_ONCE):
            part = ids[start : min(start + _READ_AT_ONCE, len(ids) - 1)]
            self._model(mx.array([part]), cache=cache)
            settle(states(cache))
            mx.clear_cache()
        return self.step(mx.array([ids[-1:]]), cache)

    def step(self, feed: Any, cache: list[Any]) -> Any:
        """Run the model on the next tokens, shape [1, n]; return the last logits, shape [vocab]."""
        return self._model(feed, cache=cache)[0, -1]

    def step_many(self, feed: Any, cache: list[Any]) -> Any:
        """Run the model on one token a row, shape [rows, 1]; return the logits [rows, vocab]."""
        return self._model(feed, cache=cache)[:, -1]

    def new_cache(self) -> list[Any]:
        """Return an empty prompt cache of this model, layer by layer."""
        from mlx_lm.models.cache import make_prompt_cache

        made: list[Any] = make_prompt_cache(self._model)
        return made

    def _rows(self) -> int:
        """Return the rows of the output matrix by the shape of logits that are never computed."""
        import mlx.core as mx

        with on_device(self.device):
            return int(self._model(mx.array([[0]]), cache=self.new_cache()).shape[-1])

    def _likelihood(self) -> tuple[float, tuple[Likelihood, ...]]:
        """Return log-probability and candidates of the token that was yielded last."""
        if self._last is None:
            raise EngineError("No token was sampled that has a log-probability.")
        return self.likelihood_of(*self._last)

    def likelihood_of(
        self, row: Any, token: int, count: int
    ) -> tuple[float, tuple[Likelihood, ...]]:
        """Return log p of a token, and the ``count`` likeliest, by the raw logits [vocab]."""
        import mlx.core as mx
        import numpy as np

        with on_device(self.device):
            logits = np.array(row.astype(mx.float32)).astype(np.float64)
        logs = logits - logits.max()
        logs -= np.log(np.exp(logs).sum())
        best = np.argsort(-logs, kind="stable")[:count]
        return float(logs[token]), tuple(
            Likelihood(
                token_id=int(index),
                text=self._visible(int(index)).decode("utf-8", "replace"),
                logprob=float(logs[index]),
            )
            for index in best
        )

    def ask_many(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        stopped: Stopped = never,
    ) -> list[Reply]:
        """Answer several conversations in batches."""
        self.prefix.drop()  # a batch needs the room
        return answer_batches(self, conversations, sampling, stopped)

    # Scoring

    def score(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return log p(ids[i] | ids[:i]) for i = 1 .. n-1, float32, shape [n - 1]."""
        import numpy as np

        plain = self._checked(ids)
        parts = [
            logs[np.arange(len(logs)), plain[start + 1 : start + 1 + len(logs)]]
            for start, logs in self._log_softmax(plain)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def log_probabilities(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the log-softmax after each id but the last, float32, shape [n - 1, vocab]."""
        import numpy as np

        plain = self._checked(ids)
        result = np.empty((len(plain) - 1, self.vocabulary), np.float32)
        for start, logs in self._log_softmax(plain):
            result[start : start + len(logs)] = logs
        return result

    def _checked(self, ids: Sequence[int]) -> list[int]:
        return check_ids(ids, vocabulary=self.vocabulary, context=self.context)

    def _log_softmax(self, ids: list[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        import mlx.core as mx
        import numpy as np

        self.prefix.drop()  # one cache at a time: scoring makes its own
        cache = self.new_cache()
        for start in range(0, len(ids) - 1, _SCORED_AT_ONCE):
            part = ids[start : min(start + _SCORED_AT_ONCE, len(ids) - 1)]
            with on_device(self.device):
                logits = self._model(mx.array([part]), cache=cache)[0].astype(mx.float32)
                logs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
                settle(logs, states(cache))
            yield start, np.array(logs)
        mx.clear_cache()
