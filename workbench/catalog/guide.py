"""The tables of ``docs/cards.md``: every key of a card, from the docstrings of its settings.

``python -m workbench.catalog.guide`` writes them anew.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from workbench.catalog.card import Card
from workbench.catalog.llama_cpp_json import Entry
from workbench.paths import atomic_file, checkout
from workbench.settings import Settings

_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
PARTS: dict[str, type[Settings]] = {"card": Card, "json": Entry}
"""Name of a generated part of the guide, and the settings that it explains."""


def key_tables(settings: type[Settings]) -> str:
    """Return one Markdown table for the settings and one for each kind of settings within."""
    sections = [_table(settings)]
    for name, inner in _inner(settings, prefix=""):
        about = " ".join((inner.__doc__ or "").split())
        sections.append(f"### `{name}`\n\n{about}\n\n{_table(inner)}")
    return "\n\n".join(sections)


def with_tables(text: str) -> str:
    """Return the guide with its generated parts written anew.

    Each lies between ``<!-- keys: NAME -->`` and ``<!-- end -->``.
    """
    for name, settings in PARTS.items():
        start = f"<!-- keys: {name} -->\n"
        before, rest = text.split(start, 1)
        _, after = rest.split("<!-- end -->", 1)
        text = f"{before}{start}\n{key_tables(settings)}\n\n<!-- end -->{after}"
    return text


def _table(settings: type[Settings]) -> str:
    lines = ["| key | value | meaning |", "|---|---|---|"]
    meanings = settings.meanings()
    for name, field in settings.model_fields.items():
        meaning = " ".join(meanings[name].split()).replace("``", "`")
        lines.append(f"| `{name}` | {_value(field)} | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def _value(field: FieldInfo) -> str:
    words = _type(field.annotation)
    limits = [
        f"{sign} {getattr(limit, name):g}"
        for limit in field.metadata
        for name, sign in _SIGNS.items()
        if getattr(limit, name, None) is not None
    ]
    required = "**required**, " if field.is_required() else ""
    return required + " ".join([words, " and ".join(limits)]).strip()


def _type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in parts if part is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(f"`{part}`" for part in parts)
    if origin is tuple and parts[-1] is Ellipsis:
        return f"list of {_type(parts[0])}"
    if origin is tuple:
        return f"list of {len(parts)}: {', '.join(_type(part) for part in parts)}"
    if origin is dict:
        return f"mapping of {_type(parts[0])} to {_type(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return "mapping, see below"
    return _WORDS.get(annotation, str(annotation))


def _inner(settings: type[Settings], *, prefix: str) -> Iterator[tuple[str, type[Settings]]]:
    """Yield the settings within, by their path; one that two keys share is told once."""
    shared: dict[type[Settings], list[str]] = {}
    for name, field in settings.model_fields.items():
        for inner in _settings_of(field.annotation):
            shared.setdefault(inner, []).append(f"{prefix}{name}")
    for inner, names in shared.items():
        yield "`, `".join(names), inner
        yield from _inner(inner, prefix=f"{names[0]}.")


def _settings_of(annotation: Any) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for part in get_args(annotation):
        yield from _settings_of(part)


def _main() -> None:
    root = checkout()
    if root is None:
        raise SystemExit("The guide is written in a checkout only.")
    path = Path(root, "docs", "cards.md")
    text = with_tables(path.read_text(encoding="utf-8"))
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    _main()
