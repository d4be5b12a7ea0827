"""A dialogue as the front end of a chat gets it: plain dictionaries, text as Markdown trees."""

from __future__ import annotations

import functools
from typing import Any

from workbench.chats.dialogue import Dialogue, Turn
from workbench.messages import Reply, ToolCall

UNFINISHED = "This answer was never finished."


def turn_of(dialogue: Dialogue, turn: Turn) -> dict[str, Any]:
    """Return one turn for the front end."""
    reply = turn.reply
    answer = turn.role == "assistant"
    return {
        "id": turn.id,
        "role": turn.role,
        "text": turn.text,
        "blocks": blocks(turn.text) if answer else [],
        "thinking": blocks(reply.thinking) if reply and reply.thinking else None,
        "tools": [call_of(call) for call in turn.message.tool_calls],
        "images": [
            {"url": image.data_url(), "name": f"image {number}"}
            for number, image in enumerate(turn.message.images, start=1)
        ],
        "siblings": dialogue.siblings(turn.id),
        "meta": _meta(turn, reply) if answer else None,
    }


def call_of(call: ToolCall) -> dict[str, str]:
    """Return a tool call for the front end."""
    return {"name": call.name, "arguments": call.arguments, "id": call.id}


def _meta(turn: Turn, reply: Reply | None) -> dict[str, Any]:
    usage = reply.usage if reply else None
    timings = reply.timings if reply else None
    return {
        "ttft": timings.ttft if timings else None,
        "rate": timings.decode_tokens_per_second if timings else None,
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
        "finish": reply.finish_reason if reply else "error",
        "model": turn.model,
        "error": UNFINISHED if turn.open else turn.error,
    }


@functools.lru_cache(maxsize=256)
def blocks(text: str) -> list[Any]:
    """Return the Markdown tree of a text; it is not to be changed."""
    from workbench.chats.markdown import parse

    return list(parse(text)) if text else []
