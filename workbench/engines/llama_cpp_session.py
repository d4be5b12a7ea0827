"""A GGUF model loaded by llama.cpp: renders, decodes token by token and scores."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.engines.base import Power, check_ids
from workbench.engines.llama_cpp_adapter import Adapters
from workbench.engines.llama_cpp_cache import KeptPrefix
from workbench.engines.llama_cpp_choice import Choice, Grammar
from workbench.engines.llama_cpp_grammar import grammar_of
from workbench.engines.llama_cpp_images import Projector, SeenPrompt
from workbench.engines.llama_cpp_library import last_words
from workbench.engines.llama_cpp_options import OwnOptions
from workbench.engines.llama_cpp_vocabulary import EndTokens, Vocabulary, end_ids_of_source, turn_of
from workbench.engines.local import LocalSession
from workbench.errors import EngineError
from workbench.messages import Likelihood, Message, Sampling
from workbench.planning import Plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class LlamaCppSession(LocalSession):
    """A loaded GGUF; drives ``llama_decode`` itself, so that nothing is spent between tokens.

    Args:
        llama: The ``llama_cpp.Llama``.
        module: The ``llama_cpp`` module.
        plan: What was planned.
        own: This engine's own options.

    Attributes:
        words: Its vocabulary and chat template.
        cache: What its KV cache holds between two turns.
        tensors: None: its weights are no tree of tensors, and who only counts them must not ask
            for ``raw``, which ends the reuse of the cache.
    """

    tensors: None = None

    def __init__(self, llama: Any, module: Any, plan: Plan, *, own: OwnOptions) -> None:
        self._llama, self._c, self._plan = llama, module, plan
        self.context = plan.context
        self.words = Vocabulary(llama, module)
        self.cache = KeptPrefix(module, llama, enabled=own.prefix_reuse)
        self.vocabulary = self.words.size
        self.ends = EndTokens(self.words.is_end, end_ids_of_source(plan))
        architecture = str(llama.metadata.get("general.architecture", ""))
        self._adapters = Adapters(module, llama, plan.card, architecture)
        self._asked: tuple[Choice, int, int] | None = None
        powers = {
            Power.TOKENIZE, Power.COMPLETE, Power.SCORE, Power.LOGPROBS, Power.SCHEMA,
            Power.GRAMMAR, Power.ADAPTERS,
        }  # fmt: skip
        self._eyes: Projector | None = None
        if own.projector is not None:
            on_gpu = plan.gpu_layers != 0
            self._eyes = Projector(llama, self.words, own.projector, on_gpu=on_gpu)
            powers.add(Power.IMAGES)
        if self.words.template:
            powers.add(Power.RENDER)
        self.powers = frozenset(powers)
        self.learn_marks(self.words.template)

    @property
    def raw(self) -> Any:
        """The ``llama_cpp.Llama``; from now on nothing of its cache is reused here."""
        self.cache.disable()
        return self._llama

    def close(self) -> None:
        """Free the context and the model."""
        if self._llama is not None:
            if self._eyes is not None:
                self._eyes.close()
            self._adapters.close()
            self._llama.close()
            self._llama = None

    def use_adapter(self, folder: Path | None) -> None:
        """Answer with this LoRA from now on (a PEFT folder or a GGUF file), or with the base."""
        self._adapters.use(folder)
        self.cache.forget()  # it was computed with other weights

    # Text and ids

    def _visible(self, token: int) -> bytes:
        return self.words.bytes_of(token, special=False)

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text``; special tokens written in it are parsed, none is added."""
        return self.words.tokenize(text)

    def detokenize(self, ids: Sequence[int]) -> bytes:
        """Return the exact bytes of the ids, special tokens included."""
        return b"".join(self.words.bytes_of(int(index), special=True) for index in ids)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the prompt as the GGUF's chat template renders it, in Jinja's sandbox."""
        turns = [turn_of(message) for message in messages]
        return self.words.render(turns, add_generation_prompt=add_generation_prompt)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's token ids: what the template writes, nothing added.

        With images, their positions hold the id 0.
        """
        if self._eyes is not None and any(message.images for message in messages):
            return self._eyes.prompt(messages)
        return self.tokenize(self.render(messages))

    def prompt_ids_for(self, messages: Sequence[Message], sampling: Sampling) -> list[int]:
        """Return the prompt's token ids with the tools, and with the wish to think or not."""
        if self._eyes is not None and any(message.images for message in messages):
            return self._eyes.prompt(messages)
        wishes: dict[str, Any] = {}
        if sampling.tools:
            wishes["tools"] = [dict(tool) for tool in sampling.tools]
        if sampling.think is not None:  # templates name it differently, and ignore the other
            wishes |= {"enable_thinking": sampling.think, "thinking": sampling.think}
        turns = [turn_of(message) for message in messages]
        return self.tokenize(self.words.render(turns, add_generation_prompt=True, **wishes))

    # Decoding

    def _with_start(self, text: str) -> list[int]:
        return self.words.with_start(text)

    def _tokens(self, ids: list[int], sampling: Sampling) -> Iterator[int]:
        choose = self._choice(ids.text if isinstance(ids, SeenPrompt) else ids, sampling)
        try:
            if isinstance(ids, SeenPrompt):
                self._see(ids)
            else:
                self._prefill(ids, self.cache.take(ids))
            yield from self._decoded(choose, sampling)
        finally:
            self._asked = None
            choose.close()

    def _choice(self, ids: Sequence[int], sampling: Sampling) -> Choice:
        grammar: Grammar | None = None
        files = self._plan.files
        text = grammar_of(sampling, files.path if files else None)
        if text is not None:
            hidden = [token for token in self.words.hidden() if not self._named(token, text)]
            grammar = Grammar(
                self._c,
                self.words.native,
                self.vocabulary,
                text,
                banned=hidden,
                bytes_of=self._visible,
            )
        return Choice(self._c, self._llama.ctx, self.vocabulary, sampling, ids, grammar=grammar)

    def _named(self, token: int, grammar: str) -> bool:
        """Return whether a grammar asks for a token by its text or number."""
        text = self.words.text_of(token, special=True)
        return f"<[{token}]>" in grammar or (text.startswith("<") and text in grammar)

    def _decoded(self, choose: Choice, sampling: Sampling) -> Iterator[int]:
        array = (self._c.llama_token * 1)()
        step = self._c.llama_batch_get_one(array, 1)
        while True:
            token = choose()
            if sampling.top_logprobs:
                self._asked = (choose, token, sampling.top_logprobs)
            yield token
            array[0] = token
            self._decode(step)
            self.cache.decoded((token,))

    def _likelihood(self) -> tuple[float, tuple[Likelihood, ...]]:
        assert self._asked is not None
        choose, token, count = self._asked
        return choose.likelihood(token, count, self.words.text_of)

    def _prefill(self, ids: list[int], start: int = 0) -> None:
        array = (self._c.llama_token * len(ids))(*ids)
        width = ctypes.sizeof(self._c.llama_token)
        for begin in range(start, len(ids), self._llama.n_batch):
            at = ctypes.cast(ctypes.byref(array, begin * width), self._c.llama_token_p)
            size = min(self._llama.n_batch, len(ids) - begin)
            self._decode(self._c.llama_batch_get_one(at, size))
            self.cache.decoded(ids[begin : begin + size])

    def _see(self, prompt: SeenPrompt) -> None:
        assert self._eyes is not None
        self.cache.forget()
        self.cache.hold()
        self._eyes.prefill(prompt)

    def _decode(self, batch: Any) -> None:
        code = self._c.llama_decode(self._llama.ctx, batch)
        if code != 0:
            said = last_words() or "no reason given"
            self.cache.forget()
            raise EngineError(f"llama.cpp failed while decoding (code {code}): {said}.")

    # Scoring

    def score(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return log p(ids[i] | ids[:i]) for i = 1 .. n-1, float32, shape [n - 1]."""
        import numpy as np

        plain = check_ids(ids, vocabulary=self.vocabulary, context=self.context)
        result = np.empty(len(plain) - 1, np.float32)
        for start, logs in self._log_softmax(plain):
            rows = np.arange(len(logs))
            target = plain[start + 1 : start + 1 + len(logs)]
            result[start : start + len(logs)] = logs[rows, target]
        return result

    def log_probabilities(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the log-softmax after each id but the last, float32, shape [n - 1, vocab]."""
        import numpy as np

        plain = check_ids(ids, vocabulary=self.vocabulary, context=self.context)
        result = np.empty((len(plain) - 1, self.vocabulary), np.float32)
        for start, logs in self._log_softmax(plain):
            result[start : start + len(logs)] = logs
        return result

    def _log_softmax(self, ids: list[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        import numpy as np

        size = self._llama.n_batch
        batch = self._c.llama_batch_init(size, 0, 1)
        self.cache.forget()
        try:
            for start in range(0, len(ids) - 1, size):
                part = ids[start : min(start + size, len(ids) - 1)]
                _fill(batch, part, start)
                self._decode(batch)
                pointer = self._c.llama_get_logits(self._llama.ctx)
                logits = np.ctypeslib.as_array(pointer, (len(part), self.vocabulary))
                logits = logits - logits.max(-1, keepdims=True)
                total = np.exp(logits).sum(-1, keepdims=True, dtype=np.float64)
                yield start, logits - np.log(total).astype(np.float32)
        finally:
            self._c.llama_batch_free(batch)


def _fill(batch: Any, ids: Sequence[int], position: int) -> None:
    """Write one sequence into a batch, asking for the logits of every position."""
    batch.n_tokens = len(ids)
    for at, token in enumerate(ids):
        batch.token[at] = token
        batch.pos[at] = position + at
        batch.n_seq_id[at] = 1
        batch.seq_id[at][0] = 0
        batch.logits[at] = 1
