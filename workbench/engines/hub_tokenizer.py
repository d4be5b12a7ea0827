"""A Hugging Face tokenizer as the engines ask it: exact ids, exact bytes, the chat template."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.engines.transformers_template import for_template, template_text, whole_text
from workbench.engines.vocabulary import TokenBytes
from workbench.errors import InputError, UnsupportedError
from workbench.messages import Message


class HubTokenizer:
    """One tokenizer that several threads may ask.

    Args:
        tokenizer: What ``AutoTokenizer`` returned.

    Attributes:
        bytes_of: The bytes of each id.
        template: Its chat template, None where it has none; of several all of them.
        has_template: Whether it knows a chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.RLock()  # fast tokenizers refuse two callers at once
        self.bytes_of = TokenBytes(tokenizer)
        self.template = template_text(tokenizer)
        self.has_template = bool(tokenizer.chat_template)

    @classmethod
    def of(cls, folder: Path, *, trust_remote_code: bool = False) -> HubTokenizer:
        """Return the tokenizer of a folder; nothing is fetched."""
        from transformers import AutoTokenizer

        return cls(
            AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=trust_remote_code
            )
        )

    @property
    def raw(self) -> Any:
        """The library's own tokenizer."""
        return self._tokenizer

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text; special tokens written in it are parsed, none is added."""
        with self._lock:
            found: list[int] = self._tokenizer(whole_text(text), add_special_tokens=False)[
                "input_ids"
            ]
        return found

    def ids_with_start(self, text: str) -> list[int]:
        """Return the ids of a text, with the start token where the tokenizer adds one."""
        plain = self.ids(text)
        start = self._tokenizer.bos_token_id
        with self._lock:
            whole: list[int] = self._tokenizer(whole_text(text))["input_ids"]
        added = bool(whole) and whole[0] == start and plain[:1] != [start]
        return [start, *plain] if added else plain

    def render(self, messages: Sequence[Message], *, prompted: bool, **more: Any) -> str:
        """Return the prompt as the chat template writes it; ``more`` are the template's names."""
        return str(self._templated(messages, prompted, tokenize=False, **more))

    def prompt_ids(self, messages: Sequence[Message], **more: Any) -> list[int]:
        """Return the ids of the prompt as the chat template writes it."""
        found = self._templated(messages, True, tokenize=True, return_dict=True, **more)
        ids: list[int] = found["input_ids"]
        return ids

    def _templated(self, messages: Sequence[Message], prompted: bool, **more: Any) -> Any:
        from jinja2 import TemplateError

        if not self.has_template:
            raise UnsupportedError(
                "This model has no chat template.",
                hint="Use model.complete(text), which needs none.",
            )
        try:
            with self._lock:
                return self._tokenizer.apply_chat_template(
                    [for_template(message) for message in messages],
                    add_generation_prompt=prompted,
                    **more,
                )
        except TemplateError as error:
            raise InputError(f"The chat template refuses this conversation: {error}.") from error
