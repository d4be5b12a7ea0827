"""What transformers' chat templates are given: messages with arguments as values, not as text."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from workbench.errors import InputError
from workbench.messages import Message


def for_template(message: Message) -> dict[str, Any]:
    """Return a message as templates of Hugging Face models want it.

    They write the arguments of a tool call as JSON themselves; text would be quoted once more.
    """
    found = dataclasses.replace(message, content=whole_text(message.content)).as_dict()
    for call, plain in zip(message.tool_calls, found.get("tool_calls", ()), strict=True):
        with contextlib.suppress(InputError):  # broken ones stay the text they are
            plain["function"]["arguments"] = call.values()
    return found


def whole_text(text: str) -> str:
    """Return a text with ``?`` for halves of surrogate pairs, which tokenizers refuse."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def template_text(tokenizer: Any) -> str | None:
    """Return the chat template; of several by name the default one, with the tools' besides."""
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        return "\n".join(str(text) for text in found.values())
    return None if found is None else str(found)
