"""Runs: notebooks executed with parameters, each into a folder with its report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.runs.notes import Number, conclude, leave, number
from workbench.runs.record import Run

if TYPE_CHECKING:
    from workbench.runs.chain import Chain
    from workbench.runs.execute import run
    from workbench.runs.shelf import Shelf, runs

__all__ = [
    "Chain",
    "Number",
    "Run",
    "Shelf",
    "conclude",
    "leave",
    "number",
    "report",
    "run",
    "run_all",
    "run_command",
    "runs",
]

_LATE = {
    "Chain": "workbench.runs.chain",
    "run": "workbench.runs.execute",
    "runs": "workbench.runs.shelf",
    "Shelf": "workbench.runs.shelf",
    "run_all": "workbench.runs.chain",
}
"""Name -> module: what a cell does not need is not imported into its kernel."""


def __getattr__(name: str) -> object:
    if name not in _LATE:
        raise AttributeError(f"module 'workbench.runs' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LATE[name]), name)


def report(run: Run | str | Path) -> Path:
    """Render a run's report.html again, whatever its outcome, and return its path.

    A run that says it is running while its process is gone becomes ``lost``.

    Args:
        run: A run, or its folder.

    Raises:
        NotFoundError: The folder holds no run.
        InputError: The run still goes on.
    """
    from workbench.errors import InputError
    from workbench.runs.exporter import write_report
    from workbench.runs.finish import settle

    settled = settle(run.folder if isinstance(run, Run) else Path(run))
    if settled.outcome == "running":
        raise InputError(f"The run {settled.id} still goes on.", hint="Wait for its end.")
    return write_report(settled)


def run_command(
    name: str, texts: Mapping[str, str] | None = None, *, file: Path | None = None
) -> Run | Chain:
    """Execute what the command line names: a run file of several notebooks, or one notebook.

    Args:
        name: Name of a shipped run file or notebook, or a path of either.
        texts: Parameters as written; for a run file as ``step.name``.
        file: YAML file of parameters, for a notebook.

    Raises:
        NotFoundError: There is no such notebook or file.
        InputError: A parameter is wrong; nothing was started.
        RunError: A run failed; its report says where.
    """
    from workbench.errors import InputError
    from workbench.runs.chain import find_run_file, run_all
    from workbench.runs.execute import execute, prepare, require_done

    if find_run_file(name) is None and Path(name).suffix not in (".yaml", ".yml"):
        return require_done(execute(prepare(name, texts=texts, file=file)))
    if file is not None:
        raise InputError(
            f"{name} is a run file: it takes no file of parameters.",
            hint="Write them into the run file, or give -p STEP.NAME VALUE.",
        )
    return run_all(name, texts=texts)
