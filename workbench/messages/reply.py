"""What a model says: pieces of a stream, and the whole reply with its counts and times."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable
from typing import Any, Literal

from workbench.messages.message import ToolCall

FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "error", "interrupted"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one reply, as the engine counted them."""

    prompt_tokens: int
    completion_tokens: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Times of one reply.

    Attributes:
        ttft: Time to first token in seconds, from the request to the first sampled token.
        total: Seconds from the request to the end.
        prefill_tokens_per_second: Prompt tokens / ttft.
        decode_tokens_per_second: (completion tokens - 1) / (total - ttft); None for one token.
    """

    ttft: float
    total: float
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None

    @classmethod
    def measured(cls, *, ttft: float, total: float, usage: Usage) -> Timings:
        """Derive the two rates from the clock readings (seconds) and token counts."""
        decoded, span = usage.completion_tokens - 1, total - ttft
        return cls(
            ttft=ttft,
            total=total,
            prefill_tokens_per_second=usage.prompt_tokens / ttft if ttft > 0 else None,
            decode_tokens_per_second=decoded / span if decoded > 0 and span > 0 else None,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """One candidate for a token.

    Attributes:
        token_id: Its id, or None where a server does not tell.
        text: What it adds to the text, with U+FFFD for a part of a character.
        logprob: Natural log of its probability under the model, before temperature and cuts.
    """

    token_id: int | None
    text: str
    logprob: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One step of a stream; joined ``text`` of all pieces is the whole reply, byte for byte.

    Attributes:
        text: Text delta, never a broken character; may be empty.
        thinking: Delta of the thinking part, where the model has one.
        tool_call: One whole tool call.
        token_id: Id of the sampled token, where the engine knows it.
        logprob: Natural log of the token's probability, where ``top_logprobs`` asked for it.
        top: The likeliest candidates at this place, the best first, where asked for.
        finish_reason: Set on the last piece only.
        usage: Token counts, on the last piece only.
        timings: Times, on the last piece only.
    """

    text: str = ""
    thinking: str = ""
    tool_call: ToolCall | None = None
    token_id: int | None = None
    logprob: float | None = None
    top: tuple[Likelihood, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole reply; displays itself in a notebook with its timings.

    Attributes:
        text: The answer, without the thinking part.
        thinking: The thinking part, or "".
        token_ids: Sampled token ids, where the engine knows them.
        tool_calls: What the model wants to call; nothing is run by itself.
        logprobs: Log-probability and alternatives of each token, where asked for.
        finish_reason: ``stop``, ``length``, ``tool_calls``, ``cancelled`` or ``error``; in a kept
            conversation also ``interrupted``: the process ended before the answer did.
        usage: Token counts, or None where the engine does not say.
        timings: Times, or None where the engine does not say.
        model: Label of the model that answered.
        fallback_from: Ids of the cards that could not be loaded before it, the wanted one first.
        error: Why there is no answer, when ``finish_reason`` is ``error`` (``ask_many`` only).
    """

    text: str
    thinking: str = ""
    token_ids: tuple[int, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[tuple[float, tuple[Likelihood, ...]], ...] = ()
    finish_reason: FinishReason = "stop"
    usage: Usage | None = None
    timings: Timings | None = None
    model: str = ""
    fallback_from: tuple[str, ...] = ()
    error: str = ""

    @classmethod
    def joined(cls, pieces: Iterable[Piece], *, model: str = "") -> Reply:
        """Consume a stream and return the reply it makes."""
        text: list[str] = []
        thinking: list[str] = []
        ids: list[int] = []
        calls: list[ToolCall] = []
        logprobs: list[tuple[float, tuple[Likelihood, ...]]] = []
        last = Piece()
        for piece in pieces:
            text.append(piece.text)
            thinking.append(piece.thinking)
            if piece.token_id is not None:
                ids.append(piece.token_id)
            if piece.tool_call is not None:
                calls.append(piece.tool_call)
            if piece.logprob is not None:
                logprobs.append((piece.logprob, piece.top))
            last = piece
        return cls(
            text="".join(text),
            thinking="".join(thinking),
            token_ids=tuple(ids),
            tool_calls=tuple(calls),
            logprobs=tuple(logprobs),
            finish_reason=last.finish_reason or "stop",
            usage=last.usage,
            timings=last.timings,
            model=model,
        )

    def __str__(self) -> str:
        return self.text

    def summary(self) -> str:
        """Return one line: model, tokens, TTFT, decode speed, finish reason."""
        parts = [self.model] if self.model else []
        if self.fallback_from:
            parts.append(f"instead of {', '.join(self.fallback_from)}")
        if self.usage is not None:
            parts.append(f"{self.usage.prompt_tokens} + {self.usage.completion_tokens} tokens")
        if self.timings is not None:
            parts.append(f"TTFT {self.timings.ttft * 1000:.0f} ms")
            if self.timings.decode_tokens_per_second is not None:
                parts.append(f"{self.timings.decode_tokens_per_second:.1f} tokens/s")
        parts.append(f"{self.finish_reason}: {self.error}" if self.error else self.finish_reason)
        return " · ".join(parts)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        # Model output is untrusted text: escaped, and only tags that survive nbconvert's sanitiser.
        lines = [html.escape(line) or "&#160;" for line in self.text.split("\n")]
        body = "".join(f"<div>{line}</div>" for line in lines)
        note = f"<div><i>{html.escape(self.summary())}</i></div>"
        folded = f"<div><i>{html.escape(self.thinking)}</i></div>" if self.thinking else ""
        return {
            "text/plain": f"{self.text}\n[{self.summary()}]",
            "text/html": f"<div>{folded}<div>{body}</div>{note}</div>",
        }
