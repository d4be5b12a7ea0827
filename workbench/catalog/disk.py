"""What models lie on this disk, and in which store."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from workbench.catalog.card import Card
from workbench.catalog.files import files_at
from workbench.catalog.stores import (
    Snapshot,
    hub_cache,
    lm_studio_models,
    ollama_models,
    stored_quantization,
)
from workbench.catalog.wanted import quantization_of
from workbench.errors import WorkbenchError
from workbench.figures import Table
from workbench.paths import cache, shipped

Store = Literal["hugging face cache", "converted", "ollama", "lm studio", "local"]
_CONVERTED = "gguf"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OnDisk:
    """One model in one store.

    Attributes:
        card: Id of the card that names it, or None.
        repository: Hub repository or name in the store; for a converted file what it was made of.
        revision: Commit, where the store knows it.
        form: ``safetensors`` or ``gguf`` with its quantizations.
        bytes: What it takes on the disk; what two commits share is counted for both.
        used: Time of last use, seconds since 1970.
        store: Where it lies.
        whole: Whether all of it is there.
        path: Its folder or file.
    """

    card: str | None
    repository: str
    revision: str | None
    form: str
    bytes: int
    used: float
    store: Store
    whole: bool
    path: Path


class Downloaded:
    """All models on this disk, displayed as a table; the largest stand first."""

    def __init__(self, found: Iterable[OnDisk]) -> None:
        self._found = sorted(found, key=lambda each: (-each.bytes, str(each.path)))

    def __iter__(self) -> Iterator[OnDisk]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: int) -> OnDisk:
        return self._found[index]

    def table(self) -> Table:
        """Return one row per model and store."""
        return table_of(self._found, f"{len(self)} models on this disk")

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.table()._repr_mimebundle_()

    def __repr__(self) -> str:
        return str(self.table())


def downloaded(cards: Iterable[Card] = ()) -> Downloaded:
    """Return every model on this disk: downloaded, converted, of other programs, of local cards.

    Args:
        cards: Those whose ids are told, and whose local paths are looked at.
    """
    known = list(cards)
    names = {name: card.id for card in known for name in repositories(card)}
    found = [*_cached(names), *_converted(), *_ollama(names), *_lm_studio(names), *_local(known)]
    return Downloaded(found)


def table_of(items: Iterable[OnDisk], caption: str) -> Table:
    """Return one row per model."""
    rows = [
        {
            "card": item.card,
            "repository": item.repository,
            "revision": item.revision[:8] if item.revision else None,
            "form": item.form,
            "GB": round(item.bytes / 1e9, 3),
            "last used": time.strftime("%Y-%m-%d", time.localtime(item.used)),
            "store": item.store,
            "state": "whole" if item.whole else "partial",
        }
        for item in items
    ]
    return Table(rows, caption=caption, formats={"GB": ".3f"} if rows else None)


def repositories(card: Card) -> list[str]:
    """Return every repository and store name that a card states."""
    named = [card.repository, *(ready.repository for ready in card.forms)]
    if card.gguf is not None:
        named += [card.gguf.repository, card.gguf.ollama]
    return [name for name in named if name]


def _cached(names: dict[str, str]) -> Iterator[OnDisk]:
    for folder in sorted(hub_cache().glob("models--*/snapshots/*")):
        repository = repository_of(folder.parent.parent.name)
        if not folder.is_dir() or repository is None:
            continue
        snapshot = Snapshot(repository=repository, revision=folder.name, folder=folder)
        paths = [folder / name for name in snapshot.names()]
        quantizations = {quantization_of(path.name) for path in paths if path.suffix == ".gguf"}
        is_gguf = bool(quantizations) and not any(path.suffix == ".safetensors" for path in paths)
        yield OnDisk(
            card=names.get(repository),
            repository=repository,
            revision=folder.name,
            form=_gguf_form(quantizations) if is_gguf else "safetensors",
            bytes=sum({path.resolve(): size(path) for path in paths}.values()),
            used=max((_used(path) for path in paths), default=folder.stat().st_mtime),
            store="hugging face cache",
            whole=_all_parts(snapshot) if is_gguf else not snapshot.missing(),
            path=folder,
        )


def _all_parts(snapshot: Snapshot) -> bool:
    for path in snapshot.folder.rglob("*.gguf"):
        try:
            files_at(path)
        except (WorkbenchError, OSError):
            return False
    return True


def _converted() -> Iterator[OnDisk]:
    for path in sorted(cache(_CONVERTED, "x").parent.glob("*/*.gguf")):
        if path.name.startswith("."):
            continue
        made_of = "?"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            about = (path.parent / "about.json").read_text(encoding="utf-8")
            made_of = str(json.loads(about)["source"])
        yield OnDisk(
            card=None,
            repository=made_of,
            revision=None,
            form=_gguf_form({path.stem}),
            bytes=size(path),
            used=_used(path),
            store="converted",
            whole=True,
            path=path,
        )


def _ollama(names: dict[str, str]) -> Iterator[OnDisk]:
    for model in ollama_models():
        pulled = model.name.rpartition(":")[0].partition("/")[2]
        whole = model.is_whole
        yield OnDisk(
            card=names.get(pulled) or names.get(model.name),
            repository=model.name,
            revision=None,
            form=_gguf_form({stored_quantization(model.blob)} if whole else set()),
            bytes=size(model.blob),
            used=_used(model.blob),
            store="ollama",
            whole=whole,
            path=model.blob,
        )


def _lm_studio(names: dict[str, str]) -> Iterator[OnDisk]:
    for repository, path, whole in lm_studio_models():
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        with contextlib.suppress(WorkbenchError):
            files = list(files_at(path).weights)
        yield OnDisk(
            card=names.get(repository),
            repository=repository,
            revision=None,
            form="safetensors" if path.is_dir() else _gguf_form({quantization_of(path.name)}),
            bytes=sum(map(size, files)),
            used=max(map(_used, files), default=0.0),
            store="lm studio",
            whole=whole,
            path=path,
        )


def _local(cards: list[Card]) -> Iterator[OnDisk]:
    for card in cards:
        with contextlib.suppress(WorkbenchError, OSError):
            path = card.expanded_path()
            if path is None:
                continue
            files = files_at(path if path.is_absolute() else shipped(*path.parts))
            kind = {stored_quantization(files.path)} if files.kind == "gguf" else set()
            yield OnDisk(
                card=card.id,
                repository=card.repository or files.path.name,
                revision=None,
                form=_gguf_form(kind) if files.kind == "gguf" else "safetensors",
                bytes=files.weight_bytes(),
                used=max(map(_used, files.weights)),
                store="local",
                whole=True,
                path=files.path,
            )


def _gguf_form(quantizations: Iterable[str | None]) -> str:
    return " ".join(["gguf", ", ".join(sorted(filter(None, quantizations)))]).strip()


def repository_of(folder: str) -> str | None:
    """Return the repository whose folder in the Hugging Face cache has this name."""
    kind, _, name = folder.partition("--")
    return name.replace("--", "/") if kind == "models" and name else None


def size(path: Path) -> int:
    """Return the bytes of a file, 0 where it has gone."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _used(path: Path) -> float:
    try:
        found = path.stat()
    except OSError:
        return 0.0
    return max(found.st_atime, found.st_mtime)
