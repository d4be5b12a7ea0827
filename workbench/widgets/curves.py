"""Live curves: loss and memory drawn while a cell runs, and one static figure in the end.

Messages to the front end: ``state`` with everything, ``add`` with the points that are new (and the
whole of a curve that was thinned out), ``end``. It sends ``hello`` when it is drawn, and when it
missed a message. Points travel flat, ``[x, y, x, y, ...]``, a gap as null.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from workbench import notebook
from workbench.evaluate.profile import profile as _profile
from workbench.evaluate.profiles import Profiles
from workbench.figures.figure import short
from workbench.figures.live import Curve, Curves, growing, presented_by
from workbench.finetune import Training
from workbench.finetune import finetune as _finetune
from workbench.progress import Bar, clock, progress
from workbench.widgets.view import View

_HZ = 10.0
_STATUS_SECONDS = 1.0
_UNHEARD_SECONDS, _REPEAT_SECONDS = 1.0, 10.0
"""Between whole states: until the front end was heard, and where it is heard between cells only."""
_Sent = tuple[int, int, tuple[float, float | None] | None]
"""Of one curve: generation, number of points and tip that the front end has."""
_KEPT_VIEWS = 2
_MIME = "application/vnd.jupyter.widget-view+json"
_kept: list[View] = []


@contextlib.contextmanager
def curves(
    title: str,
    *,
    total: float | None = None,
    x_title: str = "step",
    units: Mapping[str, str] | None = None,
    quiet: bool | None = None,
) -> Iterator[Curves]:
    """Draw values while your own loop runs: ``with wb.curves("my training") as live: ...``.

    In a live notebook the curves grow in the cell and end as a figure; in batch the figure is the
    output; in a terminal one line of progress shows the latest values. Values whose names end in
    the same word share a panel.

    Args:
        title: What the work is.
        total: Number of steps, or None when it is not known.
        x_title: Title of the horizontal axis.
        units: Unit by name of a value or by its last word, for example ``{"memory": "MB"}``.
        quiet: Show no progress line; None asks ``WORKBENCH_QUIET``.

    Yields:
        The curves: ``live.add(step, loss=0.4, memory=812)``, ``live.figure()``.
    """
    with contextlib.ExitStack() as stack:
        if not _can_live():
            unit = "steps" if x_title == "step" else x_title
            bar = stack.enter_context(progress(title, total=total, unit=unit, quiet=quiet))
        stack.enter_context(presented_by(presented))
        live = stack.enter_context(growing(title, total=total, x_title=x_title, units=units))
        if not _can_live():
            live.watch(functools.partial(_tell, live, bar))
        yield live


@functools.wraps(_finetune)
def finetune(*arguments: Any, **settings: Any) -> Training:
    """Fine-tune with live curves; documented in ``workbench.finetune``."""
    with presented_by(presented):
        return _finetune(*arguments, **settings)


@functools.wraps(_profile)
def profile(*arguments: Any, **settings: Any) -> Profiles:
    """Profile with a live curve of memory; documented in ``workbench.evaluate.profile``."""
    with presented_by(presented):
        return _profile(*arguments, **settings)


@contextlib.contextmanager
def presented(curves: Curves) -> Iterator[None]:
    """Show curves in the cell that runs while the block adds to them, then their figure."""
    if not notebook.in_kernel():
        yield
        return
    display = notebook.Display()
    stage = _Stage(curves, display) if _can_live() else None
    try:
        yield
    finally:
        if stage is not None:
            stage.end()
        if stage is not None or curves.step is not None:
            display.show(curves._repr_mimebundle_())
        if stage is not None:
            stage.leave()


def _can_live() -> bool:
    return notebook.live() and importlib.util.find_spec("anywidget") is not None


def _tell(live: Curves, bar: Bar) -> None:
    bar.update(done=live.step, note=live.brief())


class _Stage:
    """The live view of some curves, and the thread that sends what is new ten times a second."""

    def __init__(self, curves: Curves, display: notebook.Display) -> None:
        self._curves = curves
        self._sent: dict[str, _Sent] = {}
        self._changed, self._ended = threading.Event(), threading.Event()
        self._began = time.monotonic()
        self._next_state = self._next_status = 0.0
        self._view = _CurvesView("curves", state=self._state, handlers={}, lock=curves.lock)
        spec = {"version_major": 2, "version_minor": 0, "model_id": self._view.model_id}
        display.show({_MIME: spec, "text/plain": f"{curves.title}: drawn live while the cell ran"})
        curves.watch(self._changed.set)
        self._thread = threading.Thread(target=self._run, name="live curves", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Send what is left and that it is over."""
        self._ended.set()
        self._changed.set()
        self._thread.join()
        with self._curves.lock:
            self._flush()
            self._view.send("end", outcome=self._curves.outcome, status=self._status())

    def leave(self) -> None:
        """Keep the view of the latest works for pages that were reloaded, and close older ones.

        A page that was reloaded while the cell ran lost the place of the figure, and can ask for
        the view only when the cell is over.
        """
        _kept.append(self._view)
        while len(_kept) > _KEPT_VIEWS:
            _kept.pop(0).close()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._changed.wait(_UNHEARD_SECONDS)
            self._changed.clear()
            self._flush()
            self._ended.wait(1 / _HZ)

    def _flush(self) -> None:
        """Send the points that are new; the whole state where that alone will do."""
        with self._curves.lock:
            now, view = time.monotonic(), self._view
            if not view.heard or (not view.subshell and now >= self._next_state):
                if now >= self._next_state:
                    view.send_state()
                return
            begun = [curve for panel in self._curves.panels() for curve in panel.curves]
            if any(curve.name not in self._sent for curve in begun):
                view.send_state()
                return
            news = {curve.name: self._news(curve) for curve in begun if self._is_new(curve)}
            if news or now >= self._next_status:  # the clock goes on while nothing comes
                self._next_status = now + _STATUS_SECONDS
                view.send("add", curves=news, status=self._status())

    def _is_new(self, curve: Curve) -> bool:
        return self._sent[curve.name] != _mark(curve)

    def _news(self, curve: Curve) -> dict[str, Any]:
        generation, count, _ = self._sent[curve.name]
        whole = generation != curve.generation
        new = curve.points if whole else curve.points[count:]
        self._sent[curve.name] = _mark(curve)
        return {"whole": whole, "points": _flat(new), "tip": curve.tip}

    def _state(self) -> dict[str, Any]:
        """Return everything; called with the lock held."""
        pause = _REPEAT_SECONDS if self._view.heard else _UNHEARD_SECONDS
        self._next_state = time.monotonic() + pause
        live = self._curves
        axes = list(dict.fromkeys((each.family, each.unit) for each in live.curves.values()))
        by_axis = sorted(
            live.curves.values(), key=lambda each: axes.index((each.family, each.unit))
        )
        order = {curve.name: index for index, curve in enumerate(by_axis)}
        panels = live.panels()
        begun = [curve for panel in panels for curve in panel.curves]
        self._sent = {curve.name: _mark(curve) for curve in begun}
        return {
            "title": live.title,
            "x_title": live.x_title,
            "total": live.total,
            "status": self._status(),
            "outcome": live.outcome,
            "reloaded": self._view.reloaded,
            "panels": [
                {
                    "title": panel.title,
                    "unit": panel.unit,
                    "curves": [_described(curve, order) for curve in panel.curves],
                }
                for panel in panels
            ],
        }

    def _status(self) -> str:
        live, elapsed = self._curves, time.monotonic() - self._began
        step = live.step
        whole = step is not None and float(step).is_integer()
        told = f"{step:,.10g}" if whole else short(step)
        said = [] if step is None else [f"{live.x_title} {told}"]
        share = step / live.total if step and live.total else None
        if share is not None:
            said[0] += f" of {live.total:,.10g}"
        left = elapsed / share - elapsed if share else 0.0
        remaining = f" ({clock(left)} left)" if left >= 1 and live.outcome is None else ""
        return ", ".join([*said, f"{clock(elapsed)}{remaining}"])


class _CurvesView(View):
    """Remembers who asked for the state: a second view means that the page was reloaded."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._asked: set[str | None] = set()
        super().__init__(*arguments, **settings)

    @property
    def heard(self) -> bool:
        """Whether a front end asked for the state."""
        return bool(self._asked)

    @property
    def reloaded(self) -> bool:
        """Whether more than one view asked."""
        return len(self._asked) > 1

    def send_state(self, view: str | None = None) -> None:
        """Send the whole state, asked or not, and note which view asked for it.

        The first question of a front end may wait behind the cell that runs.
        """
        if view is not None:
            self._asked.add(view)
        self.greeted = True
        super().send_state(view)


def _mark(curve: Curve) -> _Sent:
    return curve.generation, len(curve.points), curve.tip


def _described(curve: Curve, order: Mapping[str, int]) -> dict[str, Any]:
    return {
        "name": curve.name,
        "label": curve.label,
        "color": order[curve.name],
        "points": _flat(curve.points),
        "tip": curve.tip,
    }


def _flat(points: list[tuple[float, float | None]]) -> list[float | None]:
    return [value for point in points for value in point]
