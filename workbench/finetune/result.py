"""What a fine-tuning leaves: the adapter, the loss curve, the figures before and after."""

from __future__ import annotations

import dataclasses
import html
from pathlib import Path
from typing import Any

from workbench.figures import Figure, Table, line
from workbench.finetune.mask import MaskView
from workbench.finetune.measure import Measured
from workbench.finetune.recipe import Recipe
from workbench.progress import duration


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One finished fine-tuning; displays its table, and ``figure()`` is its loss curve.

    Attributes:
        adapter: Folder of the PEFT adapter, with ``recipe.yaml``, ``training.jsonl``,
            ``metrics.json`` and ``README.md``.
        recipe: The settings, every value resolved.
        before: The base model's figures.
        after: The figures with the adapter.
        curve: Rows of the loss curve: step, loss, learning_rate, tokens, tokens_per_second; rows
            with ``held_out_loss`` between them.
        metrics: Steps, seconds, tokens, parameters and memory of the training, as plain data.
        view: What the loss was computed on.
        notes: What the user should know.
    """

    adapter: Path
    recipe: Recipe
    before: Measured
    after: Measured
    curve: tuple[dict[str, Any], ...]
    metrics: dict[str, Any]
    view: MaskView = dataclasses.field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def peak_memory_bytes(self) -> int:
        """Most memory in use while training: on the accelerator, else of this process."""
        rows = [row for row in self.metrics["memory"] if row["name"] == "train"]
        on_device = [row["peak_bytes"] for row in rows if not row["place"].startswith("host")]
        return max(on_device or [row["peak_bytes"] for row in rows], default=0)

    @property
    def points_lost(self) -> float | None:
        """Percentage points of the other skills that were lost; below 0 where they grew."""
        before, after = self.before.skill_accuracy(), self.after.skill_accuracy()
        return (before - after) * 100 if before is not None and after is not None else None

    def figure(self) -> Figure:
        """Return the loss curve, with the held-out loss where it was measured."""
        series = {"training": [(row["step"], row["loss"]) for row in self.curve if "loss" in row]}
        held_out = [
            (row["step"], row["held_out_loss"]) for row in self.curve if "held_out_loss" in row
        ]
        if held_out:
            series["held-out"] = held_out
        return line(
            series, title="Loss", x_title="step", y_title="loss", unit="nats per supervised token"
        )

    def table(self) -> Table:
        """Return the figures before and after, accuracies in percent."""
        return Table(
            before_and_after(self.before, self.after),
            columns=["measure", "before", "after", "change"],
            caption=f"{self.recipe.model}, before and after",
            formats={"before": ".4g", "after": ".4g", "change": "+.4g"},
        )

    def key_numbers(self) -> list[tuple[str, float, str]]:
        """Return the numbers that matter, each with name and unit; what was not measured is out."""
        before, after = self.before.accuracy(), self.after.accuracy()
        found = [
            ("New skill before", _times(before, 100), "%"),
            ("New skill after", _times(after, 100), "%"),
            ("Other skills after", _times(self.after.skill_accuracy(), 100), "%"),
            ("Other skills lost", self.points_lost, "points"),
            ("Held-out loss after", self.after.loss, "nats"),
            ("Training time", self.metrics["seconds"], "s"),
            ("Training speed", self.metrics["tokens_per_second"], "tokens/s"),
            ("Peak memory", self.peak_memory_bytes / 1e6, "MB"),
        ]
        return [(name, round(value, 3), unit) for name, value, unit in found if value is not None]

    def conclusion(self) -> str:
        """Return the result in a sentence or two."""
        before, after = self.before.accuracy(), self.after.accuracy()
        if before is None or after is None:
            return f"{self.summary()}. No held-out answers were given to judge the skill by."
        said = f"Held-out answers right: {before:.0%} before, {after:.0%} after."
        if self.points_lost is None:
            return said
        word = "lost" if self.points_lost >= 0 else "gained"
        return f"{said} The other skills {word} {abs(self.points_lost):.1f} points."

    def summary(self) -> str:
        """Return one line: method, rank, steps, time, speed, memory."""
        speed = self.metrics["tokens_per_second"]
        return (
            f"{self.recipe.method} of rank {self.recipe.rank} on {self.recipe.model}: "
            f"{self.metrics['steps']} steps in {duration(self.metrics['seconds'])}, "
            f"{speed or 0:.0f} tokens/s, "
            f"{self.metrics['trainable_parameters'] / 1e6:.2f} M trained weights, "
            f"peak {self.peak_memory_bytes / 1e6:.0f} MB"
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        table, figure = self.table(), self.figure()
        notes = [self.summary(), *self.notes, f"Adapter: {self.adapter.name}"]
        plain = "\n".join([str(table), figure.summary, *notes])
        said = "".join(f"<div>{html.escape(note)}</div>" for note in notes)
        return {"text/plain": plain, "text/html": f"{table.html()}{said}"}

    def __str__(self) -> str:
        return self._repr_mimebundle_()["text/plain"]


def before_and_after(before: Measured, after: Measured) -> list[dict[str, Any]]:
    """Return rows ``measure, before, after, change``; accuracies in percent."""
    pairs: list[tuple[str, float | None, float | None]] = [
        ("held-out loss (nats)", before.loss, after.loss),
        ("held-out tokens right (%)", *_percent(before.token_accuracy, after.token_accuracy)),
        ("held-out answers right (%)", *_percent(before.accuracy(), after.accuracy())),
        ("other skills right (%)", *_percent(before.skill_accuracy(), after.skill_accuracy())),
    ]
    for name in before.skill_names():
        values = (before.skill_accuracy(name), after.skill_accuracy(name))
        pairs.append((f"· {name} (%)", *_percent(*values)))
    return [
        {"measure": name, "before": old, "after": new, "change": new - old}
        for name, old, new in pairs
        if old is not None and new is not None
    ]


def _percent(before: float | None, after: float | None) -> tuple[float | None, float | None]:
    return _times(before, 100), _times(after, 100)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
