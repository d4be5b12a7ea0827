"""Engines by name: looked up here, imported when one is opened."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import importlib
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from workbench.catalog.capabilities import EngineFacts, engine_facts
from workbench.catalog.server_place import missing_of
from workbench.engines.base import Engine
from workbench.errors import InputError, did_you_mean

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
    """

    facts: EngineFacts
    versions: dict[str, str]
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name a user writes in ``engine=``."""
        return self.facts.name

    @property
    def installed(self) -> bool:
        """Whether all its packages are here."""
        return not self.missing

    def cells(self) -> tuple[str, ...]:
        """Return the row as texts: name, installed, formats, quantizations, devices."""
        found = ", ".join(f"{name} {version}".strip() for name, version in self.versions.items())
        state = f"no: {', '.join(self.missing)}" if self.missing else (found or "yes")
        formats = [*self.facts.formats, *(f"{name} (converted)" for name in self.facts.converts)]
        return (
            self.name,
            state,
            ", ".join(formats) or "none needed",
            ", ".join(self.facts.quantizations) or "none",
            ", ".join(self.facts.devices),
        )


class EngineTable:
    """All engines, in order of preference; displays itself."""

    columns = ("engine", "installed", "formats", "quantizations", "devices")

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
            lines += [f"  {column:14} {cell}" for column, cell in pairs]
        return "\n".join(lines)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        head = "".join(f"<th>{column}</th>" for column in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row.cells()) + "</tr>"
            for row in self.rows
        )
        return {"text/plain": repr(self), "text/html": f"<table><tr>{head}</tr>{body}</table>"}


def engines() -> EngineTable:
    """Return every engine, whether it is installed, and what it can do; nothing is imported."""
    return EngineTable(tuple(_row(facts) for facts in engine_facts().values()))


def _row(facts: EngineFacts) -> EngineRow:
    missing = missing_of(facts)
    here = [name for name in facts.packages if name not in missing]
    return EngineRow(facts=facts, versions={name: _version(name) for name in here}, missing=missing)


def _version(module: str) -> str:
    """Return the version of the distribution a module is from; their names may differ."""
    for name in (module, f"{module}_python"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return ""
