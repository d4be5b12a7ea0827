"""Free the disk of what the workbench downloaded or converted; other stores are never touched."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from workbench.catalog.card import Card
from workbench.catalog.disk import (
    OnDisk,
    downloaded,
    repositories,
    repository_of,
    size,
    table_of,
)
from workbench.catalog.stores import hub_cache
from workbench.errors import InputError, NotFoundError, did_you_mean
from workbench.figures import Table

_OURS = ("hugging face cache", "converted")
_DAY = 86_400.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What would be removed; nothing is before ``execute``.

    Attributes:
        items: The models.
        parts: Files of downloads that did not end.
        bytes: What removing them frees.
        strategy: How the Hugging Face library deletes its part of it, or None.
    """

    items: tuple[OnDisk, ...]
    parts: tuple[Path, ...]
    bytes: int
    strategy: Any = dataclasses.field(default=None, repr=False)

    def table(self) -> Table:
        """Return what would go, one row each."""
        parts = [
            OnDisk(
                card=None,
                repository=repository_of(path.parent.parent.name) or path.parent.parent.name,
                revision=None,
                form="part of a file",
                bytes=size(path),
                used=path.stat().st_mtime,
                store="hugging face cache",
                whole=False,
                path=path,
            )
            for path in self.parts
        ]
        return table_of([*self.items, *parts], f"{self.bytes / 1e9:.2f} GB would be freed")

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.table()._repr_mimebundle_()

    def execute(self) -> int:
        """Remove it and return the bytes that were freed; what is in use meanwhile stays."""
        if self.strategy is not None:
            self.strategy.execute()
        kept = sum(size(path) for path in self.parts if not _remove_part(path))
        for item in self.items:
            if item.store == "converted":
                kept += 0 if _remove_converted(item.path) else item.bytes
        return self.bytes - kept


def prune(
    cards: Iterable[Card] = (),
    *,
    model: str | None = None,
    partial: bool = False,
    older_than: float | None = None,
    converted: bool = False,
) -> Pruning:
    """Return what would be freed; only the Hugging Face cache and our converted files are touched.

    What is being downloaded right now is left out. Each condition narrows: ``partial`` with
    ``older_than`` takes partial downloads that are old.

    Args:
        cards: The catalog.
        model: A card's id or a repository.
        partial: Only downloads that did not end.
        older_than: Only what was not used for so many days.
        converted: Only files that the workbench converted.

    Raises:
        InputError: No condition was given, or it is negative.
        NotFoundError: Nothing that may be removed has this name.
    """
    if model is None and not partial and older_than is None and not converted:
        raise InputError(
            "Nothing was named to be removed.",
            hint="Name a model, or --partial, --older-than DAYS or --converted.",
        )
    if older_than is not None and older_than < 0:
        raise InputError(f"older_than must be 0 days or more, not {older_than:g}.")
    known = list(cards)
    chosen = [item for item in downloaded(known) if item.store in _OURS and not _is_busy(item)]
    parts = [] if converted else list(hub_cache().glob("*/blobs/*.incomplete"))
    if model is not None:
        chosen, parts = _of_model(model, known, chosen, parts)
    if partial:
        chosen = [item for item in chosen if not item.whole]
    if converted:
        chosen = [item for item in chosen if item.store == "converted"]
    if older_than is not None:
        limit = time.time() - older_than * _DAY
        chosen = [item for item in chosen if item.used <= limit]
        parts = [path for path in parts if path.stat().st_mtime <= limit]
    return _pruning(chosen, parts)


def _pruning(items: list[OnDisk], parts: list[Path]) -> Pruning:
    strategy = None
    commits = {item.revision for item in items if item.store == "hugging face cache"}
    freed = sum(item.bytes for item in items if item.store == "converted")
    if commits:
        from huggingface_hub import scan_cache_dir

        cached = scan_cache_dir(hub_cache())
        readable = {each.commit_hash for repo in cached.repos for each in repo.revisions}
        items = [each for each in items if each.store == "converted" or each.revision in readable]
        strategy = cached.delete_revisions(*(each for each in commits if each in readable))
        freed += strategy.expected_freed_size
    return Pruning(
        items=tuple(items),
        parts=tuple(parts),
        bytes=freed + sum(map(size, parts)),
        strategy=strategy,
    )


def _of_model(
    model: str, cards: list[Card], items: list[OnDisk], parts: list[Path]
) -> tuple[list[OnDisk], list[Path]]:
    names = {model, *(name for card in cards if card.id == model for name in repositories(card))}
    chosen = [item for item in items if item.card == model or item.repository in names]
    begun = [path for path in parts if repository_of(path.parent.parent.name) in names]
    if not chosen and not begun:
        known = {name for item in items for name in (item.card, item.repository) if name}
        raise NotFoundError(
            f"Nothing of {model!r} lies in the Hugging Face cache or among the converted files.",
            hint=did_you_mean(model, known),
        )
    return chosen, begun


def _is_busy(item: OnDisk) -> bool:
    """Whether a file is being downloaded into the repository right now."""
    if item.store != "hugging face cache":
        return False
    for lock in (hub_cache() / ".locks" / item.path.parent.parent.name).glob("*.lock"):
        with _taken(lock) as free:
            if not free:
                return True
    return False


def _remove_part(path: Path) -> bool:
    """Remove what a download left, unless one is going on."""
    etag = path.name.partition(".")[0]
    lock = hub_cache() / ".locks" / path.parent.parent.name / f"{etag}.lock"
    with _taken(lock) as free:
        if free:
            path.unlink(missing_ok=True)
    return free


def _remove_converted(path: Path) -> bool:
    """Remove a converted file and then its empty entry, unless one is being made there."""
    entry = path.parent
    with _taken(entry.parent / f"{entry.name}.lock") as free:
        if free:
            path.unlink(missing_ok=True)
            if not list(entry.glob("*.gguf")):
                shutil.rmtree(entry, ignore_errors=True)
    return free


@contextlib.contextmanager
def _taken(lock: Path) -> Iterator[bool]:
    """Hold a lock file of another room or library if nobody does, and tell whether we do."""
    if not lock.exists():
        yield True
        return
    handle = os.open(lock, os.O_RDWR)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)
