"""Converted files kept by content: keys, locks between processes, listing and pruning."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from workbench.catalog import ModelFiles
from workbench.paths import atomic_file, cache, sweep_partials
from workbench.progress import progress

ROOM = "gguf"
_LOCK = ".lock"
_POLL_SECONDS = 0.1
_REMEMBERED_ABOVE = 256_000_000
_HASHES = "hashes.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """One converted file.

    Attributes:
        path: The file.
        source: Name of the model it was made from.
        size: Bytes.
        used: Time of last use, seconds since 1970.
    """

    path: Path
    source: str
    size: int
    used: float


def used_now(path: Path) -> None:
    """Note that a file was used, by its access time; when it was written stays known."""
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def entries() -> list[CacheEntry]:
    """Return the converted files in the cache, the longest unused first."""
    found = []
    for path in cache(ROOM, "x").parent.glob("*/*.gguf"):
        if path.name.startswith("."):
            continue
        about = path.parent / "about.json"
        source = json.loads(about.read_text())["source"] if about.is_file() else "?"
        stat = path.stat()
        found.append(CacheEntry(path=path, source=source, size=stat.st_size, used=stat.st_atime))
    return sorted(found, key=lambda entry: entry.used)


def size() -> int:
    """Return the bytes of all converted files in the cache."""
    return sum(entry.size for entry in entries())


def prune(*, keep_bytes: int = 0) -> list[CacheEntry]:
    """Remove the longest unused files until at most ``keep_bytes`` are left; return the removed."""
    removed, total = [], size()
    for entry in entries():
        if total <= keep_bytes:
            break
        with locked(entry.path.parent):
            entry.path.unlink(missing_ok=True)
            if not list(entry.path.parent.glob("*.gguf")):
                shutil.rmtree(entry.path.parent, ignore_errors=True)
        total -= entry.size
        removed.append(entry)
    return removed


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the one lock of ``target`` between threads and processes; a dead holder frees it.

    What dead writers left beside ``target`` and in it is swept away first.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.parent / f"{target.name}{_LOCK}"
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _taken(handle):
            with progress(f"Waiting for another process that makes {target.name}") as bar:
                while not _taken(handle):
                    time.sleep(_POLL_SECONDS)
                    bar.advance(0)
        sweep_partials(target.parent)
        if target.is_dir():
            sweep_partials(target)
        yield
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def content_key(files: ModelFiles) -> str:
    """Return the digest of a model's content.

    Hashing tens of gigabytes takes a minute, so the digest of large models is remembered with the
    path, size, inode and modification time of each of their files.
    """
    if files.weight_bytes() < _REMEMBERED_ABOVE:
        return files.content_hash()
    store = cache(ROOM, _HASHES)
    known: dict[str, str] = json.loads(store.read_text()) if store.is_file() else {}
    state = _state(files)
    if state not in known:
        with progress(f"Hashing {files.path.name}", total=None):
            known[state] = files.content_hash()
        with atomic_file(store) as partial:
            partial.write_text(json.dumps(known, indent=1))
    return known[state]


def _state(files: ModelFiles) -> str:
    folder = files.path if files.path.is_dir() else files.path.parent
    paths = sorted(folder.iterdir()) if files.kind == "safetensors" else [files.path]
    stats = [(path.name, path.stat()) for path in paths if path.is_file()]
    parts = [f"{name}:{s.st_size}:{s.st_ino}:{s.st_mtime_ns}" for name, s in stats]
    return f"{files.path.resolve()}|{'|'.join(parts)}"
