"""One turn of a dialogue, and its plain form: the message, the reply with its figures, how made."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.chats.markdown import clean
from workbench.errors import InputError
from workbench.messages import (
    Likelihood,
    Message,
    Reply,
    Role,
    Sampling,
    Timings,
    ToolCall,
    Usage,
    as_messages,
)

CUT_OFF = ("cancelled", "error", "interrupted")
"""Why answers end that did not come to their end."""

_REPLY_DEFAULTS = {
    field.name: field.default for field in dataclasses.fields(Reply) if field.name != "text"
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """One node of a dialogue; never changed in place, ``Dialogue.finish`` puts another there.

    Attributes:
        id: "1", "2", ... unique in its dialogue, in order of making.
        parent: The turn that it follows, None for the first.
        message: What was said.
        reply: The answer with its figures, for a finished assistant's turn.
        sampling: Settings in force as plain data, for an assistant's turn.
        model: Label of the model that answers.
        made_by: What the model is, as ``made_by`` tells; empty where it is the dialogue's.
        system: System prompt in force, for an assistant's turn.
        error: Why an answer failed, or None.
        time: When it was made, ISO 8601 with its offset.
    """

    id: str
    parent: str | None
    message: Message
    reply: Reply | None = None
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: str = ""
    made_by: dict[str, Any] = dataclasses.field(default_factory=dict)
    system: str = ""
    error: str | None = None
    time: str = ""

    @property
    def role(self) -> Role:
        """Who speaks: ``user``, ``assistant`` or ``tool``."""
        return self.message.role

    @property
    def text(self) -> str:
        """What was said, without the thinking."""
        return self.message.content

    @property
    def open(self) -> bool:
        """Whether it is an answer that has neither come to an end nor failed."""
        return self.role == "assistant" and self.reply is None and self.error is None

    @property
    def silent(self) -> bool:
        """Whether it is an answer that is open, failed or was stopped before its first word."""
        if self.role != "assistant" or self.text or self.message.tool_calls:
            return False
        ended = self.reply is not None and self.reply.finish_reason not in CUT_OFF
        return not ended or self.error is not None

    def filled(self, reply: Reply) -> Turn:
        """Return the answer with what was said, in full or in part."""
        message = Message("assistant", reply.text, tool_calls=reply.tool_calls)
        model = self.model or reply.model
        return dataclasses.replace(self, message=message, reply=reply, model=model)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data; what is at its default is left out."""
        found: dict[str, Any] = {
            "id": self.id,
            "parent": self.parent,
            **self.message.as_dict(),
            "time": self.time,
        }
        if self.reply is not None:
            found["reply"] = reply_as_dict(self.reply)
            if self.reply.text == self.text:
                found["reply"].pop("text", None)  # not the same twice
            if self.reply.tool_calls == self.message.tool_calls:
                found["reply"].pop("tool_calls", None)
            elif not self.reply.tool_calls:
                found["reply"]["tool_calls"] = []
        for name in ("sampling", "model", "made_by", "system", "error"):
            if getattr(self, name):
                found[name] = getattr(self, name)
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Turn:
        """Return the turn that ``as_dict`` made plain.

        Raises:
            InputError: It is no turn.
        """
        try:
            parent, message = values["parent"], as_messages([values])[0]
            reply = values.get("reply")
            if reply is not None:
                calls = [call.as_dict() for call in message.tool_calls]
                reply = reply_of({"text": message.content, "tool_calls": calls, **reply})
            return cls(
                id=str(values["id"]),
                parent=None if parent is None else str(parent),
                message=message,
                reply=reply,
                sampling=dict(values.get("sampling") or {}),
                model=str(values.get("model") or ""),
                made_by=dict(values.get("made_by") or {}),
                system=str(values.get("system") or ""),
                error=str(values["error"]) if values.get("error") else None,
                time=str(values.get("time") or ""),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"This is no turn: {type(error).__name__}: {error}.") from None


def reply_as_dict(reply: Reply) -> dict[str, Any]:
    """Return a reply as plain data without what is at its default; ``reply_of`` reads it."""
    found: dict[str, Any] = {"text": reply.text}
    for name, default in _REPLY_DEFAULTS.items():
        value = getattr(reply, name)
        if value == default:
            continue
        if name == "tool_calls":
            value = [call.as_dict() for call in value]
        elif name == "logprobs":
            value = [[_number(p), [_candidate(each) for each in top]] for p, top in value]
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        found[name] = plain(value)
    return found


def reply_of(values: Mapping[str, Any]) -> Reply:
    """Return the reply that ``reply_as_dict`` made plain.

    Raises:
        InputError: It is no reply.
    """
    given = dict(values)
    try:
        if given.get("usage") is not None:
            given["usage"] = Usage(**given["usage"])
        if given.get("timings") is not None:
            given["timings"] = Timings(**given["timings"])
        given["tool_calls"] = tuple(_call(each) for each in given.get("tool_calls") or ())
        given["logprobs"] = tuple(
            (float(p), tuple(_likelihood(each) for each in top))
            for p, top in given.get("logprobs") or ()
        )
        for name in ("token_ids", "fallback_from"):
            given[name] = tuple(given.get(name) or ())
        return Reply(**given)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"This is no reply: {type(error).__name__}: {error}.") from None


def plain_sampling(sampling: Sampling | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return sampling settings as plain data; ``sampling_of`` reads it."""
    if sampling is None:
        return {}
    if isinstance(sampling, Sampling):
        names = [field.name for field in dataclasses.fields(Sampling)]
        sampling = {name: getattr(sampling, name) for name in names}
    found: dict[str, Any] = plain(sampling)
    return found


def sampling_of(values: Mapping[str, Any]) -> Sampling:
    """Return the settings that ``plain_sampling`` made plain; names unknown here are ignored.

    Raises:
        InputError: A value is out of range.
    """
    known = {field.name for field in dataclasses.fields(Sampling)}
    given = {name: value for name, value in values.items() if name in known}
    for name in ("stop", "tools"):
        if given.get(name) is not None:
            given[name] = tuple(given[name])
    return Sampling.of(None, **given)


def beginning(text: str, longest: int) -> str:
    """Return a text in one line of at most ``longest`` characters, with nothing unseen in it."""
    line = " ".join(clean(text[: longest * 8]).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def plain(value: Any) -> Any:
    """Return a value as JSON would hand it back: lists for tuples, text for what it lacks."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return str(value)


def now() -> str:
    """Return the time as turns and dialogues have it: ISO 8601 in UTC, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON has no infinity


def _candidate(each: Likelihood) -> list[Any]:
    return [each.token_id, each.text, _number(each.logprob)]


def _likelihood(values: Sequence[Any]) -> Likelihood:
    token_id, text, logprob = values
    return Likelihood(token_id=token_id, text=str(text), logprob=float(logprob))


def _call(values: Mapping[str, Any]) -> ToolCall:
    function = values["function"]
    return ToolCall(name=function["name"], arguments=function["arguments"], id=values["id"])
