"""Memory by phase: what loading, prefill or decode added, each figure with its source."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from workbench.errors import InputError
from workbench.machine.probes import HOST, PhaseMemory, probes
from workbench.machine.timeline import Timeline

__all__ = ["Meter", "PhaseMemory"]


class Meter:
    """Measures phases: ``with Meter() as meter: with meter.phase("load"): ...``.

    A phase counts from what is in use when it begins, so what imports took is no part of it.

    Args:
        interval: Seconds between samples where no exact peak is to be had, 0.02 to 0.05 by habit.
        children: Also sum the resident sets of the child processes, by sampling, and give each
            child a phase of its own; one that ends while it is measured is told as ``ended``.
        exact: Use the kernel's own peak where permitted; False forces sampling.
        timeline: Also keep readings over time, from opening to closing, at most 2000 of them.

    Attributes:
        phases: One entry per phase and place, in order.
        cost_seconds: Time that the meter itself took for its readings.
        samples: Readings taken by the sampling thread.
    """

    def __init__(
        self,
        *,
        interval: float = 0.025,
        children: bool = False,
        exact: bool = True,
        timeline: bool = False,
    ) -> None:
        if not interval > 0:
            raise InputError(f"interval must be above 0 seconds, not {interval!r}.")
        self.interval = interval
        self.phases: list[PhaseMemory] = []
        self.cost_seconds = 0.0
        self.samples = 0
        self._probes = probes(children=children, exact=exact)
        self._timeline = Timeline() if timeline else None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._running: str | None = None
        self._open = False
        self._opened = 0.0

    def __enter__(self) -> Meter:
        self._open = True
        self._opened = time.perf_counter()
        self._stop.clear()
        self._mark()
        if self._timeline is not None or any(probe.sampled for probe in self._probes):
            self._thread = threading.Thread(target=self._watch, name="memory meter", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._mark()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the block; it is kept also when the block raises.

        Raises:
            InputError: The meter is not open, or another phase is still running.
        """
        if not self._open:
            raise InputError(f"The phase {name!r} needs an open meter.", hint="with Meter() as m:")
        if self._running is not None:
            raise InputError(f"The phase {name!r} began inside {self._running!r}.")
        with self._lock, self._charged():
            for probe in self._probes:
                probe.begin()
            self._running = name
            self._read_timeline()
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            with self._lock, self._charged():
                self._read_timeline()
                self._running = None
                for probe in self._probes:
                    self.phases.extend(probe.end(name, seconds))

    def delta(self, name: str, *, place: str = HOST) -> int | None:
        """Return the most that phases of this name added at ``place`` in bytes, None if unknown."""
        found = [p.delta_bytes for p in self.phases if p.name == name and p.place == place]
        return max(found) if found else None

    def in_use(self, device: str) -> int:
        """Return the bytes in use now on a device: of this process where that is known.

        Args:
            device: ``cpu`` for the memory of this process, or ``cuda``, ``mps``, ``mlx``.
        """
        with self._lock, self._charged():
            places = [found for probe in self._probes for found in probe.now()]
        wanted = [each for each in places if each[0].startswith(device)]
        own = [each for each in wanted if " device-wide" not in each[0]]
        host = [each for each in places if each[0] == HOST]
        return max((value for _, value in own or wanted or host), default=0)

    def as_rows(self) -> list[dict[str, Any]]:
        """Return the phases as plain data."""
        return [phase.as_dict() for phase in self.phases]

    def timeline(self) -> list[dict[str, Any]]:
        """Return the readings over time as rows, the earliest first.

        Each has ``seconds`` since the meter opened, ``place``, ``bytes`` in use there, and
        ``phase`` (None between phases). Beyond 2000 readings neighbours are merged, the larger one
        kept, so a peak stays and its neighbours go.

        Raises:
            InputError: The meter was not asked for it.
        """
        if self._timeline is None:
            raise InputError(
                "This meter keeps no readings over time.", hint="Meter(timeline=True) does."
            )
        with self._lock:
            return self._timeline.rows()

    @contextlib.contextmanager
    def _charged(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.cost_seconds += time.perf_counter() - began

    def _mark(self) -> None:
        with self._lock, self._charged():
            self._read_timeline()

    def _read_timeline(self) -> None:
        if self._timeline is None:
            return
        seconds = time.perf_counter() - self._opened
        for probe in self._probes:
            for place, value in probe.now():
                self._timeline.add(seconds, place, value, self._running)

    def _watch(self) -> None:
        while not self._stop.wait(self.interval):
            with self._lock:
                if self._running is None and self._timeline is None:
                    continue
                with self._charged():
                    self.samples += 1
                    self._read_timeline()
                    if self._running is None:
                        continue
                    for probe in self._probes:
                        if probe.sampled:
                            probe.sample()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        import html

        head = ("phase", "place", "seconds", "start MB", "peak MB", "added MB", "source")
        rows = [
            (
                p.name,
                p.place,
                f"{p.seconds:.2f}",
                *(f"{value / 1e6:.1f}" for value in (p.start_bytes, p.peak_bytes, p.delta_bytes)),
                p.source + (" (ended)" if p.ended else ""),
            )
            for p in self.phases
        ]
        note = f"The meter itself took {self.cost_seconds * 1e3:.1f} ms, {self.samples} samples."
        lines = ["  ".join(f"{cell:>12}" for cell in row) for row in (head, *rows)]
        cells = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in (head, *rows)
        )
        return {
            "text/plain": "\n".join([*lines, note]),
            "text/html": f"<table>{cells}</table><div>{note}</div>",
        }
