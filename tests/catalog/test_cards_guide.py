"""The guide to cards: its tables are those of the schema, and its examples are cards."""

from __future__ import annotations

import re

import pytest

from workbench.catalog import Card, catalog
from workbench.catalog.folder import user_folder
from workbench.catalog.guide import PARTS, with_tables
from workbench.paths import checkout
from workbench.settings import Settings

ROOT = checkout()
assert ROOT is not None
GUIDE = (ROOT / "docs" / "cards.md").read_text(encoding="utf-8")


def all_settings(settings: type[Settings]) -> set[type[Settings]]:
    found = {settings}
    for field in settings.model_fields.values():
        for word in re.findall(r"[\w.]+", str(field.annotation)):
            inner = next((c for c in Settings.__subclasses__() if word.endswith(c.__name__)), None)
            if inner is not None and inner not in found:
                found |= all_settings(inner)
    return found


def test_the_tables_are_those_of_the_schema() -> None:
    assert with_tables(GUIDE) == GUIDE, "write them anew: python -m workbench.catalog.guide"


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_every_key_is_explained(part: type[Settings]) -> None:
    for settings in all_settings(part):
        for name, meaning in settings.meanings().items():
            assert meaning, f"{settings.__name__}.{name} has no docstring"
            assert f"| `{name}` |" in GUIDE


def test_the_examples_are_cards() -> None:
    user_folder().mkdir(parents=True)
    blocks = re.findall(r"```(yaml|json)\n(.*?)```", GUIDE, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["yaml", "yaml", "json"]
    for number, (kind, text) in enumerate(blocks):
        (user_folder() / f"{number}.{kind}").write_text(text, encoding="utf-8")
    shelf = catalog()
    assert shelf.bad == []
    assert shelf["my-model"].expanded_path() == user_folder() / "my-model-Q4_K_M.gguf"
    assert shelf["qwen3-8b"].context_length == 8192
    assert shelf["qwen3-8b"].repository == "Qwen/Qwen3-8B"
    assert [card.id for card in shelf.fallbacks("my-qwen-7b-q4")] == ["gemini-2.0-flash"]


def test_each_card_that_ships_states_only_known_keys() -> None:
    for card in catalog():
        assert set(card.given()) <= set(Card.model_fields)
