"""Bring a run to its end: notebook, run.json, report and index under their final names."""

from __future__ import annotations

import datetime as dt
import json
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.paths import atomic_file, sweep_partials
from workbench.redact import redacted
from workbench.runs import record

_MOST_LINES = 30
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def described(problem: Exception) -> dict[str, Any]:
    """Return name, message and short traceback of what stopped a notebook."""
    name = getattr(problem, "ename", None)
    if name is not None:  # papermill's error for a cell that raised
        lines = _ANSI.sub("", "\n".join(getattr(problem, "traceback", []))).splitlines()
        message = _ANSI.sub("", str(getattr(problem, "evalue", "")))
        return {"name": str(name), "message": message, "traceback": lines[-_MOST_LINES:]}
    if type(problem).__name__ == "DeadKernelError":
        said = "The kernel died. Memory may have run out, or native code crashed; see run.log."
        return {"name": "KernelDied", "message": said, "traceback": []}
    return {"name": type(problem).__name__, "message": str(problem), "traceback": []}


def finish(
    folder: Path,
    *,
    outcome: str,
    error: Mapping[str, Any] | None,
    memory: Mapping[str, Any] | None = None,
) -> record.Run:
    """Write what a run that is over leaves behind; what is complete gets its final name.

    Args:
        folder: The run folder.
        outcome: ``done``, ``failed``, ``interrupted`` or ``lost``.
        error: What stopped it, as ``described`` returns it.
        memory: ``peak_bytes`` of all its processes together, and their ``source``.
    """
    data = dict(record.read(folder).data)
    ended = record.now()
    span = dt.datetime.fromisoformat(ended) - dt.datetime.fromisoformat(data["started"])
    _keep_notebook(folder)
    data |= record.collected(folder)
    data |= {"outcome": outcome, "error": error, "ended": ended, "memory": memory}
    data["duration_s"] = round(span.total_seconds(), 1)
    data["cells"] = {**data["cells"], "reached": record.reached(folder)}
    run = record.write(folder, data)
    record.clear(folder)
    sweep_partials(folder)
    render(run)
    return run


def render(run: record.Run) -> Path | None:
    """Write the report and the index of runs; a failure to render never hides the run's outcome."""
    from workbench.runs import shelf
    from workbench.runs.exporter import write_report

    report: Path | None = None
    try:
        report = write_report(run)
        shelf.write_index()
    except Exception as problem:
        print(f"The report of {run.folder} was not written:", file=sys.stderr)  # noqa: T201
        traceback.print_exception(problem)
    return report


def settle(folder: Path) -> record.Run:
    """Return the run; one that says it is running while its process is gone becomes ``lost``."""
    run = record.read(folder)
    if run.data["outcome"] == "running" and run.outcome == "lost":
        return finish(folder, outcome="lost", error=None)
    return run


def _keep_notebook(folder: Path) -> None:
    """Give the executed notebook its final name, without papermill's marks and private words."""
    partial = folder / record.PARTIAL
    if not partial.is_file():
        return
    try:
        notebook = json.loads(partial.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return  # the process was killed while it wrote
    marks = ("papermill-error-cell-tag", "papermill-error-cell")
    notebook["cells"] = [
        _clean_cell(cell)
        for cell in notebook["cells"]
        if not set(marks) & set(cell["metadata"].get("tags", []))
    ]
    notebook["metadata"].pop("widgets", None)
    notebook["metadata"].pop("papermill", None)
    with atomic_file(folder / record.NOTEBOOK) as final:
        text = json.dumps(notebook, indent=1, ensure_ascii=False)
        final.write_text(text + "\n", encoding="utf-8")


def _clean_cell(cell: dict[str, Any]) -> dict[str, Any]:
    cell["outputs"] = [clean_output(output) for output in cell.get("outputs", [])]
    if cell["cell_type"] != "code":
        del cell["outputs"]
    return cell


def clean_output(output: dict[str, Any]) -> dict[str, Any]:
    """Return an output with keys, home paths and host names taken out of its text."""
    for field in ("text", "evalue", "traceback"):
        if field in output:
            output[field] = redacted(output[field])
    for kind, value in output.get("data", {}).items():
        if not kind.startswith("image/") or kind == "image/svg+xml":
            output["data"][kind] = redacted(value)
    return output
