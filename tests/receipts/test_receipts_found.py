"""Receipts are found by conditions, and shown as tables."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from receipt_left import OTHER, PLAN, left

from workbench.errors import InputError
from workbench.receipts import keep, receipts, write

# Finding


def test_conditions(folder: Path) -> None:
    write(left(1, id="one"))
    write(left(2, id="two", what="compare", outcome="failed", reason="out of memory"))
    write(left(3, id="three", model="other", plan={**PLAN, "quantization": "nf4"}))
    write(left(4, id="four", revision="abc", machine=OTHER))

    def ids(*what: str, **conditions: Any) -> list[str]:
        return [receipt.id for receipt in receipts(*what, **conditions)]

    assert ids() == ["one", "two", "three", "four"]
    assert ids("load") == ["one", "three", "four"]
    assert ids(model="other") == ids(quantization="nf4") == ["three"]
    assert ids(outcome="failed") == ["two"]
    assert ids(engine="llama.cpp") == []
    assert ids(where="here") == ["one", "two", "three"]
    assert ids(where="elsewhere") == ids(revision="abc") == ["four"]
    assert ids(since="2026-03-01T10:03") == ids(since="2026-03-01T19:03+09:00") == ["three", "four"]
    assert ids(since=dt.datetime(2026, 3, 1, 10, 2)) == ["two", "three", "four"]
    assert ids(since=dt.date(2026, 3, 2)) == []
    assert ids(id="t") == ["two", "three"]
    assert receipts().latest().id == "four"  # type: ignore[union-attr]
    assert receipts(model="none").latest() is None
    assert [receipt.id for receipt in receipts()[1:3]] == ["two", "three"]


def test_since_may_say_how_long_ago(folder: Path) -> None:
    now = dt.datetime.now(dt.UTC)
    for hours in (1, 30, 24 * 10):
        write(left(id=f"h{hours}", time=(now - dt.timedelta(hours=hours)).isoformat()))
    assert [each.id for each in receipts(since="2h")] == ["h1"]
    assert [each.id for each in receipts(since="7d")] == ["h30", "h1"]
    assert len(receipts(since=dt.timedelta(weeks=2))) == 3


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({"outcome": "don"}, "done"),
        ({"where": "her"}, "here"),
        ({"since": "yesterday"}, "7d"),
        ({"since": "999999999w"}, "7d"),
    ],
)
def test_conditions_that_cannot_be(folder: Path, conditions: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        receipts(**conditions)


def test_shipped_receipts_are_elsewhere_and_a_kept_one_counts_once(
    folder: Path, home: Path
) -> None:
    mine = write(left(id="mine"))
    keep(mine, home / "ships")
    write(left(1, id="shipped"), folder=home / "ships")
    assert {each.id for each in receipts(where="here")} == {"mine"}
    assert {each.id for each in receipts(where="elsewhere")} == {"shipped"}
    assert len(receipts()) == 2


# Showing


def test_the_table_tells_outcomes_and_where(folder: Path) -> None:
    write(left(1, result={"load_seconds": 1.25, "weight_bytes": 15_200_000_000}))
    write(left(2, outcome="failed", reason="CUDA <out> of memory", machine=OTHER))
    bundle = receipts()._repr_mimebundle_()
    lines = bundle["text/plain"].splitlines()
    assert lines[0] == "2 receipts"
    assert "load 1.25 s, weight 15.2 GB" in lines[-2]
    assert " here " in lines[-2]
    assert " elsewhere " in lines[-1]
    assert "CUDA <out> of memory" in lines[-1]
    assert '<tr class="failed">' in bundle["text/html"]
    assert "CUDA &lt;out&gt; of memory" in bundle["text/html"]
    assert "<style" not in bundle["text/html"]


def test_a_long_table_shows_the_newest(folder: Path) -> None:
    for minute in range(12):
        write(left(minute, id=f"r{minute:02d}"))
    text = str(receipts().table(most=5))
    assert text.startswith("The latest 5 of 12 receipts")
    assert "r07" in text
    assert "r06" not in text


def test_an_empty_table_says_so(folder: Path) -> None:
    assert repr(receipts()) == "0 receipts: no rows"


def test_to_frame(folder: Path) -> None:
    write(left(1, result={"speed": {"decode": 12.5}}))
    write(left(2, outcome="failed", reason="no"))
    frame = receipts().to_frame()
    assert list(frame["result.speed.decode"].dropna()) == [12.5]
    assert list(frame["where"]) == ["here", "here"]
    assert frame["time"].is_monotonic_increasing
    assert str(frame["time"].dtype).startswith("datetime64")
    assert list(receipts(model="none").to_frame().columns)[:2] == ["schema_version", "id"]


def test_a_receipt_shows_every_value() -> None:
    text = left(result={"speed": {"decode": 12.5}})._repr_mimebundle_()["text/plain"]
    assert "result.speed.decode" in text
    assert "plan.context" in text
