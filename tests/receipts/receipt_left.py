"""Receipts as a load leaves them, for the tests of this room."""

from __future__ import annotations

from typing import Any

from workbench.catalog import Card
from workbench.receipts import Receipt

CARD = Card(id="tiny-chat")
PLAN = {"engine": "transformers", "quantization": "none", "context": 2048, "device": "cpu"}
OTHER = {"processor": "Another CPU", "ram_bytes": 64 * 2**30, "devices": [], "python": "3.12.1"}


def left(minute: int = 0, **values: Any) -> Receipt:
    """Return a receipt of a load, written at a minute of one hour."""
    return Receipt.of(
        {
            "what": "load",
            "model": "tiny-chat",
            "outcome": "done",
            "plan": PLAN,
            "time": f"2026-03-01T10:{minute:02d}:00.000+00:00",
            **values,
        }
    )
