"""A GGUF model loaded by llama.cpp: renders, decodes token by token and scores."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from workbench.catalog import locate
from workbench.engines.base import Power, check_ids
from workbench.engines.llama_cpp_choice import Choice
from workbench.engines.local import LocalSession
from workbench.errors import EngineError, InputError, UnsupportedError, WorkbenchError
from workbench.messages import Message, Sampling
from workbench.planning import Plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PIECE_BYTES = 64


class EndTokens:
    """The ids that end a reply, asked of the vocabulary once each."""

    def __init__(self, is_end: Callable[[int], bool], more: Iterable[int] = ()) -> None:
        self._is_end = is_end
        self._known: dict[int, bool] = dict.fromkeys(more, True)

    def __contains__(self, token: object) -> bool:
        known = self._known.get(token)  # type: ignore[call-overload]
        if known is None:
            known = self._known[token] = bool(self._is_end(token))  # type: ignore[index, arg-type]
        return bool(known)


class LlamaCppSession(LocalSession):
    """A loaded GGUF; drives ``llama_decode`` itself, so that nothing is spent between tokens.

    Args:
        llama: The ``llama_cpp.Llama``.
        module: The ``llama_cpp`` module.
        plan: What was planned.
        last_words: Returns what llama.cpp logged last.
    """

    def __init__(
        self, llama: Any, module: Any, plan: Plan, *, last_words: Callable[[], str]
    ) -> None:
        self._llama, self._c, self._last_words = llama, module, last_words
        self.context = plan.context
        self._vocab = module.llama_model_get_vocab(llama.model)
        self._memory = module.llama_get_memory(llama.ctx)
        self.vocabulary = int(module.llama_vocab_n_tokens(self._vocab))
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self.ends = EndTokens(self._is_end, _end_ids_of_source(plan))
        self._has_start = "tokenizer.ggml.bos_token_id" in llama.metadata
        template = module.llama_model_chat_template(llama.model, None)
        self._template = template.decode("utf-8", "replace") if template else ""
        self._formatters: dict[bool, Any] = {}
        powers = {Power.TOKENIZE, Power.COMPLETE, Power.SCORE}
        if self._template:
            powers.add(Power.RENDER)
        self.powers = frozenset(powers)

    @property
    def raw(self) -> Any:
        """The ``llama_cpp.Llama``."""
        return self._llama

    def close(self) -> None:
        """Free the context and the model."""
        if self._llama is not None:
            self._llama.close()
            self._llama = self._memory = self._vocab = None

    # Text and ids

    def _is_end(self, token: int) -> bool:
        return bool(self._c.llama_vocab_is_eog(self._vocab, token))

    def _bytes(self, token: int, special: bool) -> bytes:
        """Return the exact bytes of a token; the wrapper's own way loses those over 32 bytes."""
        found = self._pieces.get((token, special))
        if found is None:
            found = self._look_up(token, special) if 0 <= token < self.vocabulary else b""
            self._pieces[token, special] = found
        return found

    def _look_up(self, token: int, special: bool) -> bytes:
        size = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = self._c.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    def _visible(self, token: int) -> bytes:
        return self._bytes(token, False)

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text``; special tokens written in it are parsed, none is added."""
        data = text.encode("utf-8", "replace")
        size = len(data) + 8
        while True:
            array = (self._c.llama_token * size)()
            count = self._c.llama_tokenize(self._vocab, data, len(data), array, size, False, True)
            if count >= 0:
                return list(array[:count])
            size = -count

    def detokenize(self, ids: Sequence[int]) -> bytes:
        """Return the exact bytes of the ids, special tokens included."""
        return b"".join(self._bytes(int(index), True) for index in ids)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the prompt as the GGUF's chat template renders it, in Jinja's sandbox."""
        from jinja2 import TemplateError

        if not self._template:
            raise UnsupportedError(
                "This GGUF has no chat template.",
                hint="Use model.complete(text), which needs none.",
            )
        try:
            turns: Any = [message.as_dict() for message in messages]
            return str(self._formatter(add_generation_prompt)(messages=turns).prompt)
        except (TemplateError, ValueError) as error:
            raise InputError(f"The chat template refuses this conversation: {error}.") from error

    def _formatter(self, add_generation_prompt: bool) -> Any:
        """Return the compiled template; compiling takes longer than a short prompt's prefill."""
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        if add_generation_prompt not in self._formatters:
            self._formatters[add_generation_prompt] = Jinja2ChatFormatter(
                template=self._template,
                eos_token=self._text_of(self._c.llama_vocab_eos(self._vocab)),
                bos_token=self._text_of(self._start) if self._has_start else "",
                add_generation_prompt=add_generation_prompt,
            )
        return self._formatters[add_generation_prompt]

    @property
    def _start(self) -> int:
        return int(self._c.llama_vocab_bos(self._vocab))

    def _text_of(self, token: int) -> str:
        return self._bytes(token, True).decode("utf-8", "replace")

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's token ids: what the template writes, nothing added."""
        return self.tokenize(self.render(messages))

    # Decoding

    def _with_start(self, text: str) -> list[int]:
        ids = self.tokenize(text)
        wanted = self._has_start and self._c.llama_vocab_get_add_bos(self._vocab)
        return [self._start, *ids] if wanted and ids[:1] != [self._start] else ids

    def _tokens(self, ids: list[int], sampling: Sampling) -> Iterator[int]:
        choose = Choice(self._c, self._llama.ctx, self.vocabulary, sampling, ids)
        try:
            self._forget()
            self._prefill(ids)
            array = (self._c.llama_token * 1)()
            step = self._c.llama_batch_get_one(array, 1)
            while True:
                token = choose()
                yield token
                array[0] = token
                self._decode(step)
        finally:
            choose.close()

    def _forget(self) -> None:
        self._llama.reset()  # whoever uses model.raw next must not trust its own cache
        if self._memory is not None:
            self._c.llama_memory_clear(self._memory, False)

    def _prefill(self, ids: list[int]) -> None:
        array = (self._c.llama_token * len(ids))(*ids)
        width = ctypes.sizeof(self._c.llama_token)
        for start in range(0, len(ids), self._llama.n_batch):
            at = ctypes.cast(ctypes.byref(array, start * width), self._c.llama_token_p)
            size = min(self._llama.n_batch, len(ids) - start)
            self._decode(self._c.llama_batch_get_one(at, size))

    def _decode(self, batch: Any) -> None:
        code = self._c.llama_decode(self._llama.ctx, batch)
        if code != 0:
            said = self._last_words() or "no reason given"
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
        self._forget()
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


def _end_ids_of_source(plan: Plan) -> list[int]:
    """Return the end ids of the safetensors a GGUF was made from: a GGUF holds only one."""
    if not plan.card.source_is_local:
        return []
    try:
        files = locate(plan.card)
    except WorkbenchError:
        return []
    path = files.path / "generation_config.json"
    if files.kind != "safetensors" or not path.is_file():
        return []
    given = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    return [given] if isinstance(given, int) else list(given or ())
