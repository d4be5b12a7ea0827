"""Several figures in one: curves of different units, one above the other over the same axis."""

from __future__ import annotations

import dataclasses
import html
from typing import Any

from workbench.errors import InputError
from workbench.figures.figure import PALETTE, Figure, displayed

_HEIGHT, _HEAD, _FOOT, _GAP = 220, 92, 48, 0.1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Panels:
    """Line figures with one horizontal axis; the last line of a cell shows them as one picture.

    Attributes:
        title: What they show together.
        figures: The figures from the top, all of kind ``line``, none of them with series of the
            same name as another's.

    Raises:
        InputError: There is no figure, or one that is not made of lines.
    """

    title: str
    figures: tuple[Figure, ...]

    def __post_init__(self) -> None:
        if not self.figures:
            raise InputError(f"The figure {self.title!r} has no panel.", hint="Give one or more.")
        for figure in self.figures:
            if figure.kind != "line":
                raise InputError(f"A panel is made of lines, and {figure.title!r} is not.")

    @property
    def summary(self) -> str:
        """The sentences of all panels."""
        return " ".join(figure.summary for figure in self.figures)

    @property
    def height(self) -> int:
        """Height in CSS pixels."""
        return _HEAD + _FOOT + _HEIGHT * len(self.figures)

    def as_plotly(self) -> dict[str, Any]:
        """Return plotly's JSON form, ``{"data": [...], "layout": {...}}``, made without plotly."""
        parts = [figure.as_plotly() for figure in self.figures]
        layout = {**parts[0]["layout"], "height": self.height, "showlegend": True}
        layout["title"] = {**layout["title"], "text": html.escape(self.title, quote=False)}
        layout["margin"] = {**layout["margin"], "t": _HEAD, "b": _FOOT}
        layout["legend"] = {**layout["legend"], "y": 1 + 8 / (_HEIGHT * len(parts))}
        layout["xaxis"] = {**parts[-1]["layout"]["xaxis"], "anchor": _name("y", len(parts) - 1)}
        layout.pop("colorway", None)
        data: list[dict[str, Any]] = []
        for index, part in enumerate(parts):
            share = 1 / len(parts)
            top = 1 - index * share
            axis = {**part["layout"]["yaxis"], "automargin": True}
            axis["domain"] = [round(top - share * (1 - _GAP), 4), round(top, 4)]
            layout[_name("yaxis", index)] = axis
            for trace in part["data"]:
                color = PALETTE[len(data) % len(PALETTE)]
                data.append(
                    {**trace, "yaxis": _name("y", index), "line": {**trace["line"], "color": color}}
                )
        return {"data": data, "layout": layout}

    def plotly(self) -> Any:
        """Return a ``plotly.graph_objects.Figure`` to change or combine (needs plotly)."""
        import plotly.graph_objects

        return plotly.graph_objects.Figure(self.as_plotly())

    def picture(self) -> bytes | None:
        """Return the static picture as PNG bytes, or None where matplotlib is not installed."""
        from workbench.figures.picture import draw_panels

        return draw_panels(self)

    def __str__(self) -> str:
        return f"{self.title}. {self.summary}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return displayed(self)


def _name(axis: str, index: int) -> str:
    """Return plotly's name of an axis: ``y``, ``y2``, ``y3`` ..."""
    return axis if index == 0 else f"{axis}{index + 1}"
