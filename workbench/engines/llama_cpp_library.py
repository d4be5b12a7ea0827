"""llama_cpp in this process: imported once, silent, its last words kept, freed before the end."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import threading
import weakref
from collections import deque
from typing import Any

_KEPT_LINES = 60
_WARNING, _ERROR, _CONTINUED = 3, 4, 5


class _Log:
    """The last lines that llama.cpp logged, kept instead of printed into the notebook."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=_KEPT_LINES)

    def write(self, level: int, text: bytes, _: Any) -> None:
        """Take one piece of the log, as the C library gives it."""
        line = text.decode("utf-8", "replace").rstrip("\n")
        if level == _CONTINUED and self._lines:
            before, start = self._lines[-1]
            self._lines[-1] = (before, start + line)
        elif line.strip(" ."):
            self._lines.append((level, line))

    def clear(self) -> None:
        """Forget what was logged so far."""
        self._lines.clear()

    def last_words(self) -> str:
        """Return the error lines since ``clear``, else the warnings, else "" (at most three)."""
        for level in (_ERROR, _WARNING):
            found = [line for kind, line in self._lines if kind == level]
            if found:
                return "; ".join(found[-3:])
        return ""


_log = _Log()
clear, last_words = _log.clear, _log.last_words
_library_lock = threading.Lock()
_callback: Any = None
_open: weakref.WeakSet[Any] = weakref.WeakSet()


def library() -> Any:
    """Import llama_cpp; its log goes to our ring, and it leaves the process' outputs alone."""
    global _callback
    import llama_cpp

    with _library_lock:
        if _callback is None:
            _callback = llama_cpp.llama_log_callback(_log.write)
            llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))
            # Its quiet mode sends file descriptors 1 and 2 of the whole process to nowhere while a
            # model loads: other threads lose their output, and an abort its last words.
            for name in ("llama_cpp._internals", "llama_cpp.llama"):
                module: Any = importlib.import_module(name)
                if hasattr(module, "suppress_stdout_stderr"):
                    module.suppress_stdout_stderr = _leave_outputs_alone
            atexit.register(_close_all)
    return llama_cpp


def log_callback() -> Any:
    """Return the native function that keeps what llama.cpp logs."""
    library()
    return _callback


def _leave_outputs_alone(disable: bool = True) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def _close_all() -> None:
    """Free native models before the interpreter tears their library down."""
    for session in list(_open):
        session.close()


def close_at_exit(session: Any) -> None:
    """Close the session when the interpreter ends, if nobody did before."""
    _open.add(session)
