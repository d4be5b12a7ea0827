"""Curves that grow while work goes on: bounded, told to whoever watches, a figure in the end."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

from workbench.errors import InputError
from workbench.figures.builders import line
from workbench.figures.figure import Figure, short
from workbench.figures.panels import Panels

MOST = 1000
"""Most points that are kept of one curve."""
Point = tuple[float, float | None]


class Curve:
    """One curve of at most ``MOST`` points; each stretch keeps its least and its greatest value.

    Attributes:
        name: What it is called by who adds to it.
        label: What the legend calls it.
        family: Which panel it belongs to, with its unit: the last word of its name, or the one
            panel that all share.
        unit: Unit of the values, or an empty text.
        points: The points that stay, in the order they came; only appended to until ``generation``
            grows.
        generation: How often ``points`` was thinned out to half.
        last: The latest point.
    """

    def __init__(self, name: str, *, unit: str = "", panel: str = "") -> None:
        self.name, self.unit = name, unit
        self.label = name if panel else name.replace("_", " ")
        self.family = panel or re.split(r"[ _-]", name)[-1] or name
        self.points: list[Point] = []
        self.generation = 0
        self.last: Point = (0.0, None)
        self._open: list[Point] = []
        self._stretch = 2  # points of which two are kept

    def add(self, x: float, y: float | None) -> None:
        """Append one point."""
        self.last = (x, y)
        self._open.append(self.last)
        if len(self._open) < self._stretch:
            return
        self.points += _extremes(self._open)
        self._open = []
        if len(self.points) >= MOST:
            fours = (self.points[start : start + 4] for start in range(0, len(self.points), 4))
            self.points = [point for four in fours for point in _extremes(four)]
            self._stretch *= 2
            self.generation += 1

    @property
    def empty(self) -> bool:
        """Whether nothing was added yet."""
        return not self.points and not self._open

    @property
    def tip(self) -> Point | None:
        """The latest point where it is not the last of ``points``, else None."""
        return None if self.points and self.points[-1] == self.last else self.last

    def all(self) -> list[Point]:
        """Return every point that is known, the latest one at the end."""
        rest = _extremes(self._open) if len(self._open) > 2 else self._open
        found = [*self.points, *rest]
        return found if found and found[-1] == self.last else [*found, self.last]


def _extremes(points: list[Point]) -> list[Point]:
    """Return two of the points, in their order: the least and the greatest, no gap counted."""
    if len(points) <= 2:
        return list(points)
    known = [index for index, (_, y) in enumerate(points) if y is not None]
    low = min(known, key=lambda index: _height(points[index]), default=0)
    high = max(known, key=lambda index: _height(points[index]), default=0)
    if low == high:
        high = len(points) - 1 if low == 0 else 0
    return [points[index] for index in sorted((low, high))]


def _height(point: Point) -> float:
    return 0.0 if point[1] is None else point[1]


@dataclasses.dataclass(frozen=True, slots=True)
class Panel:
    """Curves that share a vertical axis."""

    title: str
    unit: str
    curves: tuple[Curve, ...]


class Curves:
    """The curves of one piece of work; safe to add to and to read from several threads.

    Values whose names end in the same word share a panel: ``training_loss`` and ``held_out_loss``
    stand on one axis, ``memory`` has its own.

    Args:
        title: What the work is.
        total: Last value of the horizontal axis, or None when it is not known.
        x_title: Title of the horizontal axis.
        units: Unit by name of a value or by the last word of it, ``{"memory": "MB"}``.
        names: Names in the order that legends list them; others follow as they come.
        panel: Title of one panel that all values share, and their names stay as they are given.

    Attributes:
        curves: The curves by name, in that order; one may be empty yet.
        outcome: None while it goes on, then ``done``, ``failed`` or ``interrupted``.
    """

    def __init__(
        self,
        title: str,
        *,
        total: float | None = None,
        x_title: str = "step",
        units: Mapping[str, str] | None = None,
        names: Sequence[str] = (),
        panel: str = "",
    ) -> None:
        self.title, self.total, self.x_title = title, total, x_title
        self._panel = panel
        self._units = dict(units or {})
        self.curves: dict[str, Curve] = {name: self._new(name) for name in names}
        self.outcome: str | None = None
        self.lock = threading.RLock()
        self._watchers: list[Callable[[], None]] = []

    def add(self, step: float, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Add values at a step; call it as often as you like, drawing is limited by a clock.

        Args:
            step: Where on the horizontal axis.
            values: Values by name, for names that are no identifiers.
            more: Values by name. None, NaN and infinity leave a gap.

        Raises:
            InputError: The step or a value is no number.
        """
        x = _number(step, "The step", digits=9)
        if x is None:
            raise InputError(f"The step {step!r} is no finite number.")
        given = {**(values or {}), **more}
        read = {name: _number(value, name, digits=5) for name, value in given.items()}
        with self.lock:
            for name, y in read.items():
                if name not in self.curves:
                    self.curves[name] = self._new(name)
                self.curves[name].add(x, y)
        for tell in self._watchers:
            tell()

    def watch(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` after each addition, in the thread that added; it must be quick."""
        self._watchers.append(tell)

    @property
    def step(self) -> float | None:
        """The latest step of any curve, or None."""
        with self.lock:
            return max((curve.last[0] for curve in self._begun()), default=None)

    def panels(self) -> list[Panel]:
        """Return the curves by the axis that they share."""
        with self.lock:
            found: dict[tuple[str, str], list[Curve]] = {}
            for curve in self._begun():
                found.setdefault((curve.family, curve.unit), []).append(curve)
        return [Panel(title, unit, tuple(each)) for (title, unit), each in found.items()]

    def brief(self) -> str:
        """Return the latest values in few words: ``training loss 0.41, memory 812 MB``."""
        with self.lock:
            said = [f"{curve.label} {_told(curve.last[1], curve.unit)}" for curve in self._begun()]
        return ", ".join(said)

    def figure(self) -> Figure | Panels:
        """Return what was drawn as a figure that stays.

        Raises:
            InputError: There is no value yet.
        """
        with self.lock:
            panels = self.panels()
            if not panels:
                raise InputError(
                    f"{self.title!r} has no values yet.", hint="Add some with live.add(step, ...)."
                )
            alone = len(panels) == 1
            made = tuple(
                line(
                    {curve.label: _drawable(curve) for curve in panel.curves},
                    title=self.title if alone else panel.title,
                    x_title=self.x_title,
                    y_title=panel.title,
                    unit=panel.unit,
                )
                for panel in panels
            )
        return made[0] if alone else Panels(title=self.title, figures=made)

    def _begun(self) -> list[Curve]:
        return [curve for curve in self.curves.values() if not curve.empty]

    def _new(self, name: str) -> Curve:
        curve = Curve(name, panel=self._panel)
        curve.unit = self._units.get(name, self._units.get(curve.family, ""))
        return curve

    def __str__(self) -> str:
        return f"{self.title}: {self.brief() or 'no values yet'}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return self.figure()._repr_mimebundle_() if self._begun() else {"text/plain": str(self)}


def _told(value: float | None, unit: str) -> str:
    return f"{short(value)} {unit}" if unit and value is not None else short(value)


def _drawable(curve: Curve) -> list[tuple[float, float]]:
    return [(x, math.nan if y is None else y) for x, y in curve.all()]


def _number(value: Any, name: str, *, digits: int) -> float | None:
    """Return a plain number, or None for none, NaN and infinity."""
    if value is None:
        return None
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, int):
        return int(plain)
    if not isinstance(plain, float):
        raise InputError(f"{name} is {value!r}, which is no number.")
    return float(f"{plain:.{digits}g}") if math.isfinite(plain) else None


Presenter = Callable[[Curves], AbstractContextManager[None]]
_presenter: ContextVar[Presenter | None] = ContextVar("presenter", default=None)


@contextlib.contextmanager
def presented_by(presenter: Presenter) -> Iterator[None]:
    """Let ``presenter`` show the curves that work within the block makes."""
    before = _presenter.set(presenter)
    try:
        yield
    finally:
        _presenter.reset(before)


@contextlib.contextmanager
def growing(
    title: str,
    *,
    total: float | None = None,
    x_title: str = "step",
    units: Mapping[str, str] | None = None,
    names: Sequence[str] = (),
    panel: str = "",
    quiet: bool = False,
) -> Iterator[Curves]:
    """Keep curves while the block works, and show them where somebody asked for that.

    Args:
        title: What the work is.
        total: Last value of the horizontal axis, or None.
        x_title: Title of the horizontal axis.
        units: Unit by name of a value.
        names: Names in the order that legends list them.
        panel: Title of one panel that all values share.
        quiet: Show nothing.

    Yields:
        The curves, to add values to.
    """
    curves = Curves(title, total=total, x_title=x_title, units=units, names=names, panel=panel)
    presenter = None if quiet else _presenter.get()
    with presenter(curves) if presenter is not None else contextlib.nullcontext():
        try:
            yield curves
        except BaseException as error:
            curves.outcome = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            raise
        else:
            curves.outcome = "done"
