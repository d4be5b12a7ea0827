"""Engines by name: looked up here, imported when one is opened."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import importlib
import textwrap
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from workbench.catalog.capabilities import EngineFacts, engine_facts, shown_powers
from workbench.catalog.server_place import missing_of
from workbench.engines.base import Engine, Power
from workbench.errors import InputError, did_you_mean
from workbench.figures.table import Table

_CLASSES = {
    "transformers": "workbench.engines.transformers:TransformersEngine",
    "llama.cpp": "workbench.engines.llama_cpp:LlamaCppEngine",
    "mlx": "workbench.engines.mlx:MlxEngine",
    "vllm": "workbench.engines.server:VllmEngine",
    "sglang": "workbench.engines.server:SglangEngine",
    "tensorrt-llm": "workbench.engines.server:TensorRtLlmEngine",
    "llama-server": "workbench.engines.server:LlamaServerEngine",
    "openai": "workbench.engines.openai:OpenAIEngine",
    "scripted": "workbench.engines.scripted:ScriptedEngine",
}


def engine(name: str) -> Engine:
    """Return the engine of this name; its module is imported now.

    Raises:
        InputError: There is no such engine.
    """
    if name not in _CLASSES:
        raise InputError(f"There is no engine named {name!r}.", hint=did_you_mean(name, _CLASSES))
    module, _, attribute = _CLASSES[name].partition(":")
    found: Engine = getattr(importlib.import_module(module), attribute)()
    return found


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineRow:
    """One engine on this machine.

    Attributes:
        facts: What it can do.
        versions: Installed versions of its packages, by module name.
        missing: Modules that are not installed.
        shown: Powers that the conformance suite exercised.
    """

    facts: EngineFacts
    versions: dict[str, str]
    missing: tuple[str, ...]
    shown: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The name a user writes in ``engine=``."""
        return self.facts.name

    @property
    def installed(self) -> bool:
        """Whether all its packages are here."""
        return not self.missing

    @property
    def powers(self) -> tuple[str, ...]:
        """What its models can do where the model itself allows it, in the order of ``Power``."""
        return tuple(power.value for power in Power if power in self.facts.powers)

    @property
    def lacks(self) -> dict[str, str]:
        """What none of its models can do, and why."""
        return dict(self.facts.lacks)

    def cells(self) -> tuple[str, ...]:
        """Return the row as texts: name, installed, formats, quantizations, devices, powers.

        A power in brackets is stated, and no test has exercised it on this engine.
        """
        found = ", ".join(f"{name} {version}".strip() for name, version in self.versions.items())
        state = f"no: {', '.join(self.missing)}" if self.missing else (found or "yes")
        formats = [*self.facts.formats, *(f"{name} (converted)" for name in self.facts.converts)]
        formats += [f"{name} (unpacked, if named)" for name in self.facts.only_when_named]
        return (
            self.name,
            state,
            ", ".join(formats) or "none needed",
            ", ".join(self.facts.quantizations) or "none",
            ", ".join(self.facts.devices),
            ", ".join(name if name in self.shown else f"({name})" for name in self.powers),
        )


class EngineTable:
    """All engines, in order of preference; displays itself."""

    columns = ("engine", "installed", "formats", "quantizations", "devices", "powers")
    note = "A power in brackets is stated, and no test has exercised it on that engine."

    def __init__(self, rows: tuple[EngineRow, ...]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[EngineRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> EngineRow:
        for row in self.rows:
            if row.name == name:
                return row
        raise InputError(
            f"There is no engine named {name!r}.",
            hint=did_you_mean(name, [row.name for row in self.rows]),
        )

    def __repr__(self) -> str:
        lines = []
        for row in self.rows:
            name, *cells = row.cells()
            lines.append(name)
            pairs = zip(self.columns[1:], cells, strict=True)
            for column, cell in pairs:
                lines += textwrap.wrap(
                    f"  {column:14} {cell}", 110, subsequent_indent=" " * 17, break_on_hyphens=False
                )
        return "\n".join([*lines, "", self.note])

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        rows = [dict(zip(self.columns, row.cells(), strict=True)) for row in self.rows]
        page = f"{Table(rows).html()}<div>{html.escape(self.note)}</div>"
        return {"text/plain": repr(self), "text/html": page}


def engines() -> EngineTable:
    """Return every engine, whether it is installed, and what it can do; nothing is imported."""
    return EngineTable(tuple(_row(facts) for facts in engine_facts().values()))


def _row(facts: EngineFacts) -> EngineRow:
    missing = missing_of(facts)
    here = [name for name in facts.packages if name not in missing]
    return EngineRow(
        facts=facts,
        versions={name: _version(name) for name in here},
        missing=missing,
        shown=shown_powers().get(facts.name, frozenset()),
    )


def _version(module: str) -> str:
    """Return the version of the distribution a module is from; their names may differ."""
    for name in (module, f"{module}_python"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return ""
