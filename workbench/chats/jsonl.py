"""A dialogue as JSON lines: its facts first, then one line a turn; read back it is equal."""

from __future__ import annotations

import json
from typing import Any

from workbench.chats.dialogue import Dialogue
from workbench.errors import InputError


def as_jsonl(dialogue: Dialogue) -> bytes:
    """Return the file's bytes: UTF-8, one object a line."""
    whole = dialogue.as_dict()
    turns = whole.pop("turns")
    return b"".join(_line(each) for each in (whole, *turns))


def from_jsonl(data: bytes, *, source: str) -> Dialogue:
    """Return the dialogue of such a file.

    Args:
        data: The file's bytes.
        source: Its name, for errors.

    Raises:
        InputError: A line is damaged, or it is no dialogue.
    """
    values = [
        _read(line, f"{source}, line {n}") for n, line in enumerate(data.split(b"\n"), 1) if line
    ]
    if not values:
        raise InputError(f"{source} is empty.")
    try:
        return Dialogue.from_dict({**values[0], "turns": values[1:]})
    except InputError as error:
        raise InputError(f"{source}: {error.message}") from None


def _line(values: dict[str, Any]) -> bytes:
    try:
        return json.dumps(values, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair: only an escape can hold it
        return json.dumps(values).encode() + b"\n"


def _read(line: bytes, place: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place} is damaged: {error}.") from None
    if not isinstance(found, dict):
        raise InputError(f"{place} holds a {type(found).__name__}, not an object.")
    return found
