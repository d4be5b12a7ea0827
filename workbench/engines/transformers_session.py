"""A model loaded by transformers: renders, decodes step by step, scores and answers batches."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.engines.base import Power, Stopped, check_ids, never
from workbench.engines.choice import Choice
from workbench.engines.local import LocalSession
from workbench.engines.prefix import KeptPrefix
from workbench.engines.transformers_adapters import Adapters
from workbench.engines.transformers_memory import (
    empty_caches,
    free_after,
    is_out_of_memory,
    reply_error,
)
from workbench.engines.transformers_template import for_template, template_text, whole_text
from workbench.engines.vocabulary import TokenBytes
from workbench.errors import EngineError, InputError, UnsupportedError
from workbench.messages import Likelihood, Message, Reply, Sampling
from workbench.planning import Plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SCORED_AT_ONCE = 512
_ALWAYS = (
    Power.TOKENIZE,
    Power.COMPLETE,
    Power.SCORE,
    Power.BATCH,
    Power.ADAPTERS,
    Power.LOGPROBS,
)


class TransformersSession(LocalSession):
    """A loaded model; decoding is a plain loop in the reader's own thread.

    With no thread in between, a closed stream stops exactly between two tokens, and an exception
    in the model arrives where the pieces are read.
    """

    def __init__(self, model: Any, tokenizer: Any, plan: Plan) -> None:
        self._model, self._plan = model, plan
        self._adapters = Adapters(model, plan.adapter if hasattr(model, "get_base_model") else None)
        self.tokenizer = tokenizer
        self.context = plan.context
        self.bytes_of = TokenBytes(tokenizer)
        self.ends = end_ids(model, tokenizer)
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        powers = set(_ALWAYS)
        if tokenizer.chat_template:
            powers.add(Power.RENDER)
        self._forward, self._onward = _forward_of(self._model)
        if self._onward is not self._forward:  # virtual tokens have no place in padded rows
            powers.remove(Power.BATCH)
        self.powers = frozenset(powers)
        self._reuses = bool(plan.options.get("prefix_reuse", True))
        self.prefix = KeptPrefix(model.config, enabled=self._reuses)
        self._last: tuple[Any, int, int] | None = None
        last_only = "logits_to_keep" in inspect.signature(self._forward.forward).parameters
        self._last_only = {"logits_to_keep": 1} if last_only else {}
        self._tokenizer_lock = threading.RLock()  # fast tokenizers refuse two callers at once
        self.learn_marks(template_text(tokenizer))

    @property
    def raw(self) -> Any:
        """The ``PreTrainedModel`` (a ``PeftModel`` with an adapter)."""
        return self._adapters.shown

    @property
    def device(self) -> Any:
        """The torch device of the model's input."""
        return input_device(self._model)

    def close(self) -> None:
        """Drop the model and empty the device's cache."""
        if self._model is None:
            return
        self.prefix.close()
        self._model = self._forward = self._onward = self.tokenizer = None
        self._adapters = Adapters(None)
        empty_caches()

    def use_adapter(self, folder: Path | None) -> None:
        """Answer with this LoRA adapter from now on, or with the base model."""
        try:
            self._adapters.use(folder)
        finally:  # keys and values of the one are not those of the other
            self.prefix.close()
            self.prefix = KeptPrefix(self._adapters.base.config, enabled=self._reuses)
            self._model = self._adapters.model
            self._forward, self._onward = _forward_of(self._model)

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text``; special tokens written in it are parsed, none is added."""
        with self._tokenizer_lock:
            ids: list[int] = self.tokenizer(whole_text(text), add_special_tokens=False)["input_ids"]
        return ids

    def detokenize(self, ids: Sequence[int]) -> bytes:
        """Return the exact bytes of the ids, special tokens included."""
        return self.bytes_of.joined(ids)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the prompt as the tokenizer's chat template renders it."""
        return str(self._templated(messages, add_generation_prompt, tokenize=False))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's token ids, exactly as ``stream`` feeds them."""
        ids: list[int] = self._templated(messages, True, tokenize=True)["input_ids"]
        return ids

    def prompt_ids_for(self, messages: Sequence[Message], sampling: Sampling) -> list[int]:
        """Return the prompt's token ids with the tools, and with the wish to think or not."""
        wishes: dict[str, Any] = {}
        if sampling.tools:
            wishes["tools"] = [dict(tool) for tool in sampling.tools]
        if sampling.think is not None:  # templates name it differently, and ignore the other
            wishes |= {"enable_thinking": sampling.think, "thinking": sampling.think}
        ids: list[int] = self._templated(messages, True, tokenize=True, **wishes)["input_ids"]
        return ids

    def _templated(
        self, messages: Sequence[Message], prompted: bool, *, tokenize: bool, **wishes: Any
    ) -> Any:
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise UnsupportedError(
                "This model has no chat template.",
                hint="Use model.complete(text), which needs none.",
            )
        try:
            with self._tokenizer_lock:
                return self.tokenizer.apply_chat_template(
                    [for_template(message) for message in messages],
                    add_generation_prompt=prompted,
                    tokenize=tokenize,
                    **({"return_dict": True} if tokenize else {}),
                    **wishes,
                )
        except TemplateError as error:
            raise InputError(f"The chat template refuses this conversation: {error}.") from error

    def _visible(self, token: int) -> bytes:
        return self.bytes_of.visible(token)

    def _with_start(self, text: str) -> list[int]:
        plain = self.tokenize(text)
        start = self.tokenizer.bos_token_id
        with self._tokenizer_lock:
            whole: list[int] = self.tokenizer(whole_text(text))["input_ids"]
        added = bool(whole) and whole[0] == start and plain[:1] != [start]
        return [start, *plain] if added else plain

    def _tokens(self, ids: list[int], sampling: Sampling) -> Iterator[int]:
        """Yield sampled ids; the cache is whole, and kept, only while no forward pass runs."""
        import torch

        choose = Choice(sampling, ids, self.device)
        prefix, known = self.prefix, list(ids)
        cache, shared = prefix.take(ids)
        feed = torch.tensor([ids[shared:]], device=self.device)
        whole = False
        try:
            while True:
                logits, cache = self.step(feed, cache)
                whole = True
                with torch.inference_mode():
                    token = choose(logits[0, -1])
                if sampling.top_logprobs:
                    self._last = (logits[0, -1], token, sampling.top_logprobs)
                yield token
                whole = False
                known.append(token)
                feed = torch.tensor([[token]], device=self.device)
        finally:
            self._last = None
            if whole:
                prefix.keep(known, cache)

    def _likelihood(self) -> tuple[float, tuple[Likelihood, ...]]:
        """Return log-probability and candidates of the token that was yielded last."""
        if self._last is None:
            raise EngineError("No token was sampled that has a log-probability.")
        return self.likelihood_of(*self._last)

    def likelihood_of(
        self, logits: Any, token: int, count: int
    ) -> tuple[float, tuple[Likelihood, ...]]:
        """Return log p of a token, and the ``count`` likeliest, by the raw logits [vocab]."""
        import torch

        with torch.inference_mode():
            logs = torch.log_softmax(logits.float(), -1)
            best = torch.topk(logs, min(count, logs.shape[-1]))
            own = float(logs[token])
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return own, tuple(
            Likelihood(
                token_id=index,
                text=self.bytes_of.visible(index).decode("utf-8", "replace"),
                logprob=value,
            )
            for index, value in pairs
        )

    def step(self, feed: Any, cache: Any, *, all_logits: bool = False, **more: Any) -> Any:
        """Run the model on the next tokens; return logits [batch, positions, vocab] and cache."""
        import torch

        if not all_logits:
            more.update(self._last_only)
        forward = self._forward if cache is None else self._onward
        try:
            with torch.inference_mode():  # never around a yield: it would leak to the reader
                found = forward(input_ids=feed, past_key_values=cache, use_cache=True, **more)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise self._short_of_memory(feed, cache, error) from None
        cache = getattr(found, "past_key_values", None)
        if cache is None:
            raise EngineError(
                f"{type(self._forward).__name__} keeps no key-value cache, which decoding needs.",
                hint="Try engine='llama.cpp'.",
            )
        return found.logits, cache

    def _short_of_memory(self, feed: Any, cache: Any, error: BaseException) -> EngineError:
        """Free what the failed pass holds, and return the error that says so."""
        tokens = int(feed.shape[-1]) + (0 if cache is None else int(cache.get_seq_length()))
        free_after(error)
        return reply_error(self._plan, tokens, error)

    def ask_many(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        stopped: Stopped = never,
    ) -> list[Reply]:
        """Answer several conversations in left-padded batches."""
        from workbench.engines.transformers_batch import answer_batches

        self.prefix.drop()  # a batch needs the room
        return answer_batches(self, conversations, sampling, stopped)

    def score(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return log p(ids[i] | ids[:i]) for i = 1 .. n-1, float32, shape [n - 1]."""
        import numpy as np
        import torch

        plain = self._checked(ids)
        parts = []
        for start, logs in self._log_softmax(plain):
            target = torch.tensor(plain[start + 1 : start + 1 + len(logs)], device=logs.device)
            parts.append(logs.gather(-1, target[:, None])[:, 0].cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def log_probabilities(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the log-softmax after each id but the last, float32, shape [n - 1, vocab]."""
        import numpy as np

        plain = self._checked(ids)
        result = np.empty((len(plain) - 1, self.vocabulary), np.float32)
        for start, logs in self._log_softmax(plain):
            result[start : start + len(logs)] = logs.cpu().numpy()
        return result

    def _checked(self, ids: Sequence[int]) -> list[int]:
        return check_ids(ids, vocabulary=self.vocabulary, context=self.context)

    def _log_softmax(self, ids: list[int]) -> Iterator[tuple[int, Any]]:
        import torch

        self.prefix.drop()  # one cache at a time: scoring makes its own
        cache: Any = None
        for start in range(0, len(ids) - 1, _SCORED_AT_ONCE):
            part = ids[start : min(start + _SCORED_AT_ONCE, len(ids) - 1)]
            feed = torch.tensor([part], device=self.device)
            logits, cache = self.step(feed, cache, all_logits=True)
            with torch.inference_mode():  # virtual tokens of an adapter come first
                logs = torch.log_softmax(logits[0, -len(part) :].float(), -1)
            yield start, logs


def _forward_of(model: Any) -> tuple[Any, Any]:
    """Return the modules to call with an empty cache, and with one that holds a beginning.

    With a LoRA it is the base model, whose layers hold it already. An adapter of virtual tokens
    puts them before whatever it is given, so it is asked at the beginning only.
    """
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict) or not hasattr(model, "get_base_model"):
        return model, model
    base = model.get_base_model()
    layered = all(not config.is_prompt_learning for config in configs.values())
    return (base if layered else model), base


def input_device(model: Any) -> Any:
    """Return the torch device that a model's input belongs on.

    Where accelerate keeps the first layers in RAM beside a GPU, the model's own ``device`` is
    ``meta``, on which nothing can be computed; its hook knows where they run.
    """
    found = model.device
    if found.type != "meta":
        return found
    import torch

    where = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    return found if where is None else torch.device(where)


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return every id that ends a reply, by generation config, config and tokenizer."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        given = getattr(source, "eos_token_id", None)
        found.update([given] if isinstance(given, int) else given or ())
    return frozenset(found)
