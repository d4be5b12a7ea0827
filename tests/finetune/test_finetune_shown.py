"""What is seen of a training comes from its log, in one process or in several."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

from touched_memory import touched

from workbench.figures.live import Curves
from workbench.finetune.launch import _followed
from workbench.finetune.shown import HELD_OUT, MEMORY, TRAINING, Shown
from workbench.machine.meter import Meter
from workbench.progress import progress

ROWS: list[dict[str, Any]] = [
    {"step": 0, "held_out_loss": 3.0},
    {"step": 1, "loss": 2.5, "memory_bytes": 800_000_000},
    {"step": 2, "loss": math.nan, "memory_bytes": 801_000_000},
    {"step": 2, "held_out_loss": 1.5},
]


class Ending:
    """A process that writes the log a piece at a time, and ends."""

    def __init__(self, log: Path, pieces: list[str]) -> None:
        self.log, self.pieces = log, pieces

    def wait(self, timeout: float) -> int:
        if not self.pieces:
            return 3
        self.log.write_text(self.pieces.pop(0), encoding="utf-8")
        raise subprocess.TimeoutExpired("train", timeout)


def points(curves: Curves) -> dict[str, list[Any]]:
    return {name: curve.all() for name, curve in curves.curves.items() if not curve.empty}


def test_rows_become_curves_and_a_note() -> None:
    curves = Curves("t", units={MEMORY: "MB"}, names=(TRAINING, HELD_OUT, MEMORY))
    with progress("Fine-tuning", total=2, quiet=True) as bar:
        shown = Shown(bar, curves)
        for row in ROWS:
            shown.row(row)
        assert (bar.done, bar.note) == (2, "loss nan")
    assert points(curves) == {
        TRAINING: [(1, 2.5), (2, None)],
        HELD_OUT: [(0, 3.0), (2, 1.5)],
        MEMORY: [(1, 800.0), (2, 801.0)],
    }


def test_the_log_of_other_processes_is_followed_each_row_once(tmp_path: Path) -> None:
    lines = [json.dumps(row) + "\n" for row in ROWS]
    old = "".join(lines[:2])  # of the training that is resumed: written anew when it begins
    pieces = [old, lines[0], "".join(lines[:3]) + lines[3][:9], "".join(lines)]
    curves = Curves("t")
    with progress("Fine-tuning", total=2, quiet=True) as bar:
        process: Any = Ending(tmp_path / "training.jsonl", pieces)
        code = _followed(process, tmp_path / "training.jsonl", Shown(bar, curves))
    assert code == 3
    assert points(curves)[TRAINING] == [(1, 2.5), (2, None)]
    assert points(curves)[HELD_OUT] == [(0, 3.0), (2, 1.5)]


def test_the_meter_says_what_is_in_use_now() -> None:
    with Meter() as meter:
        before = meter.in_use("cpu")
        held = touched(256_000_000)
        assert meter.in_use("cpu") - before > 128_000_000
        del held
