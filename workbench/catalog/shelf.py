"""The shelf: reads the cards that ship and the user's own, and finds one by id or path."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.catalog.card import Card, expanded
from workbench.catalog.folder import (
    BadCard,
    Origin,
    Placed,
    card_folders,
    is_card_file,
    nearest_hint,
    only_card,
    read_folder,
    user_folder,
)
from workbench.catalog.found import Found
from workbench.errors import InputError, NotFoundError, WorkbenchError, nearest
from workbench.figures import Table

if TYPE_CHECKING:
    from workbench.catalog.disk import Downloaded
    from workbench.catalog.prune import Pruning

_PATH_ENDINGS = (".gguf", ".safetensors", ".json", ".yaml", ".yml", ".bin")
_told: set[str] = set()


class Shelf:
    """All cards by id; a user's card takes the place of a shipped one with the same id.

    A user's card that is wrong is told once, as a warning, and left out; asking for it by its
    id raises what is wrong with it.

    Args:
        folders: Folders of cards, a later one going before an earlier one, in which no card may
            be wrong; default is what ships, the user's folder, and those in WORKBENCH_CARDS.

    Raises:
        InputError: A card that ships is wrong, or one in the named folders.
    """

    def __init__(self, folders: tuple[Path, ...] | None = None) -> None:
        self.folders = folders or card_folders()
        self.fits: Callable[[Card], bool | None] | None = None  # bound from planning, above here
        self.bad: list[BadCard] = []
        layers: list[dict[str, Placed]] = []
        for folder in self.folders:
            found, bad = read_folder(folder, _topmost(layers))
            layers.append(found)
            self.bad += bad
        self._placed = self._without_bad_fallbacks(layers)
        for card in self.bad:
            if folders is not None:
                raise card.error
            _tell(card)

    def __iter__(self) -> Iterator[Card]:
        return (placed.card for placed in self._placed.values())

    def __len__(self) -> int:
        return len(self._placed)

    def __contains__(self, card_id: str) -> bool:
        return card_id in self._placed

    def __getitem__(self, card_id: str) -> Card:
        return self._find(card_id).card

    def origin(self, card_id: str) -> Origin:
        """Return where a card came from: ``shipped`` or ``user``."""
        return self._find(card_id).origin

    def file(self, card_id: str) -> Path:
        """Return the file of a card."""
        return self._find(card_id).path

    @property
    def placed(self) -> Mapping[str, Placed]:
        """All cards by id, with their files."""
        return self._placed

    def search(self, words: str | Sequence[str] = "", **conditions: Any) -> Found:
        """Return the cards that meet every condition; see ``workbench.catalog.search.search``.

        Args:
            words: All must stand in the card.
            conditions: ``task``, ``language``, ``size``, ``licence``, ``engine``, ``verified``,
                ``gated``, ``family``, ``fits``, ``where``, and ``sort``.
        """
        from workbench.catalog.search import search

        return search(self, words, **conditions)

    def check_fallback(self, card: Card) -> None:
        """Check the fallback of a card that is to be put on the shelf.

        Raises:
            NotFoundError: It is no card.
            InputError: It leads back to the card.
        """
        if error := self._bad_fallback(card, {**self._placed, card.id: _new(card)}):
            raise error

    def fallbacks(self, card: Card | str) -> tuple[Card, ...]:
        """Return the cards to load, in order, where this one cannot be.

        Raises:
            NotFoundError: A fallback is no card.
            InputError: The fallbacks lead back to a card before.
        """
        current = self[card] if isinstance(card, str) else card
        chain = [current]
        while current.fallback is not None:
            if current.fallback in [step.id for step in chain]:
                raise _cycle([*(step.id for step in chain), current.fallback])
            if current.fallback not in self:
                self._raise_if_bad(current.fallback)
                raise _no_fallback(current, self._placed)
            current = self[current.fallback]
            chain.append(current)
        return tuple(chain[1:])

    def add(
        self,
        source: str | Path,
        *,
        card_id: str | None = None,
        display_name: str | None = None,
        replace: bool = False,
    ) -> Card:
        """Write a card for a model into the user's folder and put it on the shelf.

        Args:
            source: A folder of safetensors, a .gguf file, a card (.yaml), a llama.cpp user's
                .json, or a hub repository (``org/name``), of which only headers are read.
            card_id: The card's id; default is made of the source's name.
            display_name: The name shown in tables.
            replace: Overwrite a card that has this id.

        Raises:
            InputError: The source is no model, or the id is taken.
        """
        from workbench.catalog.add import add_card

        placed = add_card(self, source, card_id=card_id, display_name=display_name, replace=replace)
        self._placed[placed.card.id] = placed
        return placed.card

    def downloaded(self) -> Downloaded:
        """Return every model on this disk; see ``workbench.catalog.disk.downloaded``."""
        from workbench.catalog.disk import downloaded

        return downloaded(self)

    def prune(self, model: str | None = None, **conditions: Any) -> Pruning:
        """Return what would be removed, not yet doing it; see ``workbench.catalog.prune.prune``.

        Args:
            model: A card's id or a repository.
            conditions: ``partial``, ``older_than`` (days), ``converted``.
        """
        from workbench.catalog.prune import prune

        return prune(self, model=model, **conditions)

    def table(self) -> Table:
        """Return one row per card: id, size, context, languages, tasks, licence, source."""
        rows = [
            {
                "id": placed.card.id,
                "parameters": placed.card.architecture.parameters,
                "context": placed.card.context_length,
                "languages": ", ".join(placed.card.languages),
                "tasks": ", ".join(placed.card.tasks),
                "licence": placed.card.licence,
                "card": placed.origin,
                "source": _source(placed.card),
            }
            for placed in self._placed.values()
        ]
        return Table(rows, caption=f"{len(rows)} cards")

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.table()._repr_mimebundle_()

    def _find(self, card_id: str) -> Placed:
        if card_id not in self._placed:
            self._raise_if_bad(card_id)
            raise NotFoundError(
                f"There is no model {card_id!r}: no card has this id, and no such path exists.",
                hint=nearest_hint(card_id, self._placed),
            )
        return self._placed[card_id]

    def _raise_if_bad(self, card_id: str) -> None:
        for bad in self.bad:
            if bad.card_id == card_id:
                raise bad.error

    def _without_bad_fallbacks(self, layers: list[dict[str, Placed]]) -> dict[str, Placed]:
        """Take away the user's cards whose fallback is no card or leads back to themselves."""
        while True:
            cards = _topmost(layers)
            bad = [
                BadCard(card_id=placed.card.id, path=placed.path, error=error)
                for placed in cards.values()
                if placed.origin == "user" and (error := self._bad_fallback(placed.card, cards))
            ]
            if not bad:
                return cards
            self.bad += bad
            for layer in layers:
                for card in bad:
                    if card.card_id in layer and layer[card.card_id].path == card.path:
                        del layer[card.card_id]

    def _bad_fallback(self, card: Card, cards: Mapping[str, Placed]) -> WorkbenchError | None:
        seen = [card.id]
        step = card.fallback
        if step is not None and step not in cards:
            # A fallback whose own card is bad says so when it is asked for.
            return None if step in {bad.card_id for bad in self.bad} else _no_fallback(card, cards)
        while step is not None and step in cards and step not in seen:
            seen.append(step)
            step = cards[step].card.fallback
        return _cycle([*seen, card.id]) if step == card.id else None


def catalog() -> Shelf:
    """Return the shelf as it is now."""
    return Shelf()


def resolve(model: str | Path | Card) -> Card:
    """Return the card of an id, a repository, a folder of safetensors, a GGUF file or a card file.

    Raises:
        NotFoundError: No card has this id or repository, and no such path exists.
        InputError: The folder or file holds no model.
    """
    if isinstance(model, Card):
        return _with_facts(model)
    text = str(model)
    if not text.strip():
        raise InputError("The model's name is empty.", hint="workbench models lists the cards.")
    shelf = catalog()
    if isinstance(model, str) and text in shelf:
        return _with_facts(shelf[text])
    path = expanded(text)
    if path.exists():
        if is_card_file(path):
            return _with_facts(only_card(path.resolve(), shelf.placed))
        from workbench.catalog.from_files import card_of_path

        return card_of_path(path.resolve())
    if isinstance(model, Path) or "/" in text or text.lower().endswith(_PATH_ENDINGS):
        found = [card for card in shelf if (card.repository or "").lower() == text.lower()]
        if found:
            return found[0]
        raise NotFoundError(f"The model path {text} does not exist.", hint=_path_hint(text, shelf))
    return shelf[text]


def _with_facts(card: Card) -> Card:
    """Let the files of a card speak where it names them and no facts."""
    if card.path is None or card.architecture.layers is not None:
        return card
    from workbench.catalog.from_files import with_facts

    return with_facts(card)


def _path_hint(text: str, shelf: Shelf) -> str:
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        known = [card.repository for card in shelf if card.repository]
        close = nearest(text, known)
        known_hint = f"Did you mean {close!r}? " if close else ""
        return f"{known_hint}For a repository of the hub write: workbench models add {text}"
    return "Check the path, or give a card id (workbench models lists them)."


def _new(card: Card) -> Placed:
    return Placed(card=card, path=user_folder() / f"{card.id}.yaml", origin="user")


def _topmost(layers: list[dict[str, Placed]]) -> dict[str, Placed]:
    cards: dict[str, Placed] = {}
    for layer in layers:
        cards |= layer
    return cards


def _source(card: Card) -> str | None:
    remote = card.remote.url if card.remote else None
    told = f"{card.unverified_repository} (unverified)" if card.unverified_repository else None
    return card.path or card.repository or remote or told


def _cycle(chain: list[str]) -> InputError:
    return InputError(
        f"The fallbacks of {chain[0]} lead back: {' -> '.join(chain)}.",
        hint="Take one of them away.",
    )


def _no_fallback(card: Card, cards: Mapping[str, Placed]) -> NotFoundError:
    return NotFoundError(
        f"The card {card.id} falls back to {card.fallback!r}, which is no card.",
        hint=nearest_hint(str(card.fallback), cards),
    )


def _tell(bad: BadCard) -> None:
    """Warn once of a card that is left out."""
    text = str(bad.error)
    where = "" if str(bad.path) in text else f"{bad.path}: "
    message = f"{where}{text}" + (" The card is left out." if bad.card_id else "")
    if message not in _told:
        _told.add(message)
        warnings.warn(message, UserWarning, stacklevel=4)
