"""Know what is around this code: a kernel, a live front end, a display, a notebook run."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import CellType, FrameType, MethodType, TracebackType
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

    def show(self, bundle: Mapping[str, Any]) -> None:
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


def forget(identities: Collection[int]) -> None:
    """Drop what IPython and Python keep by themselves of these objects; no user variable goes.

    These are entries of the output history (``Out``, ``_``, ``_5``, the hidden copies), the result
    of the last cell, and the last traceback with the frames that it holds.

    Args:
        identities: ``id`` of each object, all of them alive.
    """
    last = getattr(sys, "last_value", None) or getattr(sys, "last_exc", None)
    if isinstance(last, BaseException) and error_holds(last, identities):
        for name in ("last_exc", "last_value", "last_traceback", "last_type"):
            if hasattr(sys, name):
                delattr(sys, name)
    running = shell()
    if running is None:
        return
    with contextlib.suppress(AttributeError):  # internals differ between versions of IPython
        _forget_outputs(running, identities)
    with contextlib.suppress(AttributeError):
        result = running.last_execution_result
        errors = (result.error_in_exec, result.error_before_exec) if result is not None else ()
        if result is not None and (
            _within(result.result, identities)
            or any(error_holds(error, identities) for error in errors if error is not None)
        ):
            running.last_execution_result = None
    with contextlib.suppress(AttributeError):
        if _traceback_holds(running.InteractiveTB.tb, identities):
            running.InteractiveTB.tb = None


def _forget_outputs(running: Any, identities: Collection[int]) -> None:
    hook, names, hidden = running.displayhook, running.user_ns, running.user_ns_hidden
    outputs = names.get("_oh", {})
    for number, value in list(outputs.items()):
        if _within(value, identities):
            del outputs[number]
            if names.get(f"_{number}") is value:
                del names[f"_{number}"]
    for name in ("_", "__", "___"):
        value = getattr(hook, name)
        if _within(value, identities):
            setattr(hook, name, "")
            if names.get(name) is value:  # otherwise it is a variable of the user's own
                names[name] = ""
    for name, value in list(hidden.items()):
        if name.startswith("_") and _within(value, identities):
            del hidden[name]


def error_holds(error: BaseException, identities: Collection[int]) -> bool:
    """Return whether frames of an error, or of one that it came from, hold one of the objects."""
    return any(_traceback_holds(each.__traceback__, identities) for each in _chain(error))


def release_frames(error: BaseException, identities: Collection[int]) -> None:
    """Empty those finished frames of an error that hold one of the objects; its lines stay."""
    for each in _chain(error):
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if _frame_holds(frame, identities):
                with contextlib.suppress(RuntimeError):  # it still runs
                    frame.clear()


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it came from, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__]


def _traceback_holds(trace: TracebackType | None, identities: Collection[int]) -> bool:
    return any(_frame_holds(frame, identities) for frame, _ in traceback.walk_tb(trace))


def _frame_holds(frame: FrameType, identities: Collection[int]) -> bool:
    # Asking a frame for f_locals would make it keep a copy; its referents are the same objects.
    outside = (id(frame.f_globals), id(frame.f_builtins))
    return any(
        _within(each, identities) for each in gc.get_referents(frame) if id(each) not in outside
    )


def _within(value: Any, identities: Collection[int]) -> bool:
    """Return whether a value is one of the objects, or a plain container of one."""
    if id(value) in identities:
        return True
    if isinstance(value, dict):
        return any(id(each) in identities for each in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return any(id(each) in identities for each in value)
    if isinstance(value, CellType | MethodType):
        return any(id(each) in identities for each in gc.get_referents(value))
    return False
