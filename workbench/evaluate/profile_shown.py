"""What is seen of a profile while it goes on: one bar, and the memory of each form as it grows."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from workbench.figures.live import Curves, growing
from workbench.machine.meter import Meter
from workbench.progress import Bar
from workbench.progress import progress as show_progress

_SECONDS = 0.05
_MB = 1e6
_WORDS = {"warm-up": "preparing", "load": "loading", "idle": "loaded"}
Tell = Callable[[Mapping[str, Any]], None]


class Reporter:
    """Tells the phase and what is in use beyond the state before loading, in the measured process.

    Its thread is there before loading begins, so that it is no part of what loading adds.

    Args:
        meter: The open meter, which also measures the phases.
        tell: Takes each reading: ``phase``, and from loading on ``seconds`` and ``bytes`` since.

    Attributes:
        device: Where the model will lie; nothing is read before this is set.
    """

    def __init__(self, meter: Meter, tell: Tell) -> None:
        self.device: str | None = None
        self._meter, self._tell = meter, tell
        self._phase = ""
        self._first: tuple[float, int] | None = None
        self._lock = threading.Lock()  # readings go out in the order they were taken
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory report", daemon=True)

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the block as a phase, with a reading on both sides of it."""
        self._phase = name
        self._report()
        with self._meter.phase(name):
            yield
        self._report()

    def _run(self) -> None:
        while not self._ended.wait(_SECONDS):
            if self._first is not None:
                self._report()

    def _report(self) -> None:
        with self._lock:
            if self.device is None:
                self._tell({"phase": self._phase})
                return
            at, in_use = time.perf_counter(), self._meter.in_use(self.device)
            if self._first is None:
                self._first = (at, in_use)
            began, before = self._first
            seconds = round(at - began, 3)
            self._tell({"phase": self._phase, "seconds": seconds, "bytes": in_use - before})


class Shown:
    """A profile's bar and curves: one curve a form, each measurement where the last one ended."""

    def __init__(self, bar: Bar, curves: Curves) -> None:
        self._bar, self.curves = bar, curves
        self._form, self._context = "", 0
        self._start = self._latest = 0.0
        self._again = False

    def begin(self, form: str, context: int) -> None:
        """Say what is measured from now on."""
        self._form, self._context = form, context
        self._start = self._latest
        curve = self.curves.curves.get(form)
        self._again = curve is not None and not curve.empty
        self._bar.update(note=f"{form} @ {context}")

    def take(self, told: Mapping[str, Any]) -> None:
        """Draw one reading of the measured process."""
        doing = _WORDS.get(told["phase"], told["phase"])
        note = f"{self._form} @ {self._context}: {doing}"
        if "bytes" in told:
            added = told["bytes"] / _MB
            if self._again:  # a gap after the last measurement of this form
                self.curves.add(self._start, {self._form: None})
                self._again = False
            self._latest = round(self._start + told["seconds"], 3)
            self.curves.add(self._latest, {self._form: added})
            note += f", {added:,.0f} MB"
        self._bar.update(note=note)

    def end(self) -> None:
        """Count what was measured, or failed, as done."""
        self._bar.advance(note="")


@contextlib.contextmanager
def profile_shown(
    model: str, forms: Sequence[str], *, total: int, quiet: bool | None
) -> Iterator[Shown]:
    """Show a profile within the block.

    Args:
        model: Card id.
        forms: Labels of the forms, in the order that the legend lists them.
        total: Number of measurements.
        quiet: Show nothing; None asks ``WORKBENCH_QUIET`` for the bar.
    """
    with (
        growing(
            f"Memory of {model} beyond the process before loading",
            x_title="seconds measured",
            units={"memory": "MB"},
            names=forms,
            panel="memory",
            quiet=bool(quiet),
        ) as curves,
        show_progress("Profile", total=total, quiet=quiet) as bar,
    ):
        yield Shown(bar, curves)
