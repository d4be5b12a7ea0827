"""Runs cells in child processes and keeps each result in a file, so that nothing is done twice."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.catalog import Card
from workbench.engines import child
from workbench.errors import FormatError, InputError, WorkbenchError
from workbench.evaluate.form import Form
from workbench.formats.cache import content_key
from workbench.paths import atomic_file, sweep_partials
from workbench.planning import Plan
from workbench.receipts import Receipt, known_sha256
from workbench.receipts import write as write_receipt

SCHEMA = 1
MEASURE = "workbench.compare.cell:measure"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell before it is measured.

    Attributes:
        label: Its name in tables.
        card: The model.
        form: The form.
        plan: How it will be loaded, or None where that is impossible.
        refusal: Why it is impossible, or None.
        reference: Label of the cell it is compared with; None for the reference itself.
        group: Number of its model: the cells of one group share a reference.
        warm: What the child loads and drops first, or None.
        content: Digest of the model's files when the comparison began, or None.
        key: Digest of all that the result depends on.
    """

    label: str
    card: Card
    form: Form
    plan: Plan | None
    refusal: WorkbenchError | None
    reference: str | None
    group: int
    warm: Mapping[str, Any] | None = None
    content: str | None = None
    key: str = ""

    @property
    def is_reference(self) -> bool:
        """Whether the others of its group are compared with it."""
        return self.reference is None


@dataclasses.dataclass(kw_only=True)
class Work:
    """The cells of one comparison at work in one folder.

    Attributes:
        folder: Holds one JSON file a cell, and the references' log-probabilities while needed.
        conditions: What all cells share, written into files and receipts.
        measured: What every child gets, as plain data.
        timeout: Seconds that one cell may take.
        resume: Whether a finished cell of the same key is used again.
    """

    folder: Path
    conditions: Mapping[str, Any]
    measured: Mapping[str, Any]
    timeout: float
    resume: bool

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"The folder {self.folder} cannot be made: {error.strerror}.",
                hint="Give another one as out=.",
            ) from None
        sweep_partials(self.folder)

    def result(
        self,
        cell: Cell,
        *,
        others: Sequence[Cell] = (),
        tell: Callable[[str], None] | None = None,
    ) -> dict[str, Any]:
        """Return the cell's result: kept from before, or measured now and kept.

        Args:
            cell: What to measure.
            others: The other cells of its group: as long as one of them is to be measured, the
                reference has to leave its log-probabilities.
            tell: Takes the name of each step as it begins.
        """
        kept = self._kept(cell) if self.resume else None
        if kept is not None:
            gone = kept.get("left_reference") and not self._reference_file(cell).is_file()
            wanted = any(other.refusal is None and not self._kept(other) for other in others)
            if not (gone and wanted):
                return {**kept, "reused": True}
        found = self._measure(cell, tell)
        self._keep(cell, found)
        write_receipt(_receipt(cell, found, self.conditions))
        return found

    def clear(self, *, keep_cells: bool) -> None:
        """Remove the log-probabilities, and the cells' files too unless they are to stay."""
        if not keep_cells:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for path in self.folder.glob("reference-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _file(self, cell: Cell) -> Path:
        return self.folder / f"{cell.key[:24]}.json"

    def _reference_file(self, cell: Cell) -> Path:
        return self.folder / f"reference-{cell.group}.npy"

    def _kept(self, cell: Cell) -> dict[str, Any] | None:
        """Return a finished result under the same key; failures are tried again."""
        with contextlib.suppress(OSError, json.JSONDecodeError):
            found: dict[str, Any] = json.loads(self._file(cell).read_text(encoding="utf-8"))
            same = found.get("schema") == SCHEMA and found.get("key") == cell.key
            if same and found["outcome"] == "done":
                return found
        return None

    def _keep(self, cell: Cell, found: Mapping[str, Any]) -> None:
        with atomic_file(self._file(cell)) as partial:
            text = json.dumps(found, ensure_ascii=False, indent=1)
            partial.write_text(text + "\n", encoding="utf-8")

    def _measure(self, cell: Cell, tell: Callable[[str], None] | None) -> dict[str, Any]:
        head = {
            "schema": SCHEMA,
            "key": cell.key,
            "label": cell.label,
            "model": cell.card.id,
            "reference": cell.reference,
            "plan": cell.plan.describe() if cell.plan else _wished(cell.form),
            "time": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
        }
        if cell.refusal is not None:
            return {**head, **_failure(cell.refusal), "seconds": 0.0}
        began = time.perf_counter()
        try:
            values = child.call(
                MEASURE,
                {"cell": self._arguments(cell)},
                timeout=self.timeout,
                progress=tell,
            )
            _require_same_files(cell)
        except WorkbenchError as error:
            return {**head, **_failure(error), "seconds": time.perf_counter() - began}
        return {**head, **values, "outcome": "done", "seconds": time.perf_counter() - began}

    def _arguments(self, cell: Cell) -> dict[str, Any]:
        path = self._reference_file(cell)
        agree = bool(self.measured["conversations"])
        return {
            **self.measured,
            "model": cell.card.model_dump(mode="json"),
            "load": cell.form.load_arguments(),
            "warm": cell.warm,
            "reference": {"path": str(path), "write": cell.is_reference} if agree else None,
        }


def _require_same_files(cell: Cell) -> None:
    """Refuse a result whose model was replaced meanwhile: it belongs to no key.

    Raises:
        FormatError: The files are not those that the comparison began with.
    """
    files = cell.plan.files if cell.plan else None
    if files is None:
        return
    found: str | None = None
    with contextlib.suppress(OSError):
        found = content_key(files)
    if found != cell.content:
        raise FormatError(
            f"The files of {cell.card.id} were changed while they were compared.",
            hint="Compare again when nothing writes to them.",
        )


def _wished(form: Form) -> dict[str, Any]:
    return {"engine": form.engine, "quantization": form.quantization, "dtype": form.dtype}


def _failure(error: WorkbenchError) -> dict[str, Any]:
    return {"outcome": "failed", "reason": str(error), "kind": type(error).__name__}


def _receipt(cell: Cell, found: Mapping[str, Any], conditions: Mapping[str, Any]) -> Receipt:
    """Return the receipt of one cell; single replies stay in the cell's own file."""
    done, files = found["outcome"] == "done", cell.plan.files if cell.plan else None
    names = ("weights", "load_seconds", "added", "memory_source", "speed", "agreement")
    result = {name: found[name] for name in names if done and found.get(name) is not None}
    if done and found.get("tasks"):
        rows = found["tasks"]["rows"]
        result["right"] = sum(row["right"] for row in rows)
        result["count"] = len(rows)
    return Receipt(
        what="compare",
        model=cell.card.id,
        revision=files.revision if files else None,
        sha256=known_sha256(files.weights) if files else None,
        plan=found["plan"],
        parameters={
            "form": cell.label,
            "reference": cell.reference,
            **{name: value for name, value in conditions.items() if name != "versions"},
        },
        outcome="done" if done else "failed",
        result=result,
        reason=found.get("reason"),
    )
