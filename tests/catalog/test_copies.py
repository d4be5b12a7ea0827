"""A copy of a card is used only as long as the card stays as it was."""

from __future__ import annotations

import json
import os
from pathlib import Path

from workbench.catalog.copies import Copies


def values(copies: Copies, path: Path) -> dict[str, object]:
    stat = path.stat()
    return copies.values(path, size=stat.st_size, modified=stat.st_mtime_ns)


def test_a_copy_is_read_until_the_file_changes(tmp_path: Path) -> None:
    card, store = tmp_path / "a.yaml", tmp_path / "cards.json"
    card.write_text("id: a\nnotes: one\n", encoding="utf-8")
    first = Copies(store)
    assert values(first, card) == {"id": "a", "notes": "one"}
    first.save()
    kept = json.loads(store.read_text(encoding="utf-8"))
    (key,) = kept
    kept[key]["notes"] = "from the copy"
    store.write_text(json.dumps(kept), encoding="utf-8")
    assert values(Copies(store), card)["notes"] == "from the copy"

    card.write_text("id: a\nnotes: two\n", encoding="utf-8")
    os.utime(card, ns=(1, 1))  # of the same size, written at another time
    second = Copies(store)
    assert values(second, card)["notes"] == "two"
    second.save()
    assert len(json.loads(store.read_text(encoding="utf-8"))) == 1


def test_a_broken_or_closed_store_is_no_error(tmp_path: Path) -> None:
    card, store = tmp_path / "a.yaml", tmp_path / "cards.json"
    card.write_text("id: a\nnotes: 2024-01-01\n", encoding="utf-8")  # a date is no JSON
    for content in ("{", "[]", '{"x": 1}'):
        store.write_text(content, encoding="utf-8")
        copies = Copies(store)
        assert values(copies, card)["id"] == "a"
        copies.save()
        assert store.read_text(encoding="utf-8") == content
    inside = Copies(card / "cards.json")  # a file where a folder should be
    assert values(inside, card)["id"] == "a"
    inside.save()
