"""Run a step in a child process that reports by events and never outlives its parent."""

from __future__ import annotations

import collections
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from workbench import errors
from workbench.paths import PACKAGE

_MARK = "\x1e"  # record separator, as in RFC 7464: tells events from what libraries print
_KEPT_LINES = 80
_PR_SET_PDEATHSIG = 1
_BOOT = (
    "import sys; sys.path.append(sys.argv[1])\n"
    "from workbench.formats.child import serve; serve(int(sys.argv[2]), sys.argv[3], sys.argv[4:])"
)
Event = Mapping[str, Any]


def run_child(
    module: str,
    arguments: Sequence[str],
    *,
    doing: str,
    on_event: Callable[[Event], None] | None = None,
    failure: type[errors.WorkbenchError] = errors.FormatError,
) -> list[dict[str, Any]]:
    """Run ``module.main(arguments)`` in a child process and return the results that it emits.

    The child ends with this process, also when this process is killed, and when the call is
    interrupted.

    Args:
        module: Dotted name of a module with ``main(arguments)``.
        arguments: Its arguments.
        doing: What is being done, the subject of an error: ``Converting tiny-chat``.
        on_event: Called for each event that is no error and no result.
        failure: The error to raise when the child fails without naming one of ours.

    Raises:
        WorkbenchError: What the child raised, or ``failure`` with the last lines it printed.
    """
    command = [sys.executable, "-P", "-c", _BOOT, str(PACKAGE.parent), str(os.getpid()), module]
    process = subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.PIPE,  # held open by this process: its end tells the child to end
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_environment(),
        process_group=0,
    )
    printed: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
    results: list[dict[str, Any]] = []
    try:
        for event in _events(process, printed):
            if event["event"] == "error":
                raise _named_error(event)
            if event["event"] == "result":
                results.append(dict(event["values"]))
            elif on_event is not None:
                on_event(event)
        code = process.wait()
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
    if code != 0:
        raise _failure_of(code, printed, doing=doing, failure=failure)
    return results


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",  # a local folder is converted: nothing is to be fetched
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # the parent draws one
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
    }


def _events(process: subprocess.Popen[bytes], printed: collections.deque[str]) -> Iterator[Event]:
    assert process.stdout is not None
    for raw in process.stdout:
        line = raw.decode("utf-8", errors="replace").rstrip()
        if line.startswith(_MARK):
            yield json.loads(line[len(_MARK) :])
        elif line:
            printed.append(line)


def _named_error(event: Event) -> errors.WorkbenchError:
    kind = getattr(errors, event["kind"], errors.FormatError)
    error: errors.WorkbenchError = kind(event["message"], hint=event["hint"])
    return error


def _failure_of(
    code: int,
    printed: Sequence[str],
    *,
    doing: str,
    failure: type[errors.WorkbenchError],
) -> errors.WorkbenchError:
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    said = " / ".join(list(printed)[-4:]) or "nothing was printed"
    return failure(f"{doing} failed: its process {how}. Last said: {said}")


def emit(event: str, **values: Any) -> None:
    """Send an event to the parent (child side)."""
    sys.stdout.write(f"\n{_MARK}{json.dumps({'event': event, **values})}\n")
    sys.stdout.flush()


def serve(parent: int, module: str, arguments: Sequence[str]) -> None:
    """Run ``module.main(arguments)`` tied to the life of ``parent``; errors become events."""
    _tether(parent)
    import importlib
    import traceback

    try:
        importlib.import_module(module).main(list(arguments))
    except errors.WorkbenchError as error:
        emit("error", kind=type(error).__name__, message=error.message, hint=error.hint)
        raise SystemExit(1) from None
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _tether(parent: int) -> None:
    """End this process when its parent ends: by the kernel on Linux, by a closed pipe elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)

    def wait_for_the_end() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=wait_for_the_end, name="tether", daemon=True).start()
