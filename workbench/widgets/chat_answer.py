"""An answer as it grows: its text so far, and the messages that tell a front end of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from workbench.messages import Piece, Reply, ToolCall, Usage
from workbench.widgets.chat_wire import call_of
from workbench.widgets.worker import Generation

ANSWER, THINKING = "answer", "thinking"
Said = tuple[str, dict[str, Any]]
"""Type of a message, and its fields."""


class Answer:
    """What has come of one answer, as text and as Markdown trees; whoever holds it has the lock.

    The trees are only built once somebody looks.

    Args:
        turn_id: The turn that it fills.
        before: What the turn held already, for an answer that goes on.

    Attributes:
        generation: What makes it, once it runs.
        calls: Tool calls so far.
        waiting: Why nothing comes yet, or None.
        blocking: Whether a cell waits for it.
    """

    def __init__(self, turn_id: str, *, before: Reply | None = None) -> None:
        self.turn_id, self.before = turn_id, before
        self._texts = {
            THINKING: [before.thinking] if before else [],
            ANSWER: [before.text] if before else [],
        }
        self._streams: dict[str, Any] | None = None
        self.calls: list[ToolCall] = list(before.tool_calls) if before else []
        self.generation: Generation | None = None
        self.waiting: str | None = None
        self.blocking = False

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._texts[ANSWER])

    @property
    def error(self) -> BaseException | None:
        """What the engine raised."""
        return self.generation.error if self.generation is not None else None

    def join(self, seconds: float) -> bool:
        """Wait until it is over; return whether it is."""
        return self.generation is None or self.generation.join(seconds)

    def take(self, pieces: Sequence[Piece], *, seen: bool) -> list[Said]:
        """Take pieces and return what to tell; nothing where nobody has ``seen`` it yet."""
        fresh = {
            THINKING: "".join(piece.thinking for piece in pieces),
            ANSWER: "".join(piece.text for piece in pieces),
        }
        calls = [piece.tool_call for piece in pieces if piece.tool_call is not None]
        streams = self._trees() if seen else None
        for part, text in fresh.items():
            if text:
                self._texts[part].append(text)
        self.calls += calls
        if streams is None:
            return []
        told: list[Said] = []
        for part, text in fresh.items():
            if text and (patch := streams[part].add(text)):
                told.append(self._delta(part, patch))
        return told + [("tool", {"id": self.turn_id, "call": call_of(call)}) for call in calls]

    def finish(self) -> Iterator[Said]:
        """Yield what is still to be told when no more comes."""
        for part, stream in (self._streams or {}).items():
            if patch := stream.done():
                yield self._delta(part, patch)

    def _delta(self, part: str, patch: Any) -> Said:
        return "delta", {"id": self.turn_id, "part": part, "patch": patch}

    def _trees(self) -> dict[str, Any]:
        if self._streams is None:
            from workbench.chats.markdown_stream import MarkdownStream

            self._streams = {part: MarkdownStream() for part in self._texts}
            for part, texts in self._texts.items():
                if whole := "".join(texts):
                    self._streams[part].add(whole)
        return self._streams

    def shown(self, turn: dict[str, Any]) -> dict[str, Any]:
        """Return the turn as a front end gets it, with what has come so far."""
        streams = self._trees()
        thinking = list(streams[THINKING].blocks)
        return {
            **turn,
            "text": self.text,
            "blocks": list(streams[ANSWER].blocks),
            "thinking": thinking or None,
            "tools": [call_of(call) for call in self.calls],
            "meta": None,
        }


def joined(before: Reply | None, reply: Reply) -> Reply:
    """Return one reply of an answer and its continuation; the figures count both."""
    if before is None:
        return reply
    usage, old, count = reply.usage, before.usage, len(before.token_ids)
    if usage is not None and old is not None:
        usage = dataclasses.replace(
            old, completion_tokens=old.completion_tokens + usage.completion_tokens
        )
    elif usage is not None and count:  # its process ended before anybody counted
        usage = Usage(
            prompt_tokens=usage.prompt_tokens - count,
            completion_tokens=count + usage.completion_tokens,
        )
    kept = len(before.logprobs) == len(before.token_ids)
    return dataclasses.replace(
        reply,
        text=before.text + reply.text,
        thinking=before.thinking + reply.thinking,
        token_ids=before.token_ids + reply.token_ids,
        tool_calls=before.tool_calls + reply.tool_calls,
        logprobs=before.logprobs + reply.logprobs if kept and reply.logprobs else (),
        usage=usage,
        timings=_both(before, reply),
    )


def _both(before: Reply, reply: Reply) -> Any:
    """Return the first part's TTFT, and the rate of both parts while they were decoded."""
    one, two = before.timings, reply.timings
    if one is None or two is None:
        return one or two
    rate = two.decode_tokens_per_second
    if before.usage and reply.usage:
        tokens = before.usage.completion_tokens + reply.usage.completion_tokens - 2
        seconds = (one.total - one.ttft) + (two.total - two.ttft)
        rate = tokens / seconds if tokens > 0 and seconds > 0 else rate
    return dataclasses.replace(one, total=one.total + two.total, decode_tokens_per_second=rate)
