"""Memory over time: a bounded number of readings per place, thinned without losing the peaks."""

from __future__ import annotations

import dataclasses
from typing import Any

LIMIT = 2000


@dataclasses.dataclass(frozen=True, slots=True)
class _Reading:
    seconds: float
    bytes: int
    phase: str | None


class _Series:
    """Readings of one place; when they are too many, each two neighbours leave the larger."""

    def __init__(self) -> None:
        self.kept: list[_Reading] = []
        self._stride = 1
        self._waiting: list[_Reading] = []

    def add(self, reading: _Reading) -> None:
        self._waiting.append(reading)
        if len(self._waiting) >= self._stride:
            self.kept.append(_largest(self._waiting))
            self._waiting.clear()

    def thin(self) -> None:
        self.kept = [_largest(self.kept[i : i + 2]) for i in range(0, len(self.kept), 2)]
        self._stride *= 2

    def all(self) -> list[_Reading]:
        return [*self.kept, _largest(self._waiting)] if self._waiting else self.kept


def _largest(readings: list[_Reading]) -> _Reading:
    return max(readings, key=lambda reading: reading.bytes)


class Timeline:
    """Readings of all places, at most ``limit`` of them together."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._places: dict[str, _Series] = {}

    def add(self, seconds: float, place: str, value: int, phase: str | None) -> None:
        """Keep one reading: seconds since the meter opened, where, bytes, in which phase."""
        series = self._places.setdefault(place, _Series())
        series.add(_Reading(seconds, value, phase))
        while sum(len(each.kept) + 1 for each in self._places.values()) > self._limit:
            longest = max(self._places.values(), key=lambda each: len(each.kept))
            if len(longest.kept) < 2:
                return
            longest.thin()

    def rows(self) -> list[dict[str, Any]]:
        """Return ``seconds``, ``place``, ``bytes`` and ``phase`` (None between phases), by time."""
        rows = [
            {"seconds": r.seconds, "place": place, "bytes": r.bytes, "phase": r.phase}
            for place, series in self._places.items()
            for r in series.all()
        ]
        return sorted(rows, key=lambda row: row["seconds"])
