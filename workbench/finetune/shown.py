"""What is seen of a training while it goes on: one bar, and the curves of loss and memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from workbench.figures.live import Curves, growing
from workbench.finetune.job import Job
from workbench.progress import Bar, progress

TRAINING, HELD_OUT, MEMORY = "training loss", "held-out loss", "memory"


class Shown:
    """A training's bar and curves; rows are those of ``training.jsonl``."""

    def __init__(self, bar: Bar, curves: Curves) -> None:
        self._bar, self.curves = bar, curves

    def step(self, step: int) -> None:
        """Say how many steps are done."""
        self._bar.update(done=step)

    def row(self, row: Mapping[str, Any]) -> None:
        """Draw one row of the log."""
        step = row["step"]
        if "loss" in row:
            self.curves.add(step, {TRAINING: row["loss"]})
            self._bar.update(done=max(step, self._bar.done), note=f"loss {row['loss']:.3f}")
        if "held_out_loss" in row:
            self.curves.add(step, {HELD_OUT: row["held_out_loss"]})
        if row.get("memory_bytes"):
            self.curves.add(step, {MEMORY: row["memory_bytes"] / 1e6})


@contextlib.contextmanager
def training_shown(job: Job, *, quiet: bool | None) -> Iterator[Shown]:
    """Show the training of a job within the block.

    Args:
        job: What is trained.
        quiet: Show nothing; None asks ``WORKBENCH_QUIET`` for the bar.
    """
    steps = job.steps()
    with (
        growing(
            f"Fine-tuning {job.card.id}",
            total=steps,
            units={"loss": "nats", MEMORY: "MB"},
            names=(TRAINING, HELD_OUT, MEMORY),
            quiet=bool(quiet),
        ) as curves,
        progress("Fine-tuning", total=steps, unit="steps", quiet=quiet) as bar,
    ):
        yield Shown(bar, curves)
