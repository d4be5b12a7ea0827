"""The kept conversations: a table that displays itself, and the way to one of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.chats.dialogue import SCHEMA, Dialogue
from workbench.chats.keeping import chats_folder, load
from workbench.chats.turn import beginning
from workbench.errors import InputError, NotFoundError
from workbench.figures import Table

_TITLE = 60


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is seen of a kept conversation without loading it.

    Attributes:
        file: Where it is kept.
        id: Its id, "" where the file is damaged.
        title: Its name, or the beginning of its first question.
        model: Label of the model.
        created: When it began, ISO 8601.
        turns: Turns on all branches.
        damage: Why it cannot be loaded, or "".
    """

    file: Path
    id: str = ""
    title: str = ""
    model: str = ""
    created: str = ""
    turns: int = 0
    damage: str = ""


class Chats:
    """The kept conversations, newest first; displays itself.

    ``chats[0]`` loads the newest; ``chats["3f2a"]`` loads the one whose id is so or begins so;
    iterating yields what is known of each without loading it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = [_seen(file) for file in sorted(folder.glob("*.jsonl"))]
        self.kept = sorted(found, key=lambda each: (each.created, each.file.name), reverse=True)

    def __len__(self) -> int:
        return len(self.kept)

    def __iter__(self) -> Iterator[Kept]:
        return iter(self.kept)

    def __getitem__(self, which: int | str) -> Dialogue:
        """Load one conversation.

        Args:
            which: Its place in the table, or the beginning of its id.

        Raises:
            NotFoundError: There is none, or no single one.
            InputError: Its file is damaged.
        """
        return load(self.file(which))

    def file(self, which: int | str) -> Path:
        """Return the file of one conversation; errors as for loading it."""
        if isinstance(which, int):
            if not -len(self.kept) <= which < len(self.kept):
                raise NotFoundError(f"There is no conversation {which} among {len(self.kept)}.")
            return self.kept[which].file
        exact = [each for each in self.kept if which and each.id == which]
        fitting = exact or [each for each in self.kept if which and each.id.startswith(which)]
        if len(fitting) != 1:
            raise NotFoundError(
                f"{len(fitting) or 'No'} kept conversations have an id that begins with {which!r}.",
                hint="wb.chats() lists them.",
            )
        return fitting[0].file

    def table(self) -> Table:
        """Return one row for each conversation; a damaged file says why it cannot be loaded."""
        rows = [
            {
                "": place,
                "began (UTC)": each.created[:16].replace("T", " "),
                "title": each.title,
                "model": each.model,
                "turns": each.turns or None,
                "id": each.id,
                "file": each.file.name,
                "failed": each.damage,
            }
            for place, each in enumerate(self.kept)
        ]
        counted = f"{len(rows)} conversation{'' if len(rows) == 1 else 's'}"
        return Table(rows, caption=f"{counted} in {self.folder.name}/")

    def __repr__(self) -> str:
        return str(self.table()) if self.kept else f"No conversation is kept in {self.folder}."

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        if not self.kept:
            return {"text/plain": repr(self), "text/html": "<div>No conversation is kept.</div>"}
        return self.table()._repr_mimebundle_()


def chats(folder: str | Path | None = None) -> Chats:
    """Return the conversations that are kept, newest first.

    Args:
        folder: Another folder than ``outputs/chats``.
    """
    return Chats(chats_folder() if folder is None else Path(folder).expanduser())


def _seen(file: Path) -> Kept:
    """Read what the table shows: the first two lines and whether the last one is whole."""
    try:
        lines = [line for line in file.read_bytes().split(b"\n") if line]
        if not lines:
            raise InputError("it is empty")
        facts = _object(lines[0], 1)
        if facts.get("kind") != "dialogue" or facts.get("schema_version") != SCHEMA:
            raise InputError("line 1 is not the facts of a dialogue that this version reads")
        first = _object(lines[1], 2) if len(lines) > 1 else {}
        _object(lines[-1], len(lines))
        return Kept(
            file=file,
            id=str(facts.get("id") or ""),
            title=beginning(str(facts.get("title") or _said(first)), _TITLE),
            model=str(facts.get("model") or ""),
            created=str(facts.get("created") or ""),
            turns=len(lines) - 1,
        )
    except OSError as error:
        return Kept(file=file, damage=f"cannot be read: {error.strerror}")
    except InputError as error:
        return Kept(file=file, damage=f"damaged: {error.message}")


def _object(line: bytes, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        raise InputError(f"line {number} is no JSON") from None
    if not isinstance(found, dict):
        raise InputError(f"line {number} is no object")
    return found


def _said(turn: dict[str, Any]) -> str:
    """Return the text of a turn's plain form."""
    content = turn.get("content")
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        return " ".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""
