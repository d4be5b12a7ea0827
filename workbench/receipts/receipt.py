"""The receipt: one measured fact with its conditions."""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from workbench.settings import Settings

SCHEMA: Literal[2] = 2
Outcome = Literal["done", "failed"]


def _machine_facts() -> dict[str, Any]:
    from workbench.machine import machine  # here: reading receipts needs it seldom

    return {name: value for name, value in machine().describe().items() if name != "versions"}


def _versions() -> dict[str, str]:
    from workbench.machine import machine

    return dict(machine().versions)


def form_of(plan: Mapping[str, Any]) -> str | None:
    """Return the form of the files that a described plan names: ``gguf`` or ``safetensors``."""
    files = plan.get("files")
    if not isinstance(files, str):
        return None
    name = files.rsplit("/", 1)[-1]  # Ollama names its GGUF files sha256-...
    return "gguf" if name.endswith(".gguf") or name.startswith("sha256-") else "safetensors"


class Receipt(Settings):
    """One measured fact with its conditions.

    Engine, quantization and form are taken from the plan where they are not given.
    """

    schema_version: Literal[2] = SCHEMA
    """Version of this schema."""
    id: str = Field(default_factory=lambda: secrets.token_hex(6), min_length=1)
    """Identity of the receipt."""
    time: str = Field(
        default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
    )
    """UTC time of writing, ISO 8601."""
    what: str = Field(min_length=1)
    """What was measured: load, compare, finetune, merge, export, parity."""
    model: str
    """Card id."""
    revision: str | None = None
    """Commit of the model's repository; None where the files do not tell."""
    sha256: str | None = None
    """Hex sha256 of the weights; None where no store knew it: a load does not compute it."""
    engine: str | None = None
    """Engine that was measured."""
    quantization: str | None = None
    """Quantization that was measured."""
    form: str | None = None
    """How the weights were stored: safetensors, gguf."""
    outcome: Outcome
    """Whether the measurement came to its end."""
    reason: str | None = None
    """Why it failed."""
    result: dict[str, Any] = {}
    """The measured values, with their units in the names."""
    plan: dict[str, Any] = {}
    """Engine, quantization, dtype, context, files."""
    parameters: dict[str, Any] = {}
    """Further conditions of the measurement."""
    machine: dict[str, Any] = Field(default_factory=_machine_facts)
    """The computer: system, processor, cores, memory in bytes, devices, Python."""
    versions: dict[str, str] = Field(default_factory=_versions)
    """Versions of the packages that matter."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_plan(cls, values: Any) -> Any:
        plan = values.get("plan") if isinstance(values, dict) else None
        if not isinstance(plan, dict):
            return values
        named = {"form": form_of(plan)}
        named |= {name: plan.get(name) for name in ("engine", "quantization")}
        missing = {name: value for name, value in named.items() if name not in values}
        return {**values, **missing}

    @field_validator("time")
    @classmethod
    def _is_a_time(cls, value: str) -> str:
        dt.datetime.fromisoformat(value)
        return value

    @property
    def moment(self) -> dt.datetime:
        """When it was written, with a time zone."""
        return moment(self.time)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        from workbench.figures import Table

        rows = [
            {"receipt": name, "value": str(value)}
            for name, value in _flat(self.model_dump(exclude={"schema_version"}))
            if value is not None and value not in ("", [], {})
        ]
        return Table(rows, caption=f"Receipt {self.id}")._repr_mimebundle_()


def moment(text: str) -> dt.datetime:
    """Return an ISO 8601 time with a time zone; one without is UTC.

    Raises:
        ValueError: It is no such time.
    """
    found = dt.datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", item) for inner, item in _flat(value))
        else:
            yield name, value
