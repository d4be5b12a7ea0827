"""Folders of cards: those that ship, the user's own, and those that WORKBENCH_CARDS names."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from workbench.catalog.card import Card
from workbench.catalog.copies import copies
from workbench.catalog.llama_cpp_json import beside, card_values, read_entries
from workbench.errors import InputError, NotFoundError, WorkbenchError, nearest
from workbench.paths import outputs, shipped
from workbench.settings import environment, read_yaml

Origin = Literal["shipped", "user"]
ENDINGS = (".yaml", ".yml", ".json")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A card and where it came from.

    Attributes:
        card: The card.
        path: Its file.
        origin: ``shipped`` or ``user``.
    """

    card: Card
    path: Path
    origin: Origin


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BadCard:
    """A card that cannot be used.

    Attributes:
        card_id: Its id, or the file's name where no id could be read.
        path: Its file.
        error: What is wrong.
    """

    card_id: str
    path: Path
    error: WorkbenchError


def user_folder() -> Path:
    """Return the folder of the user's own cards; it need not exist."""
    return outputs("models", "cards")


def card_folders() -> tuple[Path, ...]:
    """Return all folders of cards; a later one goes before an earlier one."""
    named = [part for part in (environment("cards") or "").split(os.pathsep) if part]
    extra = (Path(part).expanduser().resolve() for part in named)
    return (shipped("configs", "models"), user_folder(), *extra)


def is_shipped(folder: Path) -> bool:
    """Whether a folder is the one that ships."""
    return folder == shipped("configs", "models")


def read_folder(
    folder: Path, below: Mapping[str, Placed]
) -> tuple[dict[str, Placed], list[BadCard]]:
    """Read the cards of a folder.

    Args:
        folder: The folder; a missing one is empty.
        below: Cards of the folders before, which these may extend.

    Returns:
        The cards by id, and those that cannot be used: a user's bad card never hides the others.

    Raises:
        InputError: A card that ships is wrong.
    """
    origin: Origin = "shipped" if is_shipped(folder) else "user"
    found: dict[str, Placed] = {}
    bad = _missing(folder)
    twice: set[str] = set()
    for path in card_files(folder):
        for result in _read_file(path, below, origin):
            if isinstance(result, BadCard):
                if origin == "shipped":
                    raise result.error
                bad.append(result)
            elif result.card.id in found or result.card.id in twice:
                first = found.pop(result.card.id, None)
                twice.add(result.card.id)
                bad.append(_same_id(result, first))
            else:
                found[result.card.id] = result
    if origin == "shipped":
        copies().save()
    return found, bad


def card_files(folder: Path) -> list[Path]:
    """Return the files of a folder that hold cards, by name."""
    try:
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError:
        return []
    named = (path for path in inside if path.suffix in ENDINGS and not path.name.startswith("."))
    return [path for path in named if path.is_file() or not path.exists()]


def is_card_file(path: Path) -> bool:
    """Whether a file is a card or llama.cpp users' JSON, by its name."""
    own = ("config.json", "adapter_config.json")  # a model's own files
    return path.suffix in ENDINGS and path.name not in own and not path.is_dir()


def only_card(path: Path, below: Mapping[str, Placed]) -> Card:
    """Return the card of a file that holds one.

    Raises:
        InputError: The file or a card in it is wrong, or it holds several.
    """
    cards = cards_of_file(path, below)
    if len(cards) > 1:
        raise InputError(
            f"{path} holds {len(cards)} models: {', '.join(card.id for card in cards[:8])}.",
            hint=f"Copy it into {user_folder()}: all its models are found there by their ids.",
        )
    return cards[0]


def cards_of_file(path: Path, below: Mapping[str, Placed]) -> list[Card]:
    """Return the cards of one file: a YAML card, or llama.cpp users' JSON.

    Raises:
        InputError: The file or a card in it is wrong.
    """
    cards = []
    for result in _read_file(path, below, "user"):
        if isinstance(result, BadCard):
            raise result.error
        cards.append(result.card)
    return cards


def _read_file(
    path: Path, below: Mapping[str, Placed], origin: Origin
) -> Iterator[Placed | BadCard]:
    """Yield each card of a file, or what is wrong with it."""
    try:
        if origin == "shipped" and path.suffix != ".json":
            stat = path.stat()
            yield Placed(
                card=_unchanged(path, stat.st_size, stat.st_mtime_ns), path=path, origin=origin
            )
            return
        entries = read_entries(path) if path.suffix == ".json" else [read_yaml(path)]
    except WorkbenchError as error:
        yield BadCard(card_id=path.stem, path=path, error=error)
        return
    for entry in entries:
        values = entry
        try:
            if path.suffix == ".json":
                values = card_values(entry, path)
            elif origin == "user":
                values = _extended(_with_own_paths(entry, path), path, below)
            card = Card.of(values, source=str(path))
        except WorkbenchError as error:
            yield BadCard(card_id=_name(values, path), path=path, error=error)
        else:
            yield Placed(card=card, path=path, origin=origin)


@functools.lru_cache(maxsize=1024)
def _unchanged(path: Path, size: int, modified: int) -> Card:
    """Return the card of a file that ships, read once for as long as it stays as it is."""
    return Card.of(copies().values(path, size=size, modified=modified), source=str(path))


def _missing(folder: Path) -> list[BadCard]:
    """Tell a folder that WORKBENCH_CARDS names and that is not there."""
    if folder.is_dir() or is_shipped(folder) or folder == user_folder():
        return []
    error = NotFoundError(
        f"The folder {folder} does not exist.", hint="Correct WORKBENCH_CARDS, or make it."
    )
    return [BadCard(card_id="", path=folder, error=error)]


def _name(values: Any, path: Path) -> str:
    given = values.get("id", values.get("model")) if isinstance(values, dict) else None
    return given if isinstance(given, str) else path.stem


def _with_own_paths(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Make the paths that a user's card gives absolute: they lie beside the card."""
    folder = path.resolve().parent
    return {
        key: beside(value, folder)
        if key in ("path", "projector") and isinstance(value, str)
        else value
        for key, value in values.items()
    }


def _extended(values: dict[str, Any], path: Path, below: Mapping[str, Placed]) -> dict[str, Any]:
    """Put the values of a card over those of the card that it extends."""
    name = values.get("extends")
    if name is None:
        return values
    if not isinstance(name, str) or name not in below:
        raise NotFoundError(
            f"{path}: extends = {name!r:.60}, which is no card of a folder before this one.",
            hint=nearest_hint(str(name)[:100], below),
        )
    return _merged(below[name].card.model_dump(mode="json", exclude_unset=True), values)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        both = isinstance(inner, dict) and isinstance(value, dict)
        merged[key] = _merged(inner, value) if both and inner is not None else value
    return {key: value for key, value in merged.items() if value is not None}


def nearest_hint(card_id: str, cards: Mapping[str, Placed]) -> str:
    """Return a sentence that names the nearest card, or where the cards are listed."""
    close = nearest(card_id, cards)
    return f"Did you mean {close!r}?" if close else "workbench models lists the cards."


def _same_id(second: Placed, first: Placed | None) -> BadCard:
    files = f"{first.path.name} and {second.path.name}" if first else f"also {second.path.name}"
    return BadCard(
        card_id=second.card.id,
        path=second.path,
        error=InputError(
            f"Two cards in {second.path.parent} have the id {second.card.id!r}: {files}.",
            hint="Rename one of them.",
        ),
    )
