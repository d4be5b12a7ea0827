"""Memory by phase, measured in children, stands beside its estimate; failures stay as rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from workbench.errors import InputError, NotFoundError
from workbench.evaluate.profiles import Profiles


def measured(form: str, context: int, **changes: Any) -> dict[str, Any]:
    timeline = [
        {"seconds": 0.0, "place": "host", "bytes": 50_000_000, "phase": None},
        {"seconds": 0.5, "place": "host", "bytes": 90_000_000, "phase": "warm-up"},
        {"seconds": 1.0, "place": "host", "bytes": 100_000_000, "phase": "load"},
        {"seconds": 2.0, "place": "host", "bytes": 130_000_000, "phase": "prefill"},
    ]
    estimate = {
        "label": form,
        "parts": [
            {"name": "all", "bytes": 24_000_000, "rule": "by count", "place": "host"},
            {
                "name": "process",
                "bytes": 900_000_000,
                "rule": "measured",
                "place": "host",
                "counter": "process",
            },
        ],
    }
    return {
        "form": form,
        "context": context,
        "outcome": "done",
        "plan": {"device": "cpu"},
        "estimate": estimate,
        "added": {"load": 20_000_000, "prefill": 10_000_000, "decode": 0},
        "total_added_bytes": 30_000_000,
        "memory_source": "VmHWM",
        "timeline": timeline,
        **changes,
    }


def test_estimate_and_measurement_are_held_together() -> None:
    failed = {"form": "b", "context": 512, "outcome": "failed", "failed": "It does not run."}
    profiles = Profiles("m", (measured("a", 512), measured("a", 2048), failed))
    row, _, last = profiles.table()
    assert row["estimate"] == 24.0  # what the process has anyway is no part of what was added
    assert row["error"] == pytest.approx(-0.2)
    assert last["failed"] == "It does not run."
    assert "2 of 3" in profiles.conclusion()
    assert "20%" in profiles.conclusion()
    assert profiles.worst() == ("a @ 512", pytest.approx(-0.2))
    assert ("median error of the estimate", 20.0, "%") in profiles.key_numbers()


def test_the_timeline_begins_with_loading() -> None:
    profiles = Profiles("m", (measured("a", 512), measured("a", 2048)))
    (curve,) = profiles.timeline(512).series
    assert curve.x == (0.0, 1.0)
    assert curve.y == (0.0, 30.0)
    with pytest.raises(InputError, match="512, 2048"):
        profiles.timeline(4096)
    with pytest.raises(InputError, match="'b'"):
        profiles.timeline(forms=("b",))


def test_two_engines_are_measured_for_real(home: Path) -> None:
    found = wb.profile(
        "tiny-chat",
        forms=["transformers:fp32", "llama.cpp:Q8_0"],
        contexts=[256, 2048],
        output_tokens=8,
        threads=1,
        progress=False,
    )
    rows = {(row["form"], row["context"]): row for row in found}
    assert all(row["outcome"] == "done" for row in rows.values()), [r.get("failed") for r in found]
    for row in rows.values():
        assert row["decoded_tokens"] == 8
        assert row["prompt_tokens"] == row["context"] - 8
        assert row["added"]["load"] > 0
    weights = 4_655_872 * 4
    short, long = rows["transformers:fp32", 256], rows["transformers:fp32", 2048]
    assert short["added"]["load"] == pytest.approx(weights, rel=1.0)
    assert long["total_added_bytes"] > short["total_added_bytes"] + 10_000_000
    estimate = long["estimate"]["parts"]
    assert sum(part["bytes"] for part in estimate if part["group"] == "weights") == weights
    receipts = list(wb.receipts(what="profile"))
    assert len(receipts) == 4
    saved = json.loads(found.save(home / "profile.json").read_text(encoding="utf-8"))
    assert len(saved["rows"]) == 4


def test_what_cannot_run_stays_in_the_table(home: Path) -> None:
    found = wb.profile("tiny-chat", forms=["llama.cpp:nf4"], contexts=[512], progress=False)
    (row,) = found.table()
    assert "nf4" in row["failed"]


def test_bad_input_is_told_before_anything_runs() -> None:
    with pytest.raises(InputError, match="no prompt"):
        wb.profile("tiny-chat", contexts=[32], output_tokens=32)
    with pytest.raises(InputError, match="made for"):
        wb.profile("tiny-chat", contexts=[4096])
    with pytest.raises(InputError, match="no context"):
        wb.profile("tiny-chat", contexts=[])
    with pytest.raises(NotFoundError):
        wb.profile("tiny-chta")
