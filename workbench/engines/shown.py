"""How a loaded model shows itself: its label over rows of names and values."""

from __future__ import annotations

import html
from collections.abc import Sequence


def shown(label: str, rows: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the MIME bundle of a label and its rows, all of it escaped."""
    plain = "\n".join([label, *(f"  {name:10} {value}" for name, value in rows)])
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    title = f"<div><b>{html.escape(label)}</b></div>"
    return {"text/plain": plain, "text/html": f"{title}<table>{cells}</table>"}
