"""Tell the thinking part of a reply from its answer, and tool calls from both, as text arrives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from workbench.engines.tools import CALLS, CallFormat, calls_of, harmony_call
from workbench.messages import Piece, ToolCall

_PAIRS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
)
_HEADS = ("<|start|>", "<|channel|>")
_BODY = "<|message|>"
_ENDS = ("<|end|>", "<|return|>", "<|call|>")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How a model marks what is not answer, by its chat template.

    Attributes:
        tags: Opening and closing tag of the thinking part, or None.
        calls: The ways in which it writes tool calls.
        harmony: Whether it writes messages in channels, as gpt-oss does.
    """

    tags: tuple[str, str] | None = None
    calls: tuple[CallFormat, ...] = ()
    harmony: bool = False

    @property
    def thinks(self) -> bool:
        """Whether a thinking part can be told apart."""
        return self.harmony or self.tags is not None

    @property
    def calls_tools(self) -> bool:
        """Whether tool calls can be told apart."""
        return self.harmony or bool(self.calls)

    @property
    def marks(self) -> tuple[str, ...]:
        """Every mark, some of which are control tokens that a reply would not show."""
        if self.harmony:
            return (*_HEADS, _BODY, *_ENDS, "<|constrain|>")
        each = [mark for call in self.calls for mark in call.marks]
        return (*(self.tags or ()), *each)


def format_of(template: str | None) -> Format | None:
    """Return what a chat template shows of the model's marks, None where it has none.

    A model that thinks has the closing tag in its template, which cuts old thoughts off; one that
    calls tools takes ``tools`` there.
    """
    if not template:
        return None
    if "<|channel|>" in template and _BODY in template:
        return Format(harmony=True)
    tags = next((pair for pair in _PAIRS if pair[1] in template or pair[0] in template), None)
    calls = tuple(each for each in CALLS if "tools" in template and each.sign in template)
    return Format(tags=tags, calls=calls) if tags or calls else None


@dataclasses.dataclass(slots=True)
class Parts:
    """What a text falls into."""

    text: str = ""
    thinking: str = ""
    calls: list[ToolCall] = dataclasses.field(default_factory=list)


class Divider:
    """Takes the text of a reply in pieces of any size; nothing of it is lost or doubled.

    Only the marks themselves vanish. What may become a mark is held back until it is certain. A
    thinking part counts at the reply's beginning only; one that is never closed stays thinking.

    Args:
        form: The model's marks.
        inside: Whether the prompt has opened the thinking part already.
        tools: Whether tool calls are looked for; without it they stay text.
        number: Of the prompt; the calls' ids are counted from it.
    """

    def __init__(
        self, form: Format, *, inside: bool = False, tools: bool = False, number: int = 0
    ) -> None:
        self._number, self._count = number, 0
        self._steps: list[_Thoughts | _Calls | _Channels] = []
        if form.harmony:
            self._steps.append(_Channels(self._named, tools=tools))
            return
        if form.tags is not None:
            self._steps.append(_Thoughts(*form.tags, inside=inside))
        if tools:
            self._steps += [_Calls(each, self._named) for each in form.calls]

    @property
    def is_over(self) -> bool:
        """Whether all that comes is answer, so that nobody needs to look any more."""
        return all(step.is_over for step in self._steps)

    def feed(self, text: str) -> Parts:
        """Take the next text and return what is certain."""
        return self._through(text, last=False)

    def finish(self) -> Parts:
        """Return what was held back, when no more text comes."""
        return self._through("", last=True)

    def _through(self, text: str, *, last: bool) -> Parts:
        whole = Parts(text=text)
        for step in self._steps:
            found = step.feed(whole.text)
            if last:
                rest = step.finish()
                found.text += rest.text
                found.thinking += rest.thinking
                found.calls += rest.calls
            whole.text = found.text
            whole.thinking += found.thinking
            whole.calls += found.calls
        return whole

    def _named(self, call: ToolCall) -> ToolCall:
        """Give the call a name of its own: nine letters and digits, as Mistral's template wants."""
        number, self._count = (self._number + self._count) % 10**8, self._count + 1
        return call if call.id else dataclasses.replace(call, id=f"c{number:08d}")


class _Thoughts:
    """A thinking part at the beginning, between two tags."""

    def __init__(self, opening: str, closing: str, *, inside: bool) -> None:
        self._opening, self._closing = opening, closing
        self._inside, self._held = inside, ""
        self.is_over = False

    def feed(self, text: str) -> Parts:
        parts = Parts()
        if self.is_over:
            parts.text = text
            return parts
        self._held += text
        if not self._inside:
            body = self._held.lstrip()
            if body.startswith(self._opening):
                space = len(self._held) - len(body)
                parts.text = self._held[:space]
                self._held, self._inside = body[len(self._opening) :], True
            elif self._opening.startswith(body):
                return parts
            else:
                parts.text, self._held, self.is_over = self._held, "", True
                return parts
        before, found, after = self._held.partition(self._closing)
        if found:
            parts.thinking, self._held, self.is_over = before, "", True
            parts.text += after
            return parts
        kept = may_begin(before, (self._closing,))
        parts.thinking, self._held = before[: len(before) - kept], before[len(before) - kept :]
        return parts

    def finish(self) -> Parts:
        held, self._held = self._held, ""
        return Parts(thinking=held) if self._inside else Parts(text=held)


class _Calls:
    """Tool calls of one way of writing them, anywhere in the text or as its whole."""

    def __init__(self, form: CallFormat, named: Callable[[ToolCall], ToolCall]) -> None:
        self._form, self._named = form, named
        self._held, self._inside, self._began = "", False, False
        self.is_over = False

    def feed(self, text: str) -> Parts:
        parts = Parts()
        if self.is_over:
            parts.text = text
            return parts
        self._held += text
        if self._form.whole:
            self._as_whole(parts)
            return parts
        while self._step(parts):
            pass
        return parts

    def _as_whole(self, parts: Parts) -> None:
        """Hold a reply that begins as a JSON object until its end."""
        body = self._held.lstrip()
        if body and not body.startswith(self._form.opening):
            parts.text, self._held, self.is_over = self._held, "", True
        self._inside = bool(body)

    def _step(self, parts: Parts) -> bool:
        if not self._inside:
            before, found, after = self._held.partition(self._form.opening)
            if not found:
                kept = may_begin(before, (self._form.opening,))
                parts.text += before[: len(before) - kept]
                self._held = before[len(before) - kept :]
                return False
            parts.text, self._held, self._inside = parts.text + before, after, True
        if self._form.closing is None:
            return False
        body, found, after = self._held.partition(self._form.closing)
        if not found:
            return False
        calls = calls_of(self._form, body)
        parts.calls += [self._named(call) for call in calls]
        if not calls:
            parts.text += self._form.opening + body + self._form.closing
        self._held, self._inside = after, False
        return True

    def finish(self) -> Parts:
        held, self._held = self._held, ""
        if not self._inside:
            return Parts(text=held)
        calls = calls_of(self._form, held)
        opening = "" if self._form.whole else self._form.opening
        return (
            Parts(calls=[self._named(call) for call in calls]) if calls else Parts(opening + held)
        )


class _Channels:
    """Messages with a header each, in OpenAI's harmony format: analysis, commentary, final."""

    def __init__(self, named: Callable[[ToolCall], ToolCall], *, tools: bool) -> None:
        self._named, self._tools = named, tools
        self._held, self._header, self._body = "", "", ""
        self._state = "text"
        self.is_over = False

    def feed(self, text: str) -> Parts:
        parts = Parts()
        self._held += text
        while True:
            marks = (_BODY, *_HEADS) if self._state == "header" else (*_HEADS, *_ENDS)
            found = [(at, mark) for mark in marks if (at := self._held.find(mark)) >= 0]
            if not found:
                break
            at, mark = min(found)
            self._take(self._held[:at], parts)
            self._held = self._held[at + len(mark) :]
            self._turn(mark, parts)
        kept = may_begin(self._held, marks)
        self._take(self._held[: len(self._held) - kept], parts)
        self._held = self._held[len(self._held) - kept :]
        return parts

    def _take(self, text: str, parts: Parts) -> None:
        if self._state == "header":
            self._header += text
        elif self._state == "thinking":
            parts.thinking += text
        elif self._state == "call":
            self._body += text
        else:
            parts.text += text

    def _turn(self, mark: str, parts: Parts) -> None:
        if self._state == "header":
            if mark == _BODY:
                self._state, self._body = self._kind(), ""
            else:
                self._header += mark
            return
        self._close_call(parts)
        if mark in _HEADS:
            self._state, self._header = "header", mark
        else:
            self._state = "text"

    def _kind(self) -> str:
        if self._tools and "to=" in self._header:
            return "call"
        return "thinking" if "<|channel|>analysis" in self._header else "text"

    def _close_call(self, parts: Parts) -> None:
        if self._state != "call":
            return
        call = harmony_call(self._header, self._body)
        if call is None:
            parts.text += self._header + _BODY + self._body
        else:
            parts.calls.append(self._named(call))
        self._body = ""

    def finish(self) -> Parts:
        parts = Parts()
        held, self._held = self._held, ""
        self._take(held, parts)
        if self._state == "header":
            parts.text += self._header
        self._close_call(parts)
        self._state = "text"
        return parts


def may_begin(text: str, marks: Sequence[str]) -> int:
    """Return the length of the longest end of ``text`` that begins one of the marks."""
    longest = max(map(len, marks))
    for length in range(min(longest - 1, len(text)), 0, -1):
        tail = text[-length:]
        if any(mark.startswith(tail) for mark in marks):
            return length
    return 0


def divided(pieces: Iterator[Piece], divider: Divider) -> Iterator[Piece]:
    """Yield the pieces of a reply with thinking and tool calls apart; one each, calls besides."""
    called = False
    try:
        for piece in pieces:
            last = piece.finish_reason is not None
            if divider.is_over and not last:
                yield piece
                continue
            parts = divider.feed(piece.text)
            if last:
                rest = divider.finish()
                parts = Parts(
                    parts.text + rest.text, parts.thinking + rest.thinking, parts.calls + rest.calls
                )
            called = called or bool(parts.calls)
            for call in parts.calls:
                yield Piece(tool_call=call)
            reason = piece.finish_reason
            if called and reason == "stop":
                reason = "tool_calls"
            yield dataclasses.replace(
                piece, text=parts.text, thinking=parts.thinking, finish_reason=reason
            )
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
