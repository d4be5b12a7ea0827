"""What a comparison found: rows, a table with verdicts, figures; failed cells stay in them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import InputError, did_you_mean
from workbench.evaluate.phases import PHASES
from workbench.evaluate.statistics import Paired, holm, paired, verdict
from workbench.evaluate.tasks import TaskResults
from workbench.figures import Figure, Table, bar, heatmap, scatter, stacked
from workbench.machine import machine
from workbench.paths import atomic_file
from workbench.redact import redacted

_COLUMNS = {
    "form": "form",
    "accuracy": "accuracy",
    "right": "right",
    "accuracy_interval": "95 % CI",
    "top1": "top-1 agreement",
    "mean_kl": "mean KL (nats)",
    "first_divergence": "first divergence",
    "ttft_ms": "TTFT (ms)",
    "decode_tps": "decode (tokens/s)",
    "prefill_tps": "prefill (tokens/s)",
    "disk": "weights on disk",
    "memory": "in memory",
    "load": "load peak",
    "prefill": "prefill peak",
    "decode": "decode peak",
    "load_seconds": "load (s)",
    "verdict": "verdict",
}
_BYTES = {
    "disk": "disk_bytes",
    "memory": "memory_bytes",
    "load": "load_bytes",
    "prefill": "prefill_bytes",
    "decode": "decode_bytes",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """All cells of a comparison, in order; displays itself as a table with verdicts.

    Attributes:
        cells: What each cell left, as plain data; ``outcome`` is ``done`` or ``failed``.
        conditions: What all cells share: prompts, sampling, repetitions, versions.
        folder: Where the cells' files stay, or None where they were removed at the end.
    """

    cells: tuple[Mapping[str, Any], ...]
    conditions: Mapping[str, Any]
    folder: Path | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row of plain numbers a cell; bytes, seconds, nats and shares, None where unknown."""
        compared = self._paired()
        adjusted = dict(zip(compared, holm([p.p_value for p in compared.values()]), strict=True))
        rows = []
        for index, cell in enumerate(self.cells):
            row = _row(cell)
            pair = compared.get(index)
            if pair is not None:
                row["verdict"] = verdict(pair, p_value=adjusted[index])
                row["accuracy_difference"] = pair.difference.estimate
                row["p_value"] = adjusted[index]
            rows.append(row)
        return rows

    @property
    def failed(self) -> list[Mapping[str, Any]]:
        """The cells that failed, each with its ``reason``."""
        return [cell for cell in self.cells if cell["outcome"] == "failed"]

    def tasks(self, form: str) -> TaskResults:
        """Return every reply of one form.

        Raises:
            InputError: No cell has this label, or it failed.
        """
        found = {str(cell["label"]): cell for cell in self.cells if cell.get("tasks")}
        if form not in found:
            raise InputError(f"There are no replies of {form!r}.", hint=did_you_mean(form, found))
        return TaskResults.from_dict(found[form]["tasks"])

    def _paired(self) -> dict[int, Paired]:
        """Return the paired comparison of each cell with its reference, by the cell's index."""
        judged = {
            cell["label"]: {row["id"]: row["right"] for row in cell["tasks"]["rows"]}
            for cell in self.cells
            if cell.get("tasks")
        }
        found = {}
        for index, cell in enumerate(self.cells):
            first, second = judged.get(cell.get("reference")), judged.get(cell["label"])
            if first is None or second is None:
                continue
            common = [name for name in first if name in second]
            if common:
                found[index] = paired([first[n] for n in common], [second[n] for n in common])
        return found

    def table(self) -> Table:
        """Return the table: one line a form, the failures with their reasons."""
        rows, unit = self.rows, self._unit()
        scale, name = unit
        shown = []
        for row in rows:
            line = {column: row.get(column) for column in _COLUMNS}
            if row["accuracy"] is not None:
                line["right"] = f"{row['right']}/{row['count']}"
                line["accuracy_interval"] = (
                    f"{row['accuracy_low']:.1%} to {row['accuracy_high']:.1%}"
                )
            for column, field in _BYTES.items():
                value = row.get(field)
                line[column] = None if value is None else value / scale
            line["failed"] = row.get("failed")
            shown.append(line)
        headings = {
            column: f"{title} ({name})" if column in _BYTES else title
            for column, title in _COLUMNS.items()
        }
        return Table(
            shown,
            columns=headings,
            caption=self._caption(),
            formats={
                "accuracy": ".1%",
                "top1": ".2%",
                "mean_kl": ".2g",
                "ttft_ms": ".1f",
                "decode_tps": ".0f",
                "prefill_tps": ".0f",
                "load_seconds": ".2f",
                **dict.fromkeys(_BYTES, ".1f"),
            },
        )

    def _caption(self) -> str:
        count = self.conditions.get("prompts", {}).get("count")
        models = ", ".join(dict.fromkeys(str(cell["model"]) for cell in self.cells))
        return f"{models}: {len(self.cells)} forms on {count} prompts; {machine().summary()}"

    def frame(self) -> Any:
        """Return the rows as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def skills(self) -> Table:
        """Return accuracy by skill and language, one column a form."""
        lines: dict[tuple[str, str], dict[str, Any]] = {}
        for cell in self.cells:
            if not cell.get("tasks"):
                continue
            for line in TaskResults.from_dict(cell["tasks"]).table():
                name = (line["skill"], line["lang"])
                row = lines.setdefault(name, {"skill": name[0], "language": name[1]})
                row[str(cell["label"])] = line["accuracy"]
        labels = [str(cell["label"]) for cell in self.cells if cell.get("tasks")]
        return Table(list(lines.values()), formats=dict.fromkeys(labels, ".0%"))

    def verdicts(self) -> list[str]:
        """Return one sentence a form: accuracy, agreement, size and speed against its reference."""
        rows = {row["form"]: row for row in self.rows}
        return [_sentence(row, rows.get(str(row.get("reference")))) for row in rows.values()]

    def accuracy_figure(self) -> Figure:
        """Return accuracy in percent by form."""
        return bar(
            self._values("accuracy", 100),
            title="Accuracy on the prompt sets",
            y_title="accuracy",
            unit="%",
        )

    def skill_figure(self) -> Figure:
        """Return accuracy by form and skill as a heatmap."""
        cells = {
            str(cell["label"]): {
                f"{line['skill']} {line['lang']}": line["accuracy"] * 100
                for line in TaskResults.from_dict(cell["tasks"]).table()[:-1]
            }
            for cell in self.cells
            if cell.get("tasks")
        }
        return heatmap(cells, title="Accuracy by skill and language", unit="%")

    def agreement_figure(self) -> Figure:
        """Return top-1 agreement with the reference in percent by form."""
        return bar(
            self._values("top1", 100),
            title="Top-1 agreement with the reference",
            y_title="top-1 agreement",
            unit="%",
        )

    def divergence_figure(self) -> Figure:
        """Return mean KL divergence from the reference over the bytes of the weights."""
        scale, unit = self._unit()
        points = [
            {"form": row["form"], "size": _scaled(row["disk_bytes"], scale), "kl": row["mean_kl"]}
            for row in self.rows
        ]
        return scatter(
            points,
            x="size",
            y="kl",
            label="form",
            title="What smaller weights cost",
            x_title=f"weights on disk ({unit})",
            y_title="mean KL divergence",
            unit="nats",
        )

    def speed_figure(self) -> Figure:
        """Return decode tokens per second by form."""
        return bar(
            self._values("decode_tps", 1),
            title="Decode speed, one request at a time",
            y_title="decode",
            unit="tokens/s",
        )

    def ttft_figure(self) -> Figure:
        """Return time to first token in milliseconds by form."""
        return bar(
            self._values("ttft_ms", 1),
            title="Time to first token",
            y_title="TTFT",
            unit="ms",
        )

    def memory_figure(self) -> Figure:
        """Return memory by phase and form, stacked: what load, prefill and decode each added."""
        scale, unit = self._unit()
        data = {
            phase: {row["form"]: _scaled(row.get(f"{phase}_bytes"), scale) for row in self.rows}
            for phase in PHASES
        }
        return stacked(data, title="Memory by phase", y_title="added memory", unit=unit)

    def _values(self, field: str, scale: float) -> dict[str, float | None]:
        return {
            row["form"]: None if row.get(field) is None else row[field] * scale for row in self.rows
        }

    def _unit(self) -> tuple[float, str]:
        """Return divisor and name of the unit in which these bytes read well."""
        sizes = [row[field] for row in self.rows for field in _BYTES.values() if row.get(field)]
        return (1e9, "GB") if max(sizes, default=0) >= 1e10 else (1e6, "MB")

    def key_numbers(self) -> list[tuple[str, float | str, str]]:
        """Return what stands on top of a report: name, value, unit."""
        rows = [row for row in self.rows if not row.get("failed")]
        numbers: list[tuple[str, float | str, str]] = [
            ("forms measured", f"{len(rows)} of {len(self.cells)}", "")
        ]
        if not rows:
            return numbers
        if rows[0]["accuracy"] is not None:
            numbers.append((f"right, {rows[0]['form']}", rows[0]["accuracy"] * 100, "%"))
        scale, unit = self._unit()
        far = _most(rows, "mean_kl")
        fast = _most(rows, "decode_tps")
        sized = [row for row in rows if row.get("disk_bytes")]
        small = min(sized, key=lambda row: row["disk_bytes"], default=None)
        if far is not None:
            numbers.append((f"furthest, {far['form']}", far["mean_kl"], "nats"))
        if fast is not None:
            numbers.append((f"fastest, {fast['form']}", fast["decode_tps"], "tokens/s"))
        if small is not None:
            numbers.append((f"smallest, {small['form']}", small["disk_bytes"] / scale, unit))
        return numbers

    def conclusion(self) -> str:
        """Return the result in two sentences at most."""
        rows = [row for row in self.rows if not row.get("failed")]
        said = f"{len(rows)} of {len(self.cells)} forms ran."
        differ = [row["form"] for row in rows if row.get("p_value") is not None]
        worse = [row["form"] for row in rows if (row.get("p_value") or 1.0) < 0.05]
        if not differ:
            return said
        if not worse:
            return f"{said} Accuracy on these prompts tells none of them from {rows[0]['form']}."
        return f"{said} Accuracy on these prompts differs from {rows[0]['form']} for " + (
            f"{', '.join(worse)}; for the others no difference was measured."
        )

    def save(self, path: str | Path) -> Path:
        """Write rows, verdicts, cells and conditions as JSON, whole or not at all."""
        final = Path(path)
        values = {
            "rows": self.rows,
            "verdicts": self.verdicts(),
            "conditions": self.conditions,
            "cells": self.cells,
        }
        with atomic_file(final) as partial:
            text = json.dumps(redacted(values), indent=1, ensure_ascii=False)
            partial.write_text(text + "\n", encoding="utf-8")
        return final

    def __str__(self) -> str:
        return str(self.table())

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.table()._repr_mimebundle_()


def _most(rows: list[dict[str, Any]], field: str) -> dict[str, Any] | None:
    """Return the row with the largest value of a field, or None where no row has one."""
    known = [row for row in rows if row.get(field) is not None]
    return max(known, key=lambda row: row[field], default=None)


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value / scale


def _row(cell: Mapping[str, Any]) -> dict[str, Any]:
    tasks = TaskResults.from_dict(cell["tasks"]) if cell.get("tasks") else None
    share = tasks.accuracy() if tasks else None
    agreement = cell.get("agreement") or {}
    weights = cell.get("weights") or {}
    failed = cell["outcome"] == "failed"
    row: dict[str, Any] = {
        "form": str(cell["label"]),
        "model": cell["model"],
        "reference": cell.get("reference"),
        **{name: cell["plan"].get(name) for name in ("engine", "quantization", "dtype", "device")},
        "right": tasks.right if tasks else None,
        "count": len(tasks.rows) if tasks else None,
        "accuracy": share.estimate if share else None,
        "accuracy_low": share.low if share else None,
        "accuracy_high": share.high if share else None,
        **{name: agreement.get(name) for name in ("top1", "mean_kl", "first_divergence")},
        **_speed(cell.get("speed")),
        "disk_bytes": weights.get("disk_bytes"),
        "memory_bytes": weights.get("memory_bytes"),
        **{f"{phase}_bytes": (cell.get("added") or {}).get(phase) for phase in PHASES},
        "memory_source": cell.get("memory_source"),
        "load_seconds": cell.get("load_seconds"),
        "reused": bool(cell.get("reused")),
        "verdict": None if failed else "reference" if cell.get("reference") is None else None,
    }
    if failed:
        row["failed"] = cell["reason"]
    return row


def _speed(speed: Mapping[str, Any] | None) -> dict[str, float | None]:
    if not speed:
        return {"ttft_ms": None, "prefill_tps": None, "decode_tps": None}
    decode = speed["decode"]
    return {
        "ttft_ms": speed["prefill"][0]["ttft"]["median"] * 1000,
        "prefill_tps": speed["prefill"][-1]["tokens_per_second"]["median"],
        "decode_tps": decode["median"] if decode else None,
    }


def _sentence(row: Mapping[str, Any], reference: Mapping[str, Any] | None) -> str:
    if row.get("failed"):
        return f"{row['form']} failed: {row['failed']}"
    if reference is None:
        if row.get("reference") is not None:
            return f"{row['form']}: its reference {row['reference']} has no result to compare with."
        return f"{row['form']} is the reference, {_percent(row['accuracy'])} right."
    parts = [f"accuracy {row['verdict'] or 'not compared: the reference has none'}"]
    if row["top1"] is not None:
        parts.append(f"top-1 agreement {row['top1']:.2%}, mean KL {row['mean_kl']:.2g} nats")
    for field, words in (("disk_bytes", "the weight bytes"), ("decode_tps", "the decode speed")):
        if row.get(field) and reference.get(field):
            parts.append(f"{row[field] / reference[field]:.2f} times {words}")
    return f"{row['form']} against {row['reference']}: {'; '.join(parts)}."


def _percent(value: float | None) -> str:
    return "no task" if value is None else f"{value:.1%}"
