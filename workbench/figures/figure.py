"""A figure is plain data that draws itself twice: as plotly JSON and as a static picture."""

from __future__ import annotations

import base64
import dataclasses
import html
import math
from typing import Any, Literal, Protocol

Kind = Literal["bar", "stacked", "line", "scatter", "heatmap"]
Value = str | float | int | None

# Okabe and Ito, "Color Universal Design" (2008): told apart also by colour-blind readers.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B5B5B", "#A6761D")
INK, GRID, PAPER = "#24292f", "#e6e8eb", "#ffffff"
SCALE = "Cividis"
FONTS = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans CJK JP', "
    "'Noto Sans JP', 'Hiragino Sans', 'Yu Gothic', Meiryo, sans-serif"
)
MOST_LABELS = 28
HEIGHT = 420


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One set of marks of a figure.

    Attributes:
        name: What the legend calls it.
        x: Positions or categories.
        y: Values, None where there is none; for a heatmap the row names.
        labels: Text beside each mark, or nothing.
    """

    name: str
    x: tuple[Value, ...]
    y: tuple[Value, ...]
    labels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure made of plain data; the last line of a cell shows it.

    Attributes:
        kind: ``bar``, ``stacked``, ``line``, ``scatter`` or ``heatmap``.
        title: What it shows.
        summary: One or two sentences with its numbers, for those who do not see it.
        series: The data, rounded to five digits.
        cells: Values of a heatmap, one tuple for each row.
        x_title: Title of the horizontal axis.
        y_title: Title of the vertical axis.
        unit: Unit of the values.
        log_x: Logarithmic horizontal axis.
        log_y: Logarithmic vertical axis.
    """

    kind: Kind
    title: str
    summary: str
    series: tuple[Series, ...]
    cells: tuple[tuple[Value, ...], ...] = ()
    x_title: str = ""
    y_title: str = ""
    unit: str = ""
    log_x: bool = False
    log_y: bool = False

    def as_plotly(self) -> dict[str, Any]:
        """Return plotly's JSON form, ``{"data": [...], "layout": {...}}``, made without plotly."""
        return {"data": _data(self), "layout": _layout(self)}

    def plotly(self) -> Any:
        """Return a ``plotly.graph_objects.Figure`` to change or combine (needs plotly)."""
        import plotly.graph_objects

        return plotly.graph_objects.Figure(self.as_plotly())

    def picture(self) -> bytes | None:
        """Return the static picture as PNG bytes, or None where matplotlib is not installed."""
        from workbench.figures.picture import draw

        return draw(self)

    @property
    def value_title(self) -> str:
        """The title of the vertical axis, with the unit where it shows the values."""
        if self.kind == "heatmap":
            return self.y_title
        return (
            f"{self.y_title} ({self.unit})"
            if self.unit and self.y_title
            else (self.y_title or self.unit)
        )

    def __str__(self) -> str:
        return f"{self.title}. {self.summary}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return displayed(self)


def rounded(value: Any) -> Any:
    """Return a plain value: five significant digits, None for what is no finite number."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, (str, bool, int)):
        return plain
    number = float(plain)
    return float(f"{number:.5g}") if math.isfinite(number) else None


def short(value: Value) -> str:
    """Return a number for reading: three significant digits, thousands in full."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
        text = f"{value:,.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.2e}"


def _data(figure: Figure) -> list[dict[str, Any]]:
    if figure.kind == "heatmap":
        return [_heatmap(figure)]
    return [_trace(figure, index, series) for index, series in enumerate(figure.series)]


def _trace(figure: Figure, index: int, series: Series) -> dict[str, Any]:
    color = PALETTE[index % len(PALETTE)]
    unit = f" {_text(figure.unit)}" if figure.unit else ""
    trace: dict[str, Any] = {
        "name": _text(series.name),
        "x": [_text(x) for x in series.x],
        "y": list(series.y),
        "hovertemplate": f"%{{x}}: %{{y:.5~g}}{unit}<extra>{_text(series.name)}</extra>",
    }
    if figure.kind in ("bar", "stacked"):
        trace |= {"type": "bar", "marker": {"color": color}}
        if sum(len(each.x) for each in figure.series) <= MOST_LABELS and figure.kind == "bar":
            trace |= {
                "text": ["" if y is None else short(y) for y in series.y],
                "textposition": "outside",
                "cliponaxis": False,
                "textfont": {"size": 11},
            }
    elif figure.kind == "line":
        mode = "lines+markers" if len(series.x) <= 30 else "lines"
        trace |= {"type": "scatter", "mode": mode, "line": {"color": color, "width": 2}}
    else:
        trace |= {
            "type": "scatter",
            "mode": "markers+text",
            "marker": {"color": color, "size": 11},
            "text": [_text(label) for label in series.labels],
            "textposition": "top center",
            "cliponaxis": False,
            "hovertemplate": f"%{{text}}<br>{_text(figure.x_title)} %{{x:.5~g}}"
            f"<br>{_text(figure.y_title)} %{{y:.5~g}}{unit}<extra></extra>",
        }
    return trace


def _heatmap(figure: Figure) -> dict[str, Any]:
    series = figure.series[0]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": [_text(x) for x in series.x],
        "y": [_text(y) for y in series.y],
        "z": [list(row) for row in figure.cells],
        "colorscale": SCALE,
        "colorbar": {"title": {"text": _text(figure.unit)}, "outlinewidth": 0},
        "xgap": 2,
        "ygap": 2,
        "hovertemplate": "%{y}, %{x}: %{z:.5~g}<extra></extra>",
    }
    if len(series.x) * len(series.y) <= 200:
        trace["text"] = [["" if z is None else short(z) for z in row] for row in figure.cells]
        trace["texttemplate"] = "%{text}"
    return trace


def _layout(figure: Figure) -> dict[str, Any]:
    legend = len(figure.series) > 1
    layout: dict[str, Any] = {
        "title": {
            "text": _text(figure.title),
            "x": 0,
            "xref": "paper",
            "y": 0.97,
            "yref": "container",
            "yanchor": "top",
            "font": {"size": 15, "weight": 600},
        },
        "font": {"family": FONTS, "size": 13, "color": INK},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "height": HEIGHT,
        "margin": {"l": 64, "r": 24, "t": 84 if legend else 56, "b": 56 if figure.x_title else 36},
        "xaxis": _axis(figure.x_title, log=figure.log_x, grid=figure.kind in ("line", "scatter")),
        "yaxis": _axis(figure.value_title, log=figure.log_y, grid=figure.kind != "heatmap"),
        "showlegend": legend,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    }
    if figure.kind in ("bar", "stacked"):
        layout |= {"barmode": "stack" if figure.kind == "stacked" else "group", "bargap": 0.28}
        layout["xaxis"]["type"] = "category"
    if figure.kind == "line":
        layout["hovermode"] = "x unified"
        for index in range(len(figure.series)):
            layout.setdefault("colorway", []).append(PALETTE[index % len(PALETTE)])
    if figure.kind == "heatmap":
        layout["yaxis"] |= {"autorange": "reversed", "type": "category"}
        layout["xaxis"]["type"] = "category"
    return layout


def _axis(title: str, *, log: bool, grid: bool) -> dict[str, Any]:
    axis: dict[str, Any] = {
        "title": {"text": _text(title)},
        "automargin": True,
        "showgrid": grid,
        "gridcolor": GRID,
        "linecolor": "#9aa2ab",
        "zeroline": False,
    }
    if log:
        axis |= {"type": "log", "dtick": 1}
    return axis


def _text(value: Any) -> Any:
    """Escape text for plotly.js, which reads a subset of HTML in every label."""
    return html.escape(value, quote=False) if isinstance(value, str) else value


class _Drawn(Protocol):
    def as_plotly(self) -> dict[str, Any]: ...
    def picture(self) -> bytes | None: ...


def displayed(figure: _Drawn) -> dict[str, Any]:
    """Return the MIME bundle of a figure: plotly's JSON, the picture, and the words."""
    # No text/html: it would win on static sites and be blank there without scripts.
    bundle: dict[str, Any] = {
        "application/vnd.plotly.v1+json": {**figure.as_plotly(), "config": {"responsive": True}},
        "text/plain": str(figure),
    }
    picture = figure.picture()
    if picture is not None:
        bundle["image/png"] = base64.b64encode(picture).decode("ascii")
    return bundle
