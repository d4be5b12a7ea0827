"""Where things live, what ships, and how files are written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from workbench.errors import DiskSpaceError, NotFoundError

PACKAGE = Path(__file__).resolve().parent
_PARTIAL = ".partial-"


def checkout() -> Path | None:
    """Return the repository root when running from a checkout, else None (installed wheel)."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "configs").is_dir() else None


def shipped(*parts: str) -> Path:
    """Return the path of a file or folder that ships: ``configs``, ``data`` or ``notebooks``.

    Args:
        parts: Path below the repository root, for example ``"data", "tiny-chat"``.

    Raises:
        NotFoundError: The installation is incomplete.
    """
    base = checkout() or PACKAGE / "_shipped"
    path = base.joinpath(*parts)
    if not path.exists():
        raise NotFoundError(
            f"{'/'.join(parts)} does not ship with this installation ({base}).",
            hint="Install the package again: its data files are missing.",
        )
    return path


def home() -> Path:
    """Return the folder that holds ``outputs/``: WORKBENCH_HOME, else the checkout, else here."""
    given = os.environ.get("WORKBENCH_HOME")
    if given:
        return Path(given).expanduser().resolve()
    return checkout() or Path.cwd()


def outputs(*parts: str) -> Path:
    """Return a path below ``outputs/``; its parent folder is made, the path itself is not."""
    path = home().joinpath("outputs", *parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def cache(*parts: str) -> Path:
    """Return a path below the user's cache folder: WORKBENCH_CACHE, XDG_CACHE_HOME or ~/.cache."""
    given = os.environ.get("WORKBENCH_CACHE")
    if given:
        base = Path(given).expanduser().resolve()
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llm-workbench"
    path = base.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def atomic_file(final: Path, *, new: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``final`` and rename it there when the block succeeds.

    On any exception the temporary file is removed and ``final`` stays as it was. A kill leaves
    only a ``.partial-*`` name, never a part under the final name.

    Args:
        final: The file to write.
        new: Never replace: a file that is there already is kept.

    Raises:
        FileExistsError: ``new``, and there is such a file.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{_PARTIAL}{os.getpid()}-", dir=final.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        if new:
            _publish(partial, final)
        else:
            partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)


def _publish(partial: Path, final: Path) -> None:
    """Give a whole file its name, unless the name is taken."""
    try:
        os.link(partial, final)  # a rename would replace what is there
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if final.exists():
            raise FileExistsError(f"{final} exists.") from None
        partial.replace(final)


@contextlib.contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``final`` and rename it there when the block succeeds.

    An existing ``final`` is replaced only after the new folder is complete.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{_PARTIAL}{os.getpid()}-", dir=final.parent))
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)
        if final.exists():
            old = Path(tempfile.mkdtemp(prefix=f"{_PARTIAL}{os.getpid()}-", dir=final.parent))
            final.replace(old / final.name)
            partial.replace(final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            partial.replace(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sweep_partials(folder: Path) -> list[Path]:
    """Remove what dead writers left (``.partial-<pid>-*``) and return it."""
    removed = []
    for path in folder.glob(f"{_PARTIAL}*"):
        pid = path.name[len(_PARTIAL) :].split("-", 1)[0]
        if pid.isdigit() and _alive(int(pid)):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed.append(path)
    return removed


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def require_space(folder: Path, needed: int, *, purpose: str) -> None:
    """Raise DiskSpaceError before the first byte when ``folder``'s disk lacks ``needed`` bytes."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DiskSpaceError(
            f"{purpose} needs {needed / 1e9:.2f} GB, "
            f"but only {free / 1e9:.2f} GB are free at {folder}.",
            hint="Free some space or choose another folder; nothing was written.",
        )


def sha256(path: Path) -> str:
    """Return the hex sha256 of a file's bytes, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
