"""A server's log: kept in a file, its last lines shown, its cause of death told."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from workbench.catalog.capabilities import Cause
from workbench.paths import outputs
from workbench.redact import redacted

_KEPT = 20  # logs of earlier servers
_SEARCHED = 1 << 20  # bytes from the end
_TAIL = 16_000
_LINES = 6
_WIDTH = 240
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PREFIX = re.compile(  # (EngineCore pid=7) ERROR 11-21 12:00:00 [core.py:1] ; 0.00.062.131 I srv
    r"^(?:\([\w ]+pid=\d+\)\s*)?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL):?\s+)?"
    r"(?:\d\d-\d\d \d\d:\d\d:\d\d\s+)?(?:\[[\w.]+:\d+\]\s*)?(?:\d+\.\d\d\.\d{3}\.\d{3} [A-Z] )?"
)
_ERROR = re.compile(r"(?:[A-Za-z_][\w.]*(?:Error|Exception)|AssertionError)\b: ?\S.*")
_NOT_THE_ROOT = ("see root cause above", "see stack trace", "engine core initialization failed")


class ServerLog:
    """What a server printed.

    Attributes:
        path: The file, which stays after the server ended; the newest twenty are kept.
        noise: Lines that say nothing.
    """

    def __init__(self, path: Path, *, noise: str | None = None) -> None:
        self.path = path
        self.noise = re.compile(noise) if noise else None

    @classmethod
    def new(cls, engine: str, *, number: int, noise: str | None = None) -> ServerLog:
        """Return the log of a server that is about to start; only its owner may read it."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        path = outputs("servers", f"{stamp}-{engine}-{os.getpid()}-{number}.log")
        _prune(path.parent)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
        return cls(path, noise=noise)

    @property
    def size(self) -> int:
        """Bytes printed so far."""
        with contextlib.suppress(OSError):
            return self.path.stat().st_size
        return 0

    def text(self, most: int = _SEARCHED) -> str:
        """Return the end of the log, colours taken off."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - most))
                return _COLOURS.sub("", file.read().decode("utf-8", "replace"))
        except OSError:
            return ""

    def lines(self, count: int = _LINES) -> list[str]:
        """Return the last lines that say something, without time stamps, shortened."""
        found = [
            plain(line)
            for line in self.text(_TAIL).splitlines()
            if not (self.noise and self.noise.search(line))
        ]
        return [str(redacted(line[:_WIDTH])) for line in found if re.search(r"\w", line)][-count:]

    def cause(self, causes: Sequence[Cause]) -> tuple[str, str]:
        """Return why the server died, a sentence, and what to do next; "" where nothing is known.

        A cause that is known counts first; else the first error that is not a mere consequence.
        """
        text = self.text()
        for cause in causes:
            found = re.search(cause.pattern, text, re.IGNORECASE)
            if found:
                groups = ["" if part is None else part.strip() for part in found.groups()]
                return cause.says.format(found[0].strip(), *groups), cause.hint
        for line in text.splitlines():
            error = _ERROR.match(plain(line))
            if error and not any(word in line.lower() for word in _NOT_THE_ROOT):
                return str(redacted(error[0][:_WIDTH])).rstrip(".") + ".", ""
        return "", ""


def plain(line: str) -> str:
    """Return a line of a log without process, time and place."""
    return _PREFIX.sub("", line.strip(), count=1).strip()


def _prune(folder: Path) -> None:
    with contextlib.suppress(OSError):
        logs = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
        for path in logs[: max(0, len(logs) - _KEPT + 1)]:
            path.unlink(missing_ok=True)
