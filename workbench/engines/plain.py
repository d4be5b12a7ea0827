"""Plans, pieces, replies and errors as plain data, for the way between two processes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from workbench import errors
from workbench.engines import death
from workbench.messages import (
    Likelihood,
    Message,
    Piece,
    Reply,
    Sampling,
    Timings,
    ToolCall,
    Usage,
    as_messages,
)
from workbench.planning import Plan

_FIGURES = ("needed", "free", "changes")
"""What a MemoryShortError carries beside its words."""


def from_plan(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data, with the whole card and every file."""
    files = plan.files
    return {
        **plan.describe(),
        "card": plan.card.model_dump(mode="json"),
        "files": None
        if files is None
        else {
            **{field.name: getattr(files, field.name) for field in dataclasses.fields(files)},
            "path": str(files.path),
            "weights": [str(path) for path in files.weights],
        },
    }


def described(plan: Plan) -> dict[str, Any]:
    """Return a plan for a receipt; an option that is a function is kept by its name."""
    text = json.dumps(plan.describe(), default=lambda value: str(_name_of(value)))
    return dict(json.loads(text))


def _name_of(value: object) -> object:
    return getattr(value, "__qualname__", type(value).__qualname__)


def to_plan(plain: Mapping[str, Any]) -> Plan:
    """Return the plan again."""
    return Plan.of(plain)


def from_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as plain data, images in base64."""
    return [message.as_dict() for message in messages]


def to_messages(plain: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Return the messages again."""
    return as_messages(plain)


def from_sampling(sampling: Sampling) -> dict[str, Any]:
    """Return sampling settings as plain data."""
    return dataclasses.asdict(sampling)


def to_sampling(plain: Mapping[str, Any]) -> Sampling:
    """Return the sampling settings again."""
    return Sampling(**{**plain, "stop": tuple(plain["stop"]), "tools": tuple(plain["tools"])})


def from_piece(piece: Piece) -> dict[str, Any]:
    """Return a piece as plain data, without the fields that are empty."""
    plain = dataclasses.asdict(piece)
    return {name: value for name, value in plain.items() if value not in (None, "", ())}


def to_piece(plain: Mapping[str, Any]) -> Piece:
    """Return the piece again."""
    values = _measured(plain)
    if values.get("tool_call"):
        values["tool_call"] = ToolCall(**values["tool_call"])
    values["top"] = tuple(Likelihood(**each) for each in values.get("top", ()))
    return Piece(**values)


def from_reply(reply: Reply) -> dict[str, Any]:
    """Return a reply as plain data."""
    return dataclasses.asdict(reply)


def to_reply(plain: Mapping[str, Any]) -> Reply:
    """Return the reply again."""
    values = _measured(plain)
    values["token_ids"] = tuple(values.get("token_ids", ()))
    values["fallback_from"] = tuple(values.get("fallback_from", ()))
    values["tool_calls"] = tuple(ToolCall(**call) for call in values.get("tool_calls", ()))
    values["logprobs"] = tuple(
        (chosen, tuple(Likelihood(**each) for each in top))
        for chosen, top in values.get("logprobs", ())
    )
    return Reply(**values)


def _measured(plain: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(plain)
    if values.get("usage"):
        values["usage"] = Usage(**values["usage"])
    if values.get("timings"):
        values["timings"] = Timings(**values["timings"])
    return values


def from_error(error: BaseException) -> dict[str, Any]:
    """Return an error as plain data: its type, what it says, what to do next, and its figures."""
    if isinstance(error, errors.WorkbenchError):
        kept = {name: value for name, value in vars(error).items() if name in _FIGURES}
        return {
            "type": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
            "figures": kept,
        }
    return {
        "type": type(error).__name__,
        "message": str(error),
        "hint": None,
        "memory": death.is_memory(error),
    }


def to_error(plain: Mapping[str, Any], *, changes: Sequence[str] = ()) -> errors.WorkbenchError:
    """Return the error again; one that is not ours becomes an EngineError that names its type.

    Args:
        plain: What ``from_error`` returned.
        changes: What would need less memory, in sentences, told where it ran out.
    """
    known = getattr(errors, str(plain["type"]), None)
    if isinstance(known, type) and issubclass(known, errors.WorkbenchError):
        error = known(plain["message"], hint=plain["hint"])
        for name, value in (plain.get("figures") or {}).items():
            setattr(error, name, tuple(value) if isinstance(value, list) else value)
        return error
    hint = death.advice(changes) if plain.get("memory") else None
    return errors.EngineError(f"{plain['type']}: {plain['message']}", hint=hint)
