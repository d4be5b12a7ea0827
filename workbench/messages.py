"""The values that travel between rooms: Message, Sampling, Piece, Usage, Timings, Reply."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from workbench.errors import InputError, did_you_mean

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "cancelled", "error"]
ROLES: tuple[str, ...] = ("system", "user", "assistant", "tool")


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool``.
        content: The turn's text.
    """

    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        """Return the OpenAI form, ``{"role": ..., "content": ...}``."""
        return {"role": self.role, "content": self.content}


MessageLike = Message | Mapping[str, Any]
Conversation = str | Sequence[MessageLike]


def as_messages(conversation: Conversation) -> tuple[Message, ...]:
    """Turn what a user wrote into messages: a string is one user turn.

    Raises:
        InputError: A turn has an unknown role, no text, or the list is empty.
    """
    if isinstance(conversation, str):
        return (Message("user", conversation),)
    messages = tuple(_as_message(turn, index) for index, turn in enumerate(conversation))
    if not messages:
        raise InputError("The conversation is empty.", hint="Give at least one user message.")
    return messages


def _as_message(turn: MessageLike, index: int) -> Message:
    if isinstance(turn, Message):
        return turn
    if not isinstance(turn, Mapping):
        raise InputError(
            f"Message {index} is a {type(turn).__name__}, not a mapping with role and content."
        )
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise InputError(
            f"Message {index} has the role {role!r}.", hint=did_you_mean(str(role), ROLES)
        )
    if not isinstance(content, str):
        raise InputError(f"Message {index} ({role}) has no text content: {content!r}.")
    return Message(role, content)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen; the default is greedy, so that results repeat.

    Attributes:
        max_tokens: Most new tokens, 1 or more.
        temperature: 0 is greedy; above 0 samples from softmax(logits / temperature).
        top_p: Nucleus mass in (0, 1]; 1 keeps all.
        top_k: Candidates kept, 0 keeps all.
        min_p: Least probability relative to the best token, in [0, 1]; 0 keeps all.
        repetition_penalty: 1 is none; above 1 discourages tokens seen so far.
        seed: Seed of the sampler, or None for a fresh one each time.
        stop: Strings that end the reply; they are not part of it.
        ignore_end: Go on after an end token, up to ``max_tokens``: to measure speed.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_end: bool = False

    def __post_init__(self) -> None:
        stop: object = self.stop
        object.__setattr__(self, "stop", (stop,) if isinstance(stop, str) else tuple(self.stop))
        checks = (
            ("max_tokens", self.max_tokens >= 1, "1 or more"),
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("stop", all(isinstance(s, str) and s for s in self.stop), "non-empty strings"),
        )
        for name, holds, rule in checks:
            if not holds:
                raise InputError(f"{name} must be {rule}, not {getattr(self, name)!r}.")

    @classmethod
    def of(cls, base: Sampling | None = None, **changes: Any) -> Sampling:
        """Return ``base`` (or the default) with ``changes``; an unknown name is refused.

        Raises:
            InputError: A name is not a sampling setting, or a value is out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name in changes:
            if name not in known:
                raise InputError(
                    f"{name!r} is not a sampling setting.", hint=did_you_mean(name, known)
                )
        given = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(base or cls(), **given)


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
class Piece:
    """One step of a stream; joined ``text`` of all pieces is the whole reply, byte for byte.

    Attributes:
        text: Text delta, never a broken character; may be empty.
        thinking: Delta of the thinking part, where the model has one.
        tool_call: One tool call as the engine reports it.
        token_id: Id of the sampled token, where the engine knows it.
        finish_reason: Set on the last piece only.
        usage: Token counts, on the last piece only.
        timings: Times, on the last piece only.
    """

    text: str = ""
    thinking: str = ""
    tool_call: Mapping[str, Any] | None = None
    token_id: int | None = None
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
        finish_reason: ``stop``, ``length``, ``cancelled`` or ``error``.
        usage: Token counts, or None where the engine does not say.
        timings: Times, or None where the engine does not say.
        model: Label of the model that answered.
        error: Why there is no answer, when ``finish_reason`` is ``error`` (``ask_many`` only).
    """

    text: str
    thinking: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason = "stop"
    usage: Usage | None = None
    timings: Timings | None = None
    model: str = ""
    error: str = ""

    @classmethod
    def joined(cls, pieces: Iterable[Piece], *, model: str = "") -> Reply:
        """Consume a stream and return the reply it makes."""
        text: list[str] = []
        thinking: list[str] = []
        ids: list[int] = []
        last = Piece()
        for piece in pieces:
            text.append(piece.text)
            thinking.append(piece.thinking)
            if piece.token_id is not None:
                ids.append(piece.token_id)
            last = piece
        return cls(
            text="".join(text),
            thinking="".join(thinking),
            token_ids=tuple(ids),
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
        body = html.escape(self.text).replace("\n", "<br>")
        note = f"<br><i>{html.escape(self.summary())}</i>"
        folded = f"<div><i>{html.escape(self.thinking)}</i></div>" if self.thinking else ""
        return {
            "text/plain": f"{self.text}\n[{self.summary()}]",
            "text/html": f"<div>{folded}<div>{body}</div>{note}</div>",
        }
