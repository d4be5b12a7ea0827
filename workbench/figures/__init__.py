"""Figures and tables from plain data that display themselves, interactive and as a picture."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from workbench import notebook
from workbench.figures.builders import bar, heatmap, line, scatter, stacked
from workbench.figures.figure import PALETTE, Figure, Series
from workbench.figures.panels import Panels
from workbench.figures.table import Table

__all__ = [
    "PALETTE",
    "Figure",
    "Panels",
    "Series",
    "Table",
    "bar",
    "heatmap",
    "line",
    "scatter",
    "show",
    "show_with_figure",
    "stacked",
]


def show(*values: Any) -> None:
    """Display values in a notebook, or print their text form elsewhere.

    A list of mappings is shown as a table, a mapping as a table of names and values, a string as a
    paragraph; all else displays itself.
    """
    for value in values:
        notebook.show(_shown(value))


def show_with_figure(bundle: Mapping[str, Any], figure: Figure) -> None:
    """Display a MIME bundle with ``text/html``, and its figure as an output of its own.

    In one output the HTML would win wherever no script runs, and the figure would be gone.
    """
    for each in (bundle, figure._repr_mimebundle_()):
        notebook.Display().show(each)


class _Words:
    """A paragraph of text, without the quotes of a string."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": self.text, "text/html": f"<div>{html.escape(self.text)}</div>"}


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return _Words(value)
    if isinstance(value, Mapping):
        return Table([{"name": name, "value": item} for name, item in value.items()])
    if isinstance(value, Sequence) and value and all(isinstance(row, Mapping) for row in value):
        return Table(value)
    return value
