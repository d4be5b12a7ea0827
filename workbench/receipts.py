"""Receipts: one measured fact with its conditions, written once, as readable JSON."""

from __future__ import annotations

import datetime as dt
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from workbench import notebook
from workbench.errors import InputError
from workbench.machine import machine
from workbench.paths import atomic_file, outputs
from workbench.redact import redacted
from workbench.settings import Settings

SCHEMA = 1


class Receipt(Settings):
    """One measured fact with its conditions."""

    schema_version: int = SCHEMA
    """Version of this schema."""
    id: str = Field(default_factory=lambda: secrets.token_hex(6))
    """Identity of the receipt."""
    what: str
    """What was measured: load, compare, finetune, export, parity."""
    model: str
    """Card id."""
    plan: dict[str, Any] = {}
    """Engine, quantization, dtype, context, files."""
    parameters: dict[str, Any] = {}
    """Further conditions of the measurement."""
    outcome: Literal["done", "failed"]
    """Whether the measurement came to its end."""
    result: dict[str, Any] = {}
    """The measured values, with their units in the names."""
    reason: str | None = None
    """Why it failed."""
    machine: dict[str, Any] = Field(default_factory=lambda: machine().describe())
    """The computer and the package versions."""
    time: str = Field(
        default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
    )
    """UTC time of writing, ISO 8601."""


def write(receipt: Receipt, *, folder: Path | None = None) -> Path:
    """Write a receipt as a new JSON file, with keys, home paths and host names redacted.

    Args:
        receipt: What to write.
        folder: Where; default is ``outputs/receipts``.
    """
    folder = folder or outputs("receipts", "x").parent
    stamp = re.sub(r"[^0-9T]", "", receipt.time[:23])  # to the millisecond: names sort by time
    final = folder / f"{stamp}-{receipt.what}-{receipt.id}.json"
    with atomic_file(final) as partial:
        text = json.dumps(redacted(receipt.model_dump()), indent=1, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")
    notebook.note("receipt", id=receipt.id)  # for the run around this, if any
    return final


def read(path: Path) -> Receipt:
    """Read one receipt.

    Raises:
        InputError: Not JSON, or not a receipt of a known schema version.
    """
    try:
        values: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from None
    if values.get("schema_version") != SCHEMA:
        raise InputError(
            f"{path} is a receipt of schema {values.get('schema_version')!r}, this reads {SCHEMA}.",
            hint="Read it with the version that wrote it.",
        )
    return Receipt.of(values, source=str(path))


def receipts(*, folder: Path | None = None, **conditions: Any) -> Iterator[Receipt]:
    """Yield the receipts whose fields equal ``conditions``, oldest first."""
    folder = folder or outputs("receipts", "x").parent
    for path in sorted(folder.glob("[0-9]*.json")):
        receipt = read(path)
        if all(getattr(receipt, name) == value for name, value in conditions.items()):
            yield receipt
