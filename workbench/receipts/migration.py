"""Receipts of older schemas brought to the present one, a small step for each version."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from workbench.errors import InputError
from workbench.receipts.receipt import SCHEMA, form_of


class NewerReceiptError(InputError):
    """A receipt of a schema that this version does not know yet."""


def current(values: Any, *, source: str) -> dict[str, Any]:
    """Return a receipt's values in the present schema; the input is not changed.

    Args:
        values: What the file holds.
        source: The file, for errors.

    Raises:
        NewerReceiptError: It is of a newer schema.
        InputError: It is no receipt.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{source} holds a {type(values).__name__}, not a receipt.")
    version = values.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise InputError(f"{source} is not a receipt: its schema_version is {version!r}.")
    if version > SCHEMA:
        raise NewerReceiptError(
            f"{source} is a receipt of schema {version}, this workbench reads up to {SCHEMA}.",
            hint="Update the workbench, or read it with the version that wrote it.",
        )
    found = dict(values)
    while found["schema_version"] < SCHEMA:
        found = _STEPS[found["schema_version"]](found)
    return found


def _to_2(old: Mapping[str, Any]) -> dict[str, Any]:
    """Versions leave the machine; engine, quantization and form leave the plan."""
    plan, facts = old.get("plan"), old.get("machine")
    plan = plan if isinstance(plan, Mapping) else {}
    facts = dict(facts) if isinstance(facts, Mapping) else {}
    versions = facts.pop("versions", {})
    return {
        **old,
        "schema_version": 2,
        "revision": None,
        "sha256": None,
        "engine": plan.get("engine"),
        "quantization": plan.get("quantization"),
        "form": form_of(plan),
        "machine": facts,
        "versions": versions,
    }


_STEPS: dict[int, Callable[[Mapping[str, Any]], dict[str, Any]]] = {1: _to_2}
"""From a version to the next."""
