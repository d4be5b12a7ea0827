"""Adds a model to the user's catalog: reads its headers and writes its card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.catalog.card import Card, expanded
from workbench.catalog.card_text import write_card
from workbench.catalog.folder import Placed, is_card_file, only_card, user_folder
from workbench.catalog.from_files import card_of_path, card_of_repository, with_facts
from workbench.errors import InputError, NotFoundError
from workbench.paths import shipped

if TYPE_CHECKING:
    from workbench.catalog.shelf import Shelf

_REPOSITORY = re.compile(r"(?:https?://)?(?:huggingface\.co/|hf\.co/)?([\w.-]+/[\w.-]+)/?")


def add_card(
    shelf: Shelf,
    source: str | Path,
    *,
    card_id: str | None = None,
    display_name: str | None = None,
    replace: bool = False,
) -> Placed:
    """Write the card of a model into the user's folder, whole or not at all.

    Args:
        shelf: The catalog that the card must fit into.
        source: A local folder or file, a card file, or a hub repository.
        card_id: The card's id; default is made of the source's name.
        display_name: The name shown in tables.
        replace: Overwrite a card that has this id.

    Raises:
        NotFoundError: There is no such path, and it is no repository's name.
        InputError: The source is no model, or the id is taken.
    """
    card = _card_of(str(source), shelf)
    changes: dict[str, Any] = {"id": card_id or card.id, "display_name": display_name}
    given = {key: value for key, value in changes.items() if value is not None}
    card = Card.of({**card.given(), **given}, source=str(source))
    shelf.check_fallback(card)
    path = _free_path(shelf, card.id, replace=replace)
    try:
        write_card(card, path, new=not replace)
    except FileExistsError:
        raise _taken(card.id, str(path)) from None
    except OSError as error:
        raise InputError(f"The card {path} cannot be written: {error.strerror}.") from None
    return Placed(card=card, path=path, origin="user")


def _card_of(source: str, shelf: Shelf) -> Card:
    path = expanded(source)
    if path.exists():
        if is_card_file(path):
            return with_facts(_alone(only_card(path, shelf.placed)))
        return _lower(card_of_path(path.resolve()))
    found = _REPOSITORY.fullmatch(source)
    if found is None or source.startswith((".", "/", "~")):
        raise NotFoundError(
            f"There is no {source}: no such path exists, and it is no repository's name.",
            hint="Give a folder, a .gguf file, or a repository as org/name.",
        )
    return _lower(card_of_repository(found[1]))


def _alone(card: Card) -> Card:
    """Make a card that may extend a shipped one stand without it."""
    given = {key: value for key, value in card.given().items() if key != "extends"}
    for key in ("path", "projector"):
        if key in given and not expanded(given[key]).is_absolute():
            given[key] = str(shipped(*Path(given[key]).parts))
    return Card.of(given)


def _lower(card: Card) -> Card:
    """Give a card made from files an id as the catalog spells them."""
    return Card.of({**card.given(), "id": card.id.lower()})


def _free_path(shelf: Shelf, card_id: str, *, replace: bool) -> Path:
    """Return the file for a card, which is new unless it may be replaced."""
    path = user_folder() / f"{card_id}.yaml"
    if card_id in shelf and shelf.origin(card_id) == "user":
        path = shelf.file(card_id)
        if path.suffix == ".json" or path.parent != user_folder():
            raise InputError(
                f"The card {card_id} is in {path}, which is not written to.",
                hint="Change it there, or give another id (--id).",
            )
    if replace:
        return path
    if card_id in shelf or path.exists():
        raise _taken(card_id, str(path) if path.exists() else "a card that ships")
    return path


def _taken(card_id: str, where: str) -> InputError:
    return InputError(
        f"There is a card {card_id} already: {where}.",
        hint="Give another id (--id), or put yours in its place (--replace).",
    )
