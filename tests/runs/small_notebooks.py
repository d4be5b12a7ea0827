"""Small notebooks, and a look at the processes that a run started."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = 'word = "cat"  # what to say\ntimes = 2  # how often, 1 or more\n'


def write_notebook(
    path: Path, cells: Sequence[str], *, parameters: str | None = PARAMETERS
) -> Path:
    """Write a notebook: a cell that begins as a heading is Markdown, else code.

    The parameters cell stands behind the title, where there is one.
    """
    made = []
    for source in cells:
        text = re.match(r"#+ ", source)
        made.append((new_markdown_cell if text else new_code_cell)(source))
    if parameters is not None:
        cell = new_code_cell(parameters)
        cell.metadata["tags"] = ["parameters"]
        made.insert(int(bool(made) and made[0].cell_type == "markdown"), cell)
    nbformat.write(new_notebook(cells=made), path)
    return path


def processes_of_runs(home: Path) -> list[str]:
    """Return the commands of all processes that live inside a run below ``home``."""
    found = []
    for process in psutil.process_iter():
        try:
            folder = process.environ().get("WORKBENCH_RUN_FOLDER", "")
            if folder.startswith(str(home)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except psutil.Error:
            continue
    return found


def wait_until(happened: Callable[[], object], *, what: str) -> None:
    """Wait until ``happened`` says so; give up after two minutes, with ``what`` as the reason."""
    deadline = time.monotonic() + 120
    while not happened():
        if time.monotonic() > deadline:
            pytest.fail(f"waited in vain until {what}")
        time.sleep(0.1)
