"""What a profile found: rows by form and context, a table, and figures of phases and time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench.errors import InputError, did_you_mean
from workbench.evaluate.phases import PHASES
from workbench.figures import Figure, Table, bar, line, stacked
from workbench.machine import machine
from workbench.memory.estimate import Estimate
from workbench.paths import atomic_file
from workbench.redact import redacted

_MB = 1e6
_COLUMNS = {
    "form": "form",
    "context": "context",
    "estimate": "estimated",
    "measured": "measured",
    "error": "error",
    "load": "load",
    "prefill": "prefill",
    "decode": "decode",
    "source": "measured by",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Profiles:
    """Memory of one model in several forms and contexts; displays itself as a table.

    Attributes:
        model: Card id.
        rows: One mapping for each form and context, a failed one with its reason.
    """

    model: str
    rows: tuple[Mapping[str, Any], ...]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def table(self) -> Table:
        """Return estimate beside measurement, in MB; a failure stays as a row."""
        rows = [self._line(row) for row in self.rows]
        caption = f"Memory of {self.model} in MB, beyond the process before loading"
        formats: dict[str, Any] = dict.fromkeys(
            ("estimate", "measured", "load", "prefill", "decode"), ",.1f"
        )
        return Table(rows, columns=_COLUMNS, caption=caption, formats={**formats, "error": "+.0%"})

    def _line(self, row: Mapping[str, Any]) -> dict[str, Any]:
        added = row.get("added") or {}
        estimated, measured = _estimated(row), row.get("total_added_bytes")
        return {
            "form": row["form"],
            "context": row["context"],
            "estimate": estimated / _MB if estimated is not None else None,
            "measured": measured / _MB if measured is not None else None,
            "error": estimated / measured - 1 if estimated and measured else None,
            **{name: added[name] / _MB if name in added else None for name in PHASES},
            "source": row.get("memory_source"),
            "failed": row.get("failed"),
        }

    def phase_figure(self) -> Figure:
        """Return what each phase added, stacked, one bar for each form and context."""
        done = [row for row in self.rows if row.get("added")]
        if not done:
            raise InputError("Nothing was measured, so there is nothing to draw.")
        data = {phase: {_name(row): row["added"][phase] / _MB for row in done} for phase in PHASES}
        return stacked(
            data, title=f"What each phase adds: {self.model}", y_title="memory", unit="MB"
        )

    def estimate_figure(self) -> Figure:
        """Return estimate and measurement side by side."""
        done = [row for row in self.rows if row.get("total_added_bytes") is not None]
        if not done:
            raise InputError("Nothing was measured, so there is nothing to draw.")
        data = {
            "estimated": {
                _name(row): value / _MB if (value := _estimated(row)) is not None else None
                for row in done
            },
            "measured": {_name(row): row["total_added_bytes"] / _MB for row in done},
        }
        return bar(
            data, title=f"Estimate beside measurement: {self.model}", y_title="memory", unit="MB"
        )

    def timeline(self, context: int | None = None, *, forms: tuple[str, ...] = ()) -> Figure:
        """Return memory over time, one curve a form, from loading to the last token.

        Args:
            context: Which of the profiled contexts; default is the longest.
            forms: Which forms; default is all that were measured.

        Raises:
            InputError: No such context or form was measured.
        """
        done = [row for row in self.rows if row.get("timeline")]
        contexts = sorted({row["context"] for row in done})
        if not done or (context is not None and context not in contexts):
            raise InputError(
                f"No timeline was measured at context {context}.",
                hint=f"There are {', '.join(map(str, contexts)) or 'none'}.",
            )
        chosen = contexts[-1] if context is None else context
        there = {row["form"]: row for row in done if row["context"] == chosen}
        for form in forms:
            if form not in there:
                raise InputError(
                    f"The form {form!r} has no timeline.", hint=did_you_mean(form, there)
                )
        curves = {
            name: curve
            for name, row in there.items()
            if (not forms or name in forms) and (curve := _curve(row))
        }
        return line(
            curves,
            title=f"Memory over time: {self.model}, context {chosen}",
            x_title="seconds since loading began",
            y_title="memory beyond that moment",
            unit="MB",
        )

    def estimates(self) -> dict[str, Estimate]:
        """Return the estimates by the name of their row, as breakdowns that display themselves."""
        return {
            _name(row): Estimate.of(row["estimate"]) for row in self.rows if row.get("estimate")
        }

    def save(self, path: str | Path) -> Path:
        """Write every measured value as JSON, and return the path."""
        final = Path(path).expanduser().resolve()
        values = {
            "model": self.model,
            "machine": machine().describe(),
            "rows": [dict(row) for row in self.rows],
        }
        with atomic_file(final) as partial:
            text = json.dumps(redacted(values), ensure_ascii=False, indent=1)
            partial.write_text(text + "\n", encoding="utf-8")
        return final

    def conclusion(self) -> str:
        """Return in a sentence how far the estimates were from what was measured."""
        errors = sorted(abs(error) for error in self._errors().values())
        failed = sum(1 for row in self.rows if row["outcome"] != "done")
        said = f"{len(self) - failed} of {len(self)} forms and contexts were measured"
        if not errors:
            return f"{said}; none of them has an estimate to hold against."
        median = errors[len(errors) // 2]
        name, worst = max(self._errors().items(), key=lambda item: abs(item[1]))
        return (
            f"{said}; the estimate of the peak was off by {median:.0%} in the median, "
            f"by {worst:+.0%} at worst ({name})."
        )

    def key_numbers(self) -> list[tuple[str, float, str]]:
        """Return name, value and unit of the numbers on top of a report."""
        errors = sorted(abs(error) for error in self._errors().values())
        numbers: list[tuple[str, float, str]] = [
            (
                "measured",
                sum(1 for row in self.rows if row["outcome"] == "done"),
                "forms x contexts",
            )
        ]
        if errors:
            numbers += [
                ("median error of the estimate", round(errors[len(errors) // 2] * 100, 1), "%"),
                ("worst error of the estimate", round(errors[-1] * 100, 1), "%"),
            ]
        peaks = [row["total_added_bytes"] for row in self.rows if row.get("total_added_bytes")]
        if peaks:
            numbers.append(("least peak", round(min(peaks) / _MB, 1), "MB"))
        return numbers

    def worst(self) -> tuple[str, float] | None:
        """Return the row whose estimate is farthest off, and its error as a fraction."""
        errors = self._errors()
        return max(errors.items(), key=lambda item: abs(item[1])) if errors else None

    def _errors(self) -> dict[str, float]:
        lines = ((_name(row), self._line(row)["error"]) for row in self.rows)
        return {name: error for name, error in lines if error is not None}

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.table()._repr_mimebundle_()


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['form']} @ {row['context']}"


def _estimated(row: Mapping[str, Any]) -> int | None:
    """Return the estimated bytes where they were measured: the device, or all of the host's."""
    if not row.get("estimate"):
        return None
    found = Estimate.of(row["estimate"])
    device = found.total("device", what="allocated")
    return device or found.total("host", what="allocated")


def _curve(row: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return (seconds, MB) from the beginning of loading, at the place that was measured."""
    rows = list(row["timeline"])
    start = next((at for at, point in enumerate(rows) if point["phase"] == "load"), len(rows))
    points = rows[start:]
    places = sorted({point["place"] for point in points} - {"host", "host with children"})
    place = "host" if row["plan"]["device"] == "cpu" or not places else places[0]
    there = [point for point in points if point["place"] == place]
    if not there:
        return []
    begin, base = there[0]["seconds"], there[0]["bytes"]
    return [(point["seconds"] - begin, (point["bytes"] - base) / _MB) for point in there]
