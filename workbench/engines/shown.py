"""How a loaded model shows itself: its label over rows of names and values."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.engines.model import Model


def bundle_of(model: Model) -> dict[str, str]:
    """Return the MIME bundle of a loaded model."""
    rows = [
        ("engine", f"{model.plan.engine}{' in its own process' if model.isolated else ''}"),
        ("device", model.plan.device),
        ("context", f"{model.plan.context} tokens"),
        ("loaded in", f"{model.loading.seconds:.2f} s"),
        ("weights", f"{model.loading.weight_bytes / 1e6:.1f} MB on disk"),
        ("memory", f"{model.loading.rss_bytes / 1e6:+.1f} MB resident after loading"),
        ("powers", "closed" if model.closed else ", ".join(sorted(model.powers))),
    ]
    return shown(model.label, rows)


def shown(label: str, rows: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the MIME bundle of a label and its rows, all of it escaped."""
    plain = "\n".join([label, *(f"  {name:10} {value}" for name, value in rows)])
    cells = "".join(
        f'<tr><td><div align="left">{html.escape(name)}</div></td>'
        f'<td><div align="left">{html.escape(value)}</div></td></tr>'
        for name, value in rows
    )
    title = f"<div><b>{html.escape(label)}</b></div>"
    return {"text/plain": plain, "text/html": f"{title}<table>{cells}</table>"}
