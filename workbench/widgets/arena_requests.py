"""What a front end may ask of an arena: each message checked, then done; it may send anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.errors import InputError
from workbench.messages import Message
from workbench.widgets.arena_play import Play
from workbench.widgets.chat_talk import clean_text
from workbench.widgets.view import Handler

_MOST_TEXT = 20_000_000


def handlers_of(play: Play) -> dict[str, Handler]:
    """Return what to do for each type of message but ``hello``."""
    return {
        "ask": lambda said: play.ask(
            Message("user", _text(said)), follow=said.get("follow") is True
        ),
        "next": lambda said: play.next(),
        "stop": lambda said: play.stop(_number(said, "place", least=0)),
        "vote": lambda said: play.vote(_choice(said), number=_number(said, "round")),
        "reveal": lambda said: play.reveal(_number(said, "round")),
        "differences": lambda said: play.differences(
            _number(said, "round"), _number(said, "base", least=0) or 0
        ),
    }


def _text(said: Mapping[str, Any]) -> str:
    text = said.get("text")
    if not isinstance(text, str) or not text.strip():
        raise InputError("The prompt is empty.", hint="Write something first.")
    if len(text) > _MOST_TEXT:
        raise InputError(f"The prompt has {len(text):,} characters, more than {_MOST_TEXT:,}.")
    return clean_text(text)


def _number(said: Mapping[str, Any], name: str, *, least: int = 1) -> int | None:
    value = said.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"The front end named the {name} {str(value)[:20]!r}, which is none.")
    return value


def _choice(said: Mapping[str, Any]) -> int | str:
    value = said.get("choice")
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InputError(f"The front end voted {str(value)[:20]!r}, which is no choice.")
    return value
