"""A card as the YAML text that a person would write: short values on one line, none left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from workbench.catalog.card import Card
from workbench.paths import atomic_file

_WIDTH = 100  # columns of a line


class _Writer(yaml.SafeDumper):
    """Writes no aliases and indents lists within mappings."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


class _Flow(dict[str, Any]):
    """A mapping to be written on one line."""


def card_text(card: Card) -> str:
    """Return the YAML of a card, which begins with the command that uses it."""
    given = card.given()
    ordered = {key: _shaped(given[key]) for key in Card.model_fields if key in given}
    body = yaml.dump(
        ordered, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=_WIDTH, indent=2
    )
    return f'# wb.load("{card.id}")\n{body}'


def write_card(card: Card, path: Path, *, new: bool) -> None:
    """Write a card whole or not at all.

    Raises:
        FileExistsError: ``new``, and there is such a file.
    """
    with atomic_file(path, new=new) as partial:
        partial.write_text(card_text(card), encoding="utf-8")


def _shaped(value: Any) -> Any:
    if isinstance(value, dict):
        shaped = {key: _shaped(inner) for key, inner in value.items()}
        return _Flow(shaped) if _is_short(value) else shaped
    if isinstance(value, list):
        return [_Flow(item) if isinstance(item, dict) else item for item in value]
    return value


def _is_short(value: dict[str, Any]) -> bool:
    plain = all(not isinstance(inner, (dict, list)) for inner in value.values())
    return plain and len(str(value)) <= _WIDTH - 20


def _write_flow(writer: yaml.SafeDumper, value: _Flow) -> yaml.Node:
    return writer.represent_mapping("tag:yaml.org,2002:map", value, flow_style=True)


def _write_list(writer: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    plain = all(not isinstance(item, dict) for item in value)
    short = plain and len(", ".join(map(str, value))) <= _WIDTH - 20
    return writer.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=short)


_Writer.add_representer(_Flow, _write_flow)
_Writer.add_representer(list, _write_list)
