"""Know what is around this code: a kernel, a live front end, a display, a notebook run."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RUN_FOLDER = "WORKBENCH_RUN_FOLDER"
NOTES, KERNEL_ID = ".notes.jsonl", ".kernel"
_FRONT_END = "WORKBENCH_FRONT_END"
_last_known_live = True


def shell() -> Any | None:
    """Return the running IPython shell, or None; IPython is not imported to find out."""
    if "IPython" not in sys.modules:
        return None
    return importlib.import_module("IPython").get_ipython()


def in_kernel() -> bool:
    """Return True inside a Jupyter kernel, False in a terminal, a script or a child process."""
    running = shell()
    return running is not None and getattr(running, "kernel", None) is not None


def live() -> bool:
    """Return True when somebody watches this kernel (JupyterLab), False in batch (papermill).

    The front end says so with each cell (``allow_stdin`` of the request); the environment variable
    ``WORKBENCH_FRONT_END=live`` or ``batch`` overrides it.
    """
    global _last_known_live
    if not in_kernel():
        return False
    said = os.environ.get(_FRONT_END)
    if said in ("live", "batch"):
        return said == "live"
    running = shell()
    parent = running.kernel.get_parent() if running is not None else None
    content = parent.get("content", {}) if parent else {}
    if "allow_stdin" in content:  # widget messages do not carry it: the last cell's answer holds
        _last_known_live = bool(content["allow_stdin"])
    return _last_known_live


class Display:
    """One output of a cell that can be replaced, also from another thread."""

    def __init__(self) -> None:
        self._handle: Any | None = None

    def show(self, bundle: Mapping[str, str]) -> None:
        """Display the MIME bundle: the first call opens the output, later ones replace it."""
        if not in_kernel():
            return
        if self._handle is None:
            display = importlib.import_module("IPython.display")
            self._handle = display.display(dict(bundle), raw=True, display_id=True)
        else:
            self._handle.update(dict(bundle), raw=True)


def show(value: Any) -> None:
    """Display a value: as a notebook would in a kernel, as text on standard output elsewhere."""
    if in_kernel():
        importlib.import_module("IPython.display").display(value)
        return
    bundle = getattr(value, "_repr_mimebundle_", None)
    text = bundle().get("text/plain") if bundle is not None else None
    sys.stdout.write(f"{value if text is None else text}\n")


def run_folder() -> Path | None:
    """Return the folder of the notebook run this process belongs to, or None outside a run."""
    given = os.environ.get(RUN_FOLDER)
    return Path(given) if given and Path(given).is_dir() else None


def note(kind: str, **values: Any) -> None:
    """Leave one line in the notes of the run around this process; outside a run do nothing.

    Args:
        kind: What the note is about: ``number``, ``output``, ``receipt``, ``conclusion``.
        values: Plain data.
    """
    folder = run_folder()
    if folder is None:
        return
    line = json.dumps({"kind": kind, **values}, ensure_ascii=False) + "\n"
    # One write to a file opened for appending: lines of several processes do not mix.
    handle = os.open(folder / NOTES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def release_references() -> None:
    """Drop the references that IPython keeps to shown values and to the last exception.

    After ``del model`` these alone keep a model's memory alive: the output history (``_``, ``_3``,
    ``Out``), the hidden copies of it, the last result and the last traceback.
    """
    for name in ("last_exc", "last_value", "last_traceback", "last_type"):
        if hasattr(sys, name):
            delattr(sys, name)
    running = shell()
    if running is None:
        return
    with contextlib.suppress(AttributeError):  # internals differ between versions of IPython
        running.displayhook.flush()
    history = [f"_{number}" for number in range(1, getattr(running, "execution_count", 0) + 1)]
    for name in ("_", "__", "___", *history):
        running.user_ns_hidden.pop(name, None)
        if name in history:
            running.user_ns.pop(name, None)
    running.last_execution_result = None
    if getattr(running, "InteractiveTB", None) is not None:
        running.InteractiveTB.tb = None
