"""Memory by phase: what loading, prefill or decode added, each figure with its source."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from workbench.errors import InputError
from workbench.machine.probes import HOST, PhaseMemory, probes

__all__ = ["Meter", "PhaseMemory"]


class Meter:
    """Measures phases: ``with Meter() as meter: with meter.phase("load"): ...``.

    Args:
        interval: Seconds between samples where no exact peak is to be had, 0.02 to 0.05 by habit.
        children: Also sum the resident sets of the child processes, by sampling.
        exact: Use the kernel's own peak where permitted; False forces sampling.

    Attributes:
        phases: One entry per phase and place, in order.
        cost_seconds: Time that the meter itself took for its readings.
        samples: Readings taken by the sampling thread.
    """

    def __init__(
        self, *, interval: float = 0.025, children: bool = False, exact: bool = True
    ) -> None:
        if not interval > 0:
            raise InputError(f"interval must be above 0 seconds, not {interval!r}.")
        self.interval = interval
        self.phases: list[PhaseMemory] = []
        self.cost_seconds = 0.0
        self.samples = 0
        self._probes = probes(children=children, exact=exact)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._running: str | None = None
        self._open = False

    def __enter__(self) -> Meter:
        self._open = True
        self._stop.clear()
        if any(probe.sampled for probe in self._probes):
            self._thread = threading.Thread(target=self._watch, name="memory meter", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

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
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            with self._lock, self._charged():
                self._running = None
                for probe in self._probes:
                    self.phases.extend(probe.end(name, seconds))

    def delta(self, name: str, *, place: str = HOST) -> int | None:
        """Return the most that phases of this name added at ``place`` in bytes, None if unknown."""
        found = [p.delta_bytes for p in self.phases if p.name == name and p.place == place]
        return max(found) if found else None

    def as_rows(self) -> list[dict[str, Any]]:
        """Return the phases as plain data."""
        return [phase.as_dict() for phase in self.phases]

    @contextlib.contextmanager
    def _charged(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.cost_seconds += time.perf_counter() - began

    def _watch(self) -> None:
        while not self._stop.wait(self.interval):
            with self._lock:
                if self._running is None:
                    continue
                with self._charged():
                    self.samples += 1
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
                p.source,
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
