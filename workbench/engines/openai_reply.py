"""Turn the chunks of an OpenAI-compatible stream into pieces."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workbench.engines.http_errors import said_by_server
from workbench.engines.text import TextAssembler
from workbench.engines.thinking import Divider, Format
from workbench.errors import EngineError
from workbench.messages import FinishReason, Likelihood, Piece, Timings, ToolCall, Usage

_FINISHES: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
_OPENING = "<think>"
_TAGGED = Format(tags=(_OPENING, "</think>"))
_SHOWN = 80  # characters of what was said last, in errors


class ReplyReader:
    """Takes the chunks of one reply.

    Args:
        stop: Strings that end the reply; cut here as well, for a server may ignore them.
        began: ``time.perf_counter()`` of the request.
        thinks: Tell a thinking part between ``<think>`` tags apart, where the server does not.
        inside: Whether the prompt has opened that part already.

    Attributes:
        first: ``time.perf_counter()`` of the first token, None before it.
        over: Whether the reply has ended, by the server's word or at a stop string.
    """

    def __init__(
        self, *, stop: Sequence[str] = (), began: float, thinks: bool = False, inside: bool = False
    ) -> None:
        self._began = began
        self._cut = TextAssembler(stop) if stop else None
        self._half, self._half_thought = _Halves(), _Halves()
        self._divider = Divider(_TAGGED, inside=inside) if thinks else None
        self._calls = _Calls()
        self._usage: Usage | None = None
        self._finish: FinishReason | None = None
        self._odd_finish = ""
        self._said = ""
        self._thought = False  # whether any of it was told by the server
        self.first: float | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met here, where the server went on."""
        return self._cut is not None and self._cut.stopped

    @property
    def over(self) -> bool:
        """Whether the server said how the reply ended."""
        return self._finish is not None or bool(self._odd_finish)

    @property
    def said(self) -> str:
        """The end of what was said so far, for errors."""
        return self._said

    def feed(self, chunk: Mapping[str, Any]) -> Iterator[Piece]:
        """Yield the pieces of one chunk.

        Raises:
            EngineError: It is an error, or no chunk of a reply.
        """
        if chunk.get("error"):
            raise self.broken_off(said_by_server(json.dumps(chunk["error"])))
        self._count(chunk)
        choices = chunk.get("choices")
        if not choices:
            return
        choice = choices[0]
        delta = choice.get("delta") or choice.get("message") or {}
        thought = self._unmarked(self._half_thought.joined(_thought_in(delta)))
        text = self._half.joined(_text_in(choice, delta))
        if thought:
            self._mark(thought)
            self._divider = None  # the server tells it apart
            yield Piece(thinking=thought)
        if text or choice.get("token_ids") or choice.get("logprobs"):
            yield from self._tokens(text, choice)
        if delta.get("tool_calls"):
            self._mark("")
            self._calls.feed(delta["tool_calls"])
        if choice.get("finish_reason"):
            self._ended(str(choice["finish_reason"]))

    def finish(self, *, complete: bool = True) -> Iterator[Piece]:
        """Yield what is left when no more chunks come; the last piece says how it ended.

        Args:
            complete: Whether the server said that this was all.

        Raises:
            EngineError: The stream broke off, or the server ended it for a reason of its own.
        """
        if self._odd_finish:
            raise self.broken_off(f"it says {self._odd_finish!r}")
        if not complete and not self.over and not self.stopped:
            raise self.broken_off("it hung up in the middle of the reply")
        for call in self._calls.finish():
            yield Piece(tool_call=call)
        rest = self._half.left()
        if self._cut is not None:
            rest = self._cut.feed(rest.encode()) + self._cut.finish()
        thought = ""
        if self._divider is not None:
            parts, left = self._divider.feed(rest), self._divider.finish()
            rest, thought = parts.text + left.text, parts.thinking + left.thinking
        total = time.perf_counter()
        yield Piece(
            text=rest,
            thinking=thought,
            finish_reason=self._reason(),
            usage=self._usage,
            timings=self._timings(total),
        )

    def broken_off(self, reason: str) -> EngineError:
        """Return the error of a reply that the server did not bring to its end."""
        after = f" after {self._said!r}" if self._said else " before its first word"
        return EngineError(
            f"The server broke the reply off{after}: {reason}.".replace("..", "."),
            hint="Its log may say why.",
        )

    def _unmarked(self, thought: str) -> str:
        """Return what a server tells of a thought without the opening tag.

        Several of vLLM's parsers leave it there when the tag is not alone in its chunk.
        """
        if thought and not self._thought:
            self._thought, thought = True, thought.removeprefix(_OPENING)
        return thought

    def _reason(self) -> FinishReason:
        if self.stopped:
            return "stop"
        if self._calls.any and self._finish in (None, "stop"):
            return "tool_calls"  # several servers say stop
        return self._finish or "stop"

    def _timings(self, total: float) -> Timings:
        ttft, whole = (self.first or total) - self._began, total - self._began
        if self._usage is None:
            return Timings(ttft=ttft, total=whole)
        return Timings.measured(ttft=ttft, total=whole, usage=self._usage)

    def _ended(self, reason: str) -> None:
        if reason in _FINISHES:
            self._finish = _FINISHES[reason]
        else:  # content_filter, abort, recitation: no reply of the model's own
            self._odd_finish = reason

    def _mark(self, said: str) -> None:
        if self.first is None:
            self.first = time.perf_counter()
        self._said = (self._said + said)[-_SHOWN:]

    def _tokens(self, text: str, choice: Mapping[str, Any]) -> Iterator[Piece]:
        """Yield one piece a token where the server tells them, the text with the first."""
        self._mark(text)
        if self._cut is not None:
            text = self._cut.feed(text.encode())
        if self._divider is not None:
            parts = self._divider.feed(text)
            text = parts.text
            if parts.thinking:
                yield Piece(thinking=parts.thinking)
            if self._divider.is_over:
                self._divider = None
        ids = choice.get("token_ids") or []
        told = _likelihoods(choice.get("logprobs"))
        if not ids and not told:
            if text:
                yield Piece(text=text)
            return
        for index in range(max(len(ids), len(told))):
            chosen, top = told[index] if index < len(told) else (None, ())
            known = ids[index] if index < len(ids) else (chosen.token_id if chosen else None)
            yield Piece(
                text=text if index == 0 else "",
                token_id=known,
                logprob=chosen.logprob if chosen else None,
                top=top,
            )

    def _count(self, chunk: Mapping[str, Any]) -> None:
        found = chunk.get("usage")
        if isinstance(found, Mapping):
            prompt, completion = found.get("prompt_tokens"), found.get("completion_tokens")
            if isinstance(prompt, int) and isinstance(completion, int):
                self._usage = Usage(prompt_tokens=prompt, completion_tokens=completion)
        elif isinstance(chunk.get("timings"), Mapping) and self._usage is None:  # llama-server
            times = chunk["timings"]
            prompt, completion = times.get("prompt_n"), times.get("predicted_n")
            if isinstance(prompt, int) and isinstance(completion, int):
                cached = times.get("cache_n") or 0
                self._usage = Usage(prompt_tokens=prompt + cached, completion_tokens=completion)


class _Halves:
    """Joins characters that a server cut into two JSON escapes, the halves of a surrogate pair."""

    def __init__(self) -> None:
        self._held = ""

    def joined(self, text: str) -> str:
        if not self._held and (not text or text.isascii()):
            return text
        text, self._held = self._held + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._held = text[:-1], text[-1]
        try:
            text.encode()
        except UnicodeEncodeError:
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return text

    def left(self) -> str:
        held, self._held = self._held, ""
        return "\ufffd" if held else ""


class _Calls:
    """Joins the deltas of tool calls to whole calls; those of several may be mixed."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    @property
    def any(self) -> bool:
        """Whether there was one."""
        return bool(self._calls)

    def feed(self, deltas: Sequence[Mapping[str, Any]]) -> None:
        """Take the deltas of one chunk."""
        for delta in deltas:
            function = delta.get("function") or {}
            call = self._of(delta.get("index"), str(delta.get("id") or ""))
            call.name = call.name or str(function.get("name") or "")
            arguments = function.get("arguments")
            if isinstance(arguments, str):
                call.arguments.append(arguments)
            elif arguments is not None:
                call.arguments.append(json.dumps(arguments, ensure_ascii=False))

    def finish(self) -> list[ToolCall]:
        """Return the calls, whole now."""
        return [
            ToolCall(name=call.name, arguments="".join(call.arguments) or "{}", id=call.id)
            for call in self._calls
            if call.name
        ]

    def _of(self, place: Any, given: str) -> _Call:
        """Return the call that a delta belongs to: several servers number none, or all with 0."""
        for call in reversed(self._calls):
            same_place = place is None or call.place == place
            if same_place and (not given or not call.id or call.id == given):
                call.id = call.id or given
                return call
        self._calls.append(_Call(place, given))
        return self._calls[-1]


class _Call:
    """A tool call underway."""

    def __init__(self, place: Any, given: str) -> None:
        self.place, self.id, self.name = place, given, ""
        self.arguments: list[str] = []


def _text_in(choice: Mapping[str, Any], delta: Mapping[str, Any]) -> str:
    content = delta.get("content")
    if content is None:
        content = choice.get("text")
    if isinstance(content, list):  # parts, as Mistral's thinking models send
        return "".join(str(part.get("text") or "") for part in content if _is(part, "text"))
    return str(content or "") + str(delta.get("refusal") or "")


def _thought_in(delta: Mapping[str, Any]) -> str:
    for name in ("reasoning_content", "reasoning", "thinking"):
        found = delta.get(name)
        if isinstance(found, str) and found:
            return found
    content = delta.get("content")
    if not isinstance(content, list):
        return ""
    thoughts = [part.get("thinking") for part in content if _is(part, "thinking")]
    inner = [each if isinstance(each, list) else [{"text": each}] for each in thoughts]
    return "".join(str(part.get("text") or "") for parts in inner for part in parts)


def _is(part: Any, kind: str) -> bool:
    return isinstance(part, Mapping) and part.get("type") == kind


def _likelihoods(told: Any) -> list[tuple[Likelihood, tuple[Likelihood, ...]]]:
    """Return each token with its alternatives, from the chat form or the older completion form."""
    if not isinstance(told, Mapping):
        return []
    if isinstance(told.get("content"), list):
        return [
            (_likelihood(each), tuple(map(_likelihood, each.get("top_logprobs") or ())))
            for each in told["content"]
            if each.get("logprob") is not None
        ]
    rows = zip(
        told.get("tokens") or (),
        told.get("token_logprobs") or (),
        told.get("top_logprobs") or [{}] * len(told.get("tokens") or ()),
        strict=False,
    )
    return [
        (
            Likelihood(token_id=None, text=str(token), logprob=float(logprob)),
            tuple(
                Likelihood(token_id=None, text=str(text), logprob=float(value))
                for text, value in sorted((top or {}).items(), key=lambda item: -item[1])
            ),
        )
        for token, logprob, top in rows
        if logprob is not None
    ]


def _likelihood(entry: Mapping[str, Any]) -> Likelihood:
    known, raw = entry.get("id"), entry.get("bytes")
    text = str(entry.get("token") or "")
    if isinstance(raw, list) and raw and "\ufffd" in text:
        text = bytes(raw).decode("utf-8", "replace")
    token_id = known if isinstance(known, int) else None
    return Likelihood(token_id=token_id, text=text, logprob=float(entry["logprob"]))
