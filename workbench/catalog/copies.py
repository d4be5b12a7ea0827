"""A copy in JSON of the cards that ship: YAML takes ten times as long to read."""

from __future__ import annotations

import contextlib
import functools
import json
from pathlib import Path
from typing import Any

from workbench.paths import atomic_file, cache
from workbench.settings import read_yaml


class Copies:
    """What files held when they were read last, by path, size and time of writing."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._asked: dict[str, Any] = {}
        self._changed = False
        self._kept: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(store.read_text(encoding="utf-8"))
            self._kept = found if isinstance(found, dict) else {}

    def values(self, path: Path, *, size: int, modified: int) -> dict[str, Any]:
        """Return the mapping of a YAML file.

        Args:
            path: The file.
            size: Its bytes.
            modified: When it was written, in nanoseconds.

        Raises:
            InputError: It is not valid YAML or not a mapping.
        """
        key = f"{path}:{size}:{modified}"
        found = self._asked.get(key) or self._kept.get(key)
        if not isinstance(found, dict):
            found, self._changed = read_yaml(path), True
        self._asked[key] = found
        return found

    def save(self) -> None:
        """Write what was asked for, if a file is new; a copy that cannot be kept is no error."""
        if not self._changed:
            return
        with (
            contextlib.suppress(OSError, TypeError, ValueError),
            atomic_file(self._store) as partial,
        ):
            partial.write_text(json.dumps(self._asked, ensure_ascii=False), encoding="utf-8")
        self._changed = False


@functools.cache
def copies() -> Copies:
    """Return the copies of this process."""
    return Copies(cache("catalog", "cards.json"))
