"""What a front end may ask of a chat: each message checked, then done; it may send anything."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.chats.keeping import keep
from workbench.errors import InputError
from workbench.messages import Image
from workbench.widgets.view import Handler, told

if TYPE_CHECKING:
    from workbench.widgets.chat_talk import Talk

_MOST_TEXT = 20_000_000
_MOST_IMAGES, _MOST_IMAGE = 16, 40_000_000
_ID = re.compile(r"[0-9]{1,9}")


def handlers_of(talk: Talk, *, kept: Callable[[], Path]) -> dict[str, Handler]:
    """Return what to do for each type of message but ``hello``; ``kept`` tells the chat's file."""
    # An unread prompt or probability takes long: it must not hold up the thread of all widgets.
    return {
        "send": lambda said: talk.send(_text(said), images=_images(said)),
        "stop": lambda said: talk.stop(),
        "regenerate": lambda said: talk.regenerate(_turn_id(said)),
        "edit": lambda said: talk.edit(_turn_id(said), _text(said)),
        "continue": lambda said: talk.go_on(_turn_id(said)),
        "show": lambda said: talk.show(_turn_id(said)),
        "clear": lambda said: talk.clear(),
        "system": lambda said: talk.set_system(_text(said, empty=True)),
        "settings": lambda said: talk.settings.update(**_settings(said)),
        "reset": lambda said: talk.settings.reset(),
        "prompt": lambda said: _aside(talk, lambda: _tell_prompt(talk, _turn_id_or_none(said))),
        "probabilities": lambda said: _aside(
            talk, lambda: _tell_probabilities(talk, _turn_id(said))
        ),
        "save": lambda said: _save(talk, said, kept),
    }


def _aside(talk: Talk, work: Callable[[], None]) -> None:
    """Do it in a thread of its own; what it raises goes to the front end."""

    def run() -> None:
        try:
            work()
        except Exception as error:
            talk.listener.tell("error", **told(error))

    threading.Thread(target=run, name="chat-aside", daemon=True).start()


def _tell_prompt(talk: Talk, turn_id: str | None) -> None:
    talk.listener.tell("prompt", id=turn_id, **talk.prompt(turn_id).as_dict())


def _tell_probabilities(talk: Talk, turn_id: str) -> None:
    talk.listener.tell("probabilities", id=turn_id, **talk.probabilities(turn_id).as_dict())


def _save(talk: Talk, said: Mapping[str, Any], kept: Callable[[], Path]) -> None:
    kind = said.get("kind")
    if kind not in ("jsonl", "md"):
        raise InputError(f"A conversation is saved as jsonl or md, not as {str(kind)[:20]!r}.")
    if kind == "jsonl":
        path = keep(talk.dialogue, kept().parent)  # a save never overwrites what others keep there
    else:
        path = talk.dialogue.save(kept().with_suffix(".md"))
    talk.listener.tell("saved", path=str(path))


def _text(said: Mapping[str, Any], *, empty: bool = False) -> str:
    text = said.get("text")
    if not isinstance(text, str):
        raise InputError("The front end sent no text.")
    if not empty and not text.strip() and not said.get("images"):
        raise InputError("The message is empty.", hint="Write something first.")
    if len(text) > _MOST_TEXT:
        raise InputError(
            f"The message has {len(text):,} characters; at most {_MOST_TEXT:,} are taken."
        )
    return text


def _turn_id(said: Mapping[str, Any]) -> str:
    turn_id = said.get("id")
    if not isinstance(turn_id, str) or not _ID.fullmatch(turn_id):
        raise InputError(f"The front end named the turn {str(turn_id)[:20]!r}, which is no turn.")
    return turn_id


def _turn_id_or_none(said: Mapping[str, Any]) -> str | None:
    return None if said.get("id") is None else _turn_id(said)


def _settings(said: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in said.items() if name not in ("type", "seq")}


def _images(said: Mapping[str, Any]) -> tuple[Image, ...]:
    """Return the pictures: only ``data:`` URLs, since a name would read a file of this machine."""
    given = said.get("images") or []
    if not isinstance(given, list) or len(given) > _MOST_IMAGES:
        raise InputError(f"At most {_MOST_IMAGES} images are taken with one message.")
    return tuple(_image(each) for each in given)


def _image(given: Any) -> Image:
    url = given.get("url") if isinstance(given, Mapping) else None
    if not isinstance(url, str) or not url.startswith("data:image/"):
        raise InputError("The front end sent an image that is no picture.")
    if len(url) > _MOST_IMAGE:
        raise InputError(f"An image is larger than {_MOST_IMAGE / 1e6:.0f} MB.")
    return Image.of(Image.of(url).data)  # its bytes say what it is, not its label
