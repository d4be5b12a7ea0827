"""Make figures from plain data: bars, stacked bars, lines, scatter with labels, heatmap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workbench.errors import InputError
from workbench.figures.figure import Figure, Kind, Series, Value, rounded, short

MOST_POINTS = 1500
_LISTED = 8
Bars = Mapping[str, Mapping[str, Any]] | Mapping[str, Any]


def bar(data: Bars, *, title: str, x_title: str = "", y_title: str = "", unit: str = "") -> Figure:
    """Return bars, grouped when there is more than one series.

    Args:
        data: ``{series: {category: value}}``, or ``{category: value}`` for one series. A value
            None, NaN or missing leaves a gap, and the summary says so.
        title: What it shows.
        x_title: Title of the categories.
        y_title: Title of the values.
        unit: Unit of the values, for example ``tokens/s``.

    Raises:
        InputError: There is nothing to draw.
    """
    return _bars("bar", data, title=title, x_title=x_title, y_title=y_title, unit=unit)


def stacked(
    data: Bars, *, title: str, x_title: str = "", y_title: str = "", unit: str = ""
) -> Figure:
    """Return bars with the series stacked on one another; arguments as for ``bar``."""
    return _bars("stacked", data, title=title, x_title=x_title, y_title=y_title, unit=unit)


def line(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_title: str = "",
    y_title: str = "",
    unit: str = "",
    log_y: bool = False,
) -> Figure:
    """Return curves; of more than 1500 points the least and greatest of each stretch are kept.

    Args:
        series: ``{name: [(x, y), ...]}`` in the order of x.
        title: What it shows.
        x_title: Title of the horizontal axis.
        y_title: Title of the vertical axis.
        unit: Unit of y.
        log_y: Logarithmic vertical axis.

    Raises:
        InputError: There is no series, or one has no point.
    """
    _require(title, series)
    made = []
    for name, points in series.items():
        _require(f"{title}: {name}", points)
        kept = _thinned([(rounded(x), rounded(y)) for x, y in points])
        made.append(Series(name=name, x=tuple(x for x, _ in kept), y=tuple(y for _, y in kept)))
    said = "; ".join(
        f"{f'{each.name}: ' if len(made) > 1 else ''}{short(each.y[0])} at {short(each.x[0])}, "
        f"{short(each.y[-1])} at {short(each.x[-1])}"
        for each in made[:_LISTED]
    )
    return Figure(
        kind="line",
        title=title,
        summary=f"{_capital(y_title or 'Value')}{_in(unit)}: {said}.",
        series=tuple(made),
        x_title=x_title,
        y_title=y_title,
        unit=unit,
        log_y=log_y,
    )


def scatter(
    points: Sequence[Mapping[str, Any]],
    *,
    x: str,
    y: str,
    label: str,
    title: str,
    x_title: str = "",
    y_title: str = "",
    unit: str = "",
    log_x: bool = False,
) -> Figure:
    """Return labelled points.

    Args:
        points: Rows; those without a finite x and y are named in the summary, not drawn.
        x: Key of the horizontal value.
        y: Key of the vertical value.
        label: Key of the text beside the point.
        title: What it shows.
        x_title: Title of the horizontal axis; default is the key.
        y_title: Title of the vertical axis; default is the key.
        unit: Unit of y.
        log_x: Logarithmic horizontal axis.

    Raises:
        InputError: No row has both values.
    """
    rows = [(rounded(row.get(x)), rounded(row.get(y)), str(row.get(label, ""))) for row in points]
    drawn = [(a, b, name) for a, b, name in rows if a is not None and b is not None]
    _require(title, drawn)
    left_out = [name for a, b, name in rows if a is None or b is None]
    said = "; ".join(f"{name} ({short(a)}, {short(b)})" for a, b, name in drawn[:_LISTED])
    series = Series(
        name=y_title or y,
        x=tuple(a for a, _, _ in drawn),
        y=tuple(b for _, b, _ in drawn),
        labels=tuple(name for _, _, name in drawn),
    )
    return Figure(
        kind="scatter",
        title=title,
        summary=f"({x_title or x}, {y_title or y}): {said}.{_missing(left_out)}",
        series=(series,),
        x_title=x_title or x,
        y_title=y_title or y,
        unit=unit,
        log_x=log_x,
    )


def heatmap(
    data: Mapping[str, Mapping[str, Any]],
    *,
    title: str,
    x_title: str = "",
    y_title: str = "",
    unit: str = "",
) -> Figure:
    """Return a heatmap.

    Args:
        data: ``{row: {column: value}}``; rows are drawn from the top.
        title: What it shows.
        x_title: Title of the columns.
        y_title: Title of the rows.
        unit: Unit of the values.

    Raises:
        InputError: There is nothing to draw.
    """
    _require(title, data)
    columns = _categories(data.values())
    _require(title, columns)
    cells = tuple(tuple(rounded(row.get(column)) for column in columns) for row in data.values())
    known = [
        (cell, row, column)
        for row, values in zip(data, cells, strict=True)
        for column, cell in zip(columns, values, strict=True)
        if cell is not None
    ]
    _require(title, known)
    low, high = min(known), max(known)
    return Figure(
        kind="heatmap",
        title=title,
        summary=f"Least {short(low[0])}{_unit(unit)} ({low[1]}, {low[2]}), "
        f"greatest {short(high[0])}{_unit(unit)} ({high[1]}, {high[2]}).",
        series=(Series(name=title, x=tuple(columns), y=tuple(data)),),
        cells=cells,
        x_title=x_title,
        y_title=y_title,
        unit=unit,
    )


def _bars(kind: Kind, data: Bars, *, title: str, x_title: str, y_title: str, unit: str) -> Figure:
    _require(title, data)
    nested = {name: values for name, values in data.items() if isinstance(values, Mapping)} or {
        y_title or title: data
    }
    categories = _categories(nested.values())
    _require(title, categories)
    series = tuple(
        Series(name=name, x=tuple(categories), y=tuple(rounded(values.get(c)) for c in categories))
        for name, values in nested.items()
    )
    return Figure(
        kind=kind,
        title=title,
        summary=_bars_said(series, y_title or "Value", unit),
        series=series,
        x_title=x_title,
        y_title=y_title,
        unit=unit,
    )


def _bars_said(series: tuple[Series, ...], y_title: str, unit: str) -> str:
    sentences, missing = [], []
    for each in series:
        pairs = [(y, x) for x, y in zip(each.x, each.y, strict=True) if y is not None]
        missing += [str(x) for x, y in zip(each.x, each.y, strict=True) if y is None]
        if len(series) == 1 or len(pairs) <= 4:
            said = ", ".join(f"{x} {short(y)}" for y, x in pairs[:_LISTED])
            said += ", ..." if len(pairs) > _LISTED else ""
        else:
            low, high = min(pairs, key=_value), max(pairs, key=_value)
            said = f"{short(low[0])} ({low[1]}) to {short(high[0])} ({high[1]})"
        sentences.append(said if len(series) == 1 else f"{each.name}: {said}")
    return f"{_capital(y_title)}{_in(unit)}: {'; '.join(sentences)}.{_missing(missing)}"


def _value(pair: tuple[Value, Value]) -> float:
    return float(pair[0]) if isinstance(pair[0], (int, float)) else 0.0


def _categories(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _thinned(points: list[tuple[Value, Value]]) -> list[tuple[Value, Value]]:
    """Keep the least and greatest point of each stretch, so that no spike is lost."""
    if len(points) <= MOST_POINTS:
        return points
    stretch = -(-len(points) * 2 // (MOST_POINTS - 2))
    kept = [points[0]]
    for start in range(1, len(points) - 1, stretch):
        part = [point for point in points[start : start + stretch] if point[1] is not None]
        if part:
            ends = {min(range(len(part)), key=lambda i: _at(part, i))}
            ends.add(max(range(len(part)), key=lambda i: _at(part, i)))
            kept += [part[index] for index in sorted(ends)]
    return [*kept, points[-1]]


def _at(part: list[tuple[Value, Value]], index: int) -> float:
    value = part[index][1]
    return float(value) if isinstance(value, (int, float)) else 0.0


def _missing(names: Sequence[str]) -> str:
    return f" No value: {', '.join(dict.fromkeys(names))}." if names else ""


def _in(unit: str) -> str:
    return f" in {unit}" if unit else ""


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _require(title: str, data: Any) -> None:
    if len(data) == 0:
        raise InputError(
            f"The figure {title!r} has no data.", hint="Give at least one value to draw."
        )
