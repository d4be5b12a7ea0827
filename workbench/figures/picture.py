"""Draw a figure's data as a PNG with matplotlib: no browser, no window, no global setting."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from workbench.figures.figure import (
    GRID,
    HEIGHT,
    INK,
    MOST_LABELS,
    PALETTE,
    PAPER,
    SCALE,
    Figure,
    short,
)
from workbench.figures.panels import Panels
from workbench.figures.table import width as width_of

WIDTH, DPI = 760, 100  # as wide as JupyterLab can show, and as high as the interactive figure
_LETTERS = 88  # that fit beside each other below the axis
_WIDE_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans JP",
    "IPAexGothic",
    "IPAGothic",
    "Hiragino Sans",
    "Yu Gothic",
    "Meiryo",
    "Source Han Sans JP",
    "Droid Sans Fallback",
    "WenQuanYi Micro Hei",
)
_lock = threading.Lock()  # matplotlib is not made for threads, and widgets call from theirs


def draw(figure: Figure) -> bytes | None:
    """Return the picture as PNG bytes, or None where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    with _quiet():
        sheet = _sheet(HEIGHT)
        axes = sheet.add_subplot()
        pad = 32 if len(figure.series) > 1 else 12
        axes.set_title(figure.title, loc="left", fontsize=12, fontweight="bold", pad=pad)
        axes.set_xlabel(figure.x_title)
        axes.set_ylabel(figure.value_title)
        {"bar": _bars, "stacked": _bars, "line": _lines, "scatter": _points, "heatmap": _cells}[
            figure.kind
        ](figure, axes)
        _style(figure, axes)
        return _png(sheet)


def draw_panels(panels: Panels) -> bytes | None:
    """Return the picture of several figures, one above the other, or None without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    with _quiet():
        sheet = _sheet(panels.height)
        count = len(panels.figures)
        rows = sheet.subplots(count, sharex=True, squeeze=False)[:, 0]
        drawn = 0
        for figure, axes in zip(panels.figures, rows, strict=True):
            axes.set_ylabel(figure.value_title)
            _lines(figure, axes, first=drawn)
            _style(figure, axes)
            if len(figure.series) == 1:
                _legend(axes, 1)
            drawn += len(figure.series)
        rows[-1].set_xlabel(panels.figures[-1].x_title)
        sheet.align_ylabels(rows)
        rows[0].set_title(panels.title, loc="left", fontsize=12, fontweight="bold", pad=32)
        return _png(sheet)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold matplotlib for this thread; a missing glyph is a box, not a line on stderr."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _sheet(height: int) -> Any:
    import matplotlib.figure
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    sheet = matplotlib.figure.Figure(
        figsize=(WIDTH / 100, height / 100), dpi=DPI, facecolor=PAPER, layout="constrained"
    )
    FigureCanvasAgg(sheet)
    return sheet


def _png(sheet: Any) -> bytes:
    texts: list[Any] = sheet.findobj(lambda artist: hasattr(artist, "set_parse_math"))
    for text in texts:
        text.set_parse_math(False)  # "$" in a label is a dollar
        text.set_fontfamily(_families())
    stream = io.BytesIO()
    sheet.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _bars(figure: Figure, axes: Any) -> None:
    count = len(figure.series)
    stack = figure.kind == "stacked"
    width = 0.72 if stack else 0.72 / count
    categories = figure.series[0].x
    bottoms = [0.0] * len(categories)
    labelled = not stack and count * len(categories) <= MOST_LABELS
    for index, series in enumerate(figure.series):
        shift = 0.0 if stack else (index - (count - 1) / 2) * width
        heights = [0.0 if y is None else float(y) for y in series.y]
        drawn = axes.bar(
            [position + shift for position in range(len(categories))],
            heights,
            width=width * 0.94,
            bottom=bottoms if stack else None,
            color=PALETTE[index % len(PALETTE)],
            label=series.name,
        )
        if stack:
            bottoms = [low + height for low, height in zip(bottoms, heights, strict=True)]
        if labelled:
            texts = ["" if y is None else short(y) for y in series.y]
            axes.bar_label(drawn, texts, padding=2, fontsize=8)
    room = 0.6 + max(0, 3 - len(categories)) / 3  # one or two bars do not fill the sheet
    axes.set_xlim(-room, len(categories) - 1 + room)
    _gaps(figure, axes)
    names = [str(category) for category in categories]
    long = len(names) * (max(map(width_of, names)) + 2) > _LETTERS
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axes.set_xticks(range(len(names)), names, **turned)


def _gaps(figure: Figure, axes: Any) -> None:
    for position in range(len(figure.series[0].x)):
        if all(series.y[position] is None for series in figure.series):
            axes.annotate(
                "no value",
                (position, 0),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color="#6e7781",
            )


def _lines(figure: Figure, axes: Any, *, first: int = 0) -> None:
    for index, series in enumerate(figure.series, first):
        axes.plot(
            series.x,
            [float("nan") if y is None else y for y in series.y],
            color=PALETTE[index % len(PALETTE)],
            linewidth=1.8,
            marker="o" if len(series.x) <= 30 else None,
            markersize=4,
            label=series.name,
        )


def _points(figure: Figure, axes: Any) -> None:
    series = figure.series[0]
    axes.scatter(series.x, series.y, color=PALETTE[0], s=48)
    for x, y, label in zip(series.x, series.y, series.labels, strict=True):
        axes.annotate(
            label, (x, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=9
        )
    axes.margins(0.12)


def _cells(figure: Figure, axes: Any) -> None:
    series = figure.series[0]
    values = [[float("nan") if z is None else float(z) for z in row] for row in figure.cells]
    image = axes.imshow(values, cmap=SCALE.lower(), aspect="auto")
    axes.set_xticks(range(len(series.x)), [str(x) for x in series.x])
    axes.set_yticks(range(len(series.y)), [str(y) for y in series.y])
    bar = axes.figure.colorbar(image, ax=axes, label=figure.unit)
    bar.outline.set_visible(False)
    if len(series.x) * len(series.y) > 200:
        return
    for row, cells in enumerate(figure.cells):
        for column, cell in enumerate(cells):
            if cell is not None:
                dark = image.norm(float(cell)) < 0.55
                color = "white" if dark else "black"
                axes.text(column, row, short(cell), ha="center", va="center", color=color)


def _style(figure: Figure, axes: Any) -> None:
    for axis, logarithmic in (("x", figure.log_x), ("y", figure.log_y)):
        if logarithmic:
            getattr(axes, f"set_{axis}scale")("log")
            getattr(axes, f"{axis}axis").set_major_formatter(_decimal)
            getattr(axes, f"{axis}axis").set_minor_formatter("")
            _few_ticks(getattr(axes, f"{axis}axis"), getattr(axes, f"get_{axis}lim")())
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa2ab")
    axes.tick_params(colors=INK, labelfontfamily=_families())
    if figure.kind == "heatmap":
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        return
    axes.set_axisbelow(True)
    axes.grid(axis="both" if figure.kind in ("line", "scatter") else "y", color=GRID)
    if len(figure.series) > 1:
        _legend(axes, len(figure.series))


def _legend(axes: Any, count: int) -> None:
    axes.legend(
        frameon=False,
        fontsize=9,
        ncols=min(5, count),
        loc="lower left",
        bbox_to_anchor=(-0.01, 0.99),
        borderaxespad=0.2,
    )


def _decimal(value: float, _: object) -> str:
    return short(value)


def _few_ticks(axis: Any, limits: tuple[float, float]) -> None:
    """Between less than two powers of ten, put the ticks of a log axis at 1, 2 and 5."""
    if limits[1] < 100 * limits[0]:
        from matplotlib.ticker import LogLocator

        axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))


@functools.cache
def _families() -> list[str]:
    """Return the fonts to try in turn: matplotlib's own, then an installed Japanese one."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    from matplotlib.font_manager import fontManager

    installed: set[Any] = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *[name for name in _WIDE_FONTS if name in installed][:1]]
