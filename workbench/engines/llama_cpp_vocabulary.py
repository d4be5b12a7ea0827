"""Text and ids of a GGUF model: exact bytes, end tokens, and the prompt by its own template."""

from __future__ import annotations

import contextlib
import ctypes
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from workbench.catalog import find_local
from workbench.errors import InputError, UnsupportedError, WorkbenchError
from workbench.messages import Message
from workbench.planning import Plan

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


class Vocabulary:
    """The vocabulary of a loaded GGUF and its chat template.

    Args:
        llama: The ``llama_cpp.Llama``.
        module: The ``llama_cpp`` module.

    Attributes:
        native: llama.cpp's own vocabulary.
        size: Number of ids.
        template: The chat template that the file carries, "" where it has none.
    """

    def __init__(self, llama: Any, module: Any) -> None:
        self._c = module
        self.native = module.llama_model_get_vocab(llama.model)
        self.size = int(module.llama_vocab_n_tokens(self.native))
        found = module.llama_model_chat_template(llama.model, None)
        self.template = found.decode("utf-8", "replace") if found else ""
        self._has_start = "tokenizer.ggml.bos_token_id" in llama.metadata
        self._bytes: dict[tuple[int, bool], bytes] = {}
        self._formatters: dict[bool, Any] = {}
        self._hidden: list[int] | None = None

    def is_end(self, token: int) -> bool:
        """Return whether the file says that this token ends a reply."""
        return bool(self._c.llama_vocab_is_eog(self.native, token))

    def bytes_of(self, token: int, *, special: bool) -> bytes:
        """Return the exact bytes of a token; the wrapper's own way loses those over 32 bytes.

        Args:
            token: The id.
            special: Give the text of a control token as well.
        """
        found = self._bytes.get((token, special))
        if found is None:
            found = self._look_up(token, special) if 0 <= token < self.size else b""
            self._bytes[token, special] = found
        return found

    def _look_up(self, token: int, special: bool) -> bytes:
        size = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = self._c.llama_token_to_piece(self.native, token, buffer, size, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    def text_of(self, token: int, *, special: bool = False) -> str:
        """Return a token as text, with U+FFFD for a part of a character."""
        return self.bytes_of(token, special=special).decode("utf-8", "replace")

    def tokenize(self, text: str, *, own: bool = False) -> list[int]:
        """Return the ids of ``text``; special tokens written in it are parsed.

        Args:
            text: What to tokenize.
            own: Add the start and end tokens that the file asks for.
        """
        data = text.encode("utf-8", "replace")
        size = len(data) + 8
        while True:
            array = (self._c.llama_token * size)()
            count = self._c.llama_tokenize(self.native, data, len(data), array, size, own, True)
            if count >= 0:
                return list(array[:count])
            size = -count

    def hidden(self) -> list[int]:
        """Return the control tokens that do not end a reply: they add nothing to it."""
        if self._hidden is None:
            control = self._c.LLAMA_TOKEN_ATTR_CONTROL
            self._hidden = [
                token
                for token in range(self.size)
                if self._c.llama_vocab_get_attr(self.native, token) & control
                and not self.is_end(token)
            ]
        return self._hidden

    @property
    def _start(self) -> int:
        return int(self._c.llama_vocab_bos(self.native))

    def with_start(self, text: str) -> list[int]:
        """Return the ids of a raw text, with the start token where the file wants one."""
        ids = self.tokenize(text)
        wanted = self._has_start and self._c.llama_vocab_get_add_bos(self.native)
        return [self._start, *ids] if wanted and ids[:1] != [self._start] else ids

    def render(self, turns: Sequence[Any], *, add_generation_prompt: bool, **more: Any) -> str:
        """Return the prompt as the file's chat template renders it, in Jinja's sandbox.

        Args:
            turns: Messages as mappings.
            add_generation_prompt: End with the opening of the assistant's turn.
            more: Further variables of the template.

        Raises:
            UnsupportedError: The file has no template.
            InputError: The template refuses the conversation.
        """
        from jinja2 import TemplateError

        if not self.template:
            raise UnsupportedError(
                "This GGUF has no chat template.",
                hint="Use model.complete(text), which needs none.",
            )
        try:
            format_ = self._formatter(add_generation_prompt)
            return str(format_(messages=list(turns), **more).prompt)
        except (TemplateError, TypeError, ValueError) as error:
            raise InputError(f"The chat template refuses this conversation: {error}.") from error

    def _formatter(self, add_generation_prompt: bool) -> Any:
        """Return the compiled template; compiling takes longer than a short prompt's prefill."""
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        if add_generation_prompt not in self._formatters:
            self._formatters[add_generation_prompt] = Jinja2ChatFormatter(
                template=self.template,
                eos_token=self.text_of(self._c.llama_vocab_eos(self.native), special=True),
                bos_token=self.text_of(self._start, special=True) if self._has_start else "",
                add_generation_prompt=add_generation_prompt,
            )
        return self._formatters[add_generation_prompt]


def turn_of(message: Message) -> dict[str, Any]:
    """Return a message as chat templates want it: a call's arguments as values, not as text.

    Templates write them as JSON themselves; text would be quoted once more.
    """
    found = message.as_dict()
    for call, plain in zip(message.tool_calls, found.get("tool_calls", ()), strict=True):
        with contextlib.suppress(InputError):  # broken ones stay the text they are
            plain["function"]["arguments"] = call.values()
    return found


def end_ids_of_source(plan: Plan) -> list[int]:
    """Return the end ids of the safetensors a GGUF was made from: a GGUF holds only one."""
    try:
        files = find_local(plan.card, form="safetensors")
        if files is None or files.kind != "safetensors":
            return []
        text = (files.path / "generation_config.json").read_text(encoding="utf-8")
        given = json.loads(text).get("eos_token_id")
    except (WorkbenchError, OSError, ValueError, AttributeError):
        return []
    found = [given] if isinstance(given, int) else given or []
    return [index for index in found if isinstance(index, int)]
