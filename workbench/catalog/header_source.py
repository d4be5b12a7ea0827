"""Bytes that headers are read from, a few at a time; JSON and files that may lie are refused."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from workbench.errors import FormatError, InputError, NotFoundError

MOST_JSON = 64 << 20
MOST_CONFIG = 8 << 20
_SHOWN = 80


class Source(Protocol):
    """Bytes of one file, near or far."""

    name: str
    """What errors call it."""
    size: int | None
    """Bytes of the whole file; None where a server does not say."""

    def read(self, start: int, least: int, most: int) -> bytes:
        """Return ``least`` to ``most`` bytes from ``start``, fewer only where the file ends."""


class LocalFile:
    """A regular file, opened for reading; use it in a ``with`` statement.

    Raises:
        NotFoundError: There is no such file.
        InputError: It is a folder, a pipe, a device, a loop of links, or may not be read.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        # Without O_NONBLOCK, opening a named pipe would wait for a writer forever.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            self._number = os.open(path, flags)
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None
        self.status = os.fstat(self._number)
        if not stat.S_ISREG(self.status.st_mode):
            self.close()
            raise InputError(f"{path} is {_what(self.status.st_mode)}, not a file.")
        self.size: int | None = self.status.st_size

    def read(self, start: int, least: int, most: int) -> bytes:
        """Return ``least`` to ``most`` bytes from ``start``, fewer only where the file ends."""
        most = min(max(least, most), max((self.size or 0) - start, 0))
        parts = []
        while most > 0:
            part = os.pread(self._number, most, start)
            if not part:
                break
            parts.append(part)
            start, most = start + len(part), most - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._number >= 0:
            os.close(self._number)
            self._number = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _what(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((words for test, words in kinds if test(mode)), "no regular file")


def _unreadable(path: Path, error: OSError | ValueError) -> InputError:
    number = getattr(error, "errno", None)
    if number in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError(f"The file {path} does not exist.", hint="Check its name and folder.")
    if number == errno.ELOOP:
        return InputError(f"{path} is a link that leads back to itself.", hint="Remove the link.")
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(f"{str(path)!r} cannot be read: {reason}.", hint="Check its permissions.")


def shown(text: str) -> str:
    """Return a name from a file as it may stand in a message: quoted, escaped and short."""
    return ascii(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def read_object(path: Path, *, most: int = MOST_JSON) -> dict[str, Any]:
    """Return the object in a JSON file of at most ``most`` bytes.

    Raises:
        NotFoundError: There is no such file.
        FormatError: It is too long, nested too deep, no JSON or no object.
    """
    with LocalFile(path) as file:
        if (file.size or 0) > most:
            raise FormatError(f"{path.name} has {file.size} bytes; at most {most} are read.")
        return parse_object(file.read(0, 0, most), path.name)


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """Return the object in the JSON text of the file ``name``.

    Raises:
        FormatError: It is nested too deep, no JSON or no object.
    """
    try:
        values = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise FormatError(f"{name} is nested too deep.", hint="Get the file again.") from None
    except ValueError as error:
        raise FormatError(
            f"{name} is not valid JSON: {str(error)[:_SHOWN]}.", hint="Get the file again."
        ) from None
    if not isinstance(values, dict):
        raise FormatError(f"{name} holds a {type(values).__name__}, not an object.")
    return values
