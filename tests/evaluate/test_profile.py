"""Memory by phase, measured in children, stands beside its estimate; failures stay as rows."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from touched_memory import touched

import workbench as wb
from workbench.errors import InputError, NotFoundError
from workbench.evaluate.profile import profile
from workbench.evaluate.profile_shown import Reporter, Shown
from workbench.evaluate.profiles import Profiles
from workbench.figures.live import Curves, presented_by
from workbench.machine.meter import Meter
from workbench.machine.phase import HOST
from workbench.progress import progress


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


def reading(phase: str, seconds: float, megabytes: float) -> dict[str, Any]:
    return {"phase": phase, "seconds": seconds, "bytes": round(megabytes * 1e6)}


def test_measurements_follow_each_other_on_one_axis() -> None:
    curves = Curves("t", names=("a", "b"), panel="memory")
    notes = []
    with progress("Profile", total=3, quiet=True) as bar:
        shown = Shown(bar, curves)
        for form, context in (("a", 256), ("a", 2048), ("b", 256)):
            shown.begin(form, context)
            for told in ({"phase": "warm-up"}, reading("load", 0, 0), reading("decode", 2, 1500)):
                shown.take(told)
                notes.append(bar.note)
            shown.end()
        assert (bar.done, bar.note) == (3, "")
    assert curves.curves["a"].all() == [(0, 0), (2, 1500), (2, None), (2, 0), (4, 1500)]
    assert curves.curves["b"].all() == [(4, 0), (6, 1500)]
    assert notes[:3] == [
        "a @ 256: preparing",
        "a @ 256: loading, 0 MB",
        "a @ 256: decode, 1,500 MB",
    ]


def test_the_measured_process_tells_what_is_in_use_since_loading_began() -> None:
    told: list[dict[str, Any]] = []
    with Meter() as meter, Reporter(meter, lambda each: told.append(dict(each))) as reporter:
        with reporter.phase("warm-up"):
            pass
        reporter.device = "cpu"
        with reporter.phase("load"):
            held = touched(256_000_000)
        with reporter.phase("prefill"):
            count, until = len(told), time.monotonic() + 20
            while len(told) == count and time.monotonic() < until:
                time.sleep(0.001)
            assert len(told) > count  # its thread tells while nothing begins or ends
        del held
    assert [each["phase"] for each in told[:3]] == ["warm-up", "warm-up", "load"]
    assert told[2] == {"phase": "load", "seconds": 0.0, "bytes": 0}
    assert all("bytes" not in each for each in told[:2])
    seconds = [each["seconds"] for each in told[2:]]
    assert seconds == sorted(seconds)
    assert max(each["bytes"] for each in told[2:]) > 128_000_000
    here = [phase.name for phase in meter.phases if phase.place == HOST]  # MLX may have its own
    assert here == ["warm-up", "load", "prefill"]
    assert not reporter._thread.is_alive()


def test_two_engines_are_measured_for_real(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Curves] = []

    @contextlib.contextmanager
    def presenter(curves: Curves) -> Iterator[None]:
        drawn.append(curves)
        yield

    monkeypatch.setenv("WORKBENCH_QUIET", "1")
    with presented_by(presenter):
        found = profile(
            "tiny-chat",
            forms=["transformers:fp32", "llama.cpp:Q8_0"],
            contexts=[256, 2048],
            output_tokens=8,
            threads=1,
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
    check_curves(drawn, rows)
    saved = json.loads(found.save(home / "profile.json").read_text(encoding="utf-8"))
    assert len(saved["rows"]) == 4


def check_curves(drawn: list[Curves], rows: dict[tuple[str, int], Any]) -> None:
    """One curve a form, from zero at each loading to about the peak that was measured."""
    (curves,) = drawn
    assert curves.outcome == "done"
    assert list(curves.curves) == ["transformers:fp32", "llama.cpp:Q8_0"]
    first, second = (curve.all() for curve in curves.curves.values())
    for form, points in (("transformers:fp32", first), ("llama.cpp:Q8_0", second)):
        (gap,) = (at for at, (_, y) in enumerate(points) if y is None)
        assert points[0][1] == points[gap + 1][1] == 0
        assert [x for x, _ in points] == sorted(x for x, _ in points)
        for context, part in ((256, points[:gap]), (2048, points[gap + 1 :])):
            peak = rows[form, context]["total_added_bytes"] / 1e6
            assert peak / 3 < max(y or 0 for _, y in part) < peak + 2
    assert first[-1][0] == second[0][0]


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
