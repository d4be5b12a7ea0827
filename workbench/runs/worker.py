"""Execute one run in a process of its own: ``python -m workbench.runs.worker FOLDER``.

The request, one line of JSON, comes by standard input, which then stays open: its end means that
whoever asked is gone, and the run stops.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.machine.meter import Meter
from workbench.machine.probes import TREE
from workbench.notebook import KERNEL_ID
from workbench.paths import atomic_file
from workbench.runs import finish, record
from workbench.runs.grammar import grammar_when_asked_for
from workbench.runs.kernel import die_with_parent

_SAMPLING = 0.25  # seconds between readings of the memory of the process tree
_GRACE = 5.0  # seconds between asking the kernel to stop and ending it
_STOPS = {signal.SIGINT, signal.SIGTERM}


class Execution:
    """One notebook on its way through a kernel, which can be told to stop from any thread."""

    def __init__(self, folder: Path, request: Mapping[str, Any]) -> None:
        self.folder, self.request = folder, request
        self.stopped: tuple[str, str] | None = None
        self._begun = 0
        self._lock = threading.Lock()
        self._over = threading.Event()

    def stop(self, outcome: str, message: str) -> None:
        """Stop the kernel: first as Ctrl-C would, then for good. Only the first call counts."""
        with self._lock:
            if self.stopped is not None or self._over.is_set():
                return
            self.stopped = (outcome, message)
        threading.Thread(target=self._end_kernel, daemon=True).start()

    def _end_kernel(self) -> None:
        asked = time.monotonic()
        interrupted = False
        while not self._over.wait(0.2):
            late = time.monotonic() - asked > _GRACE
            if interrupted and not late:
                continue  # one SIGINT: a second would hit the cell while it tidies up
            with contextlib.suppress(OSError, ValueError):  # no kernel yet, or none any more
                pid = int((self.folder / KERNEL_ID).read_text(encoding="ascii"))
                os.killpg(pid, signal.SIGKILL if late else signal.SIGINT)
                interrupted = True

    def watch(self) -> None:
        """Start the threads that wait for signals, the end of the input and the timeout."""
        for target in (self._wait_for_signal, self._wait_for_end_of_input, self._beat):
            threading.Thread(target=target, daemon=True).start()
        seconds = self.request["timeout"]
        if seconds is not None:
            message = f"The run took longer than its {seconds:g} s."
            timer = threading.Timer(seconds, self.stop, ("failed", message))
            timer.daemon = True
            timer.start()

    def _wait_for_signal(self) -> None:
        number = signal.sigwait(_STOPS)
        self.stop("interrupted", f"Stopped by {signal.Signals(number).name}.")

    def _wait_for_end_of_input(self) -> None:
        while os.read(0, 4096):  # not sys.stdin: its lock would outlive this thread
            pass
        self.stop("interrupted", "The process that started the run is gone.")

    def _beat(self) -> None:
        while not self._over.is_set():
            (self.folder / record.ALIVE).touch()
            self._over.wait(record.HEARTBEAT)

    def begin_cell(self, cell: Mapping[str, Any], cell_index: int) -> None:
        """Note the code cell that begins, for whoever watches and for a run that gets lost."""
        injected = "injected-parameters" in cell["metadata"].get("tags", [])
        if cell["cell_type"] != "code" or injected:
            return
        self._begun += 1
        with atomic_file(self.folder / record.CELL) as partial:
            partial.write_text(f"{self._begun} {cell_index}", encoding="ascii")

    def execute(self) -> dict[str, Any]:
        """Run the notebook and return outcome and error."""
        error: dict[str, Any] | None = None
        try:
            self._papermill()
        except Exception as problem:
            error = finish.described(problem)
            if not error["traceback"]:
                traceback.print_exception(problem)  # to the log: this is no cell's error
        finally:
            self._over.set()
        if self.stopped is not None:
            outcome, message = self.stopped
            name = "Timeout" if outcome == "failed" else "Interrupted"
            return {
                "outcome": outcome,
                "error": {**(error or {}), "name": name, "message": message},
            }
        if error is None:
            return {"outcome": "done", "error": None}
        interrupted = error["name"] in ("KeyboardInterrupt", "Interrupted")
        return {"outcome": "interrupted" if interrupted else "failed", "error": error}

    def _papermill(self) -> None:
        with grammar_when_asked_for():
            import papermill

        papermill.execute_notebook(
            self.request["source"],
            str(self.folder / record.PARTIAL),
            parameters=self.request["parameters"],
            kernel_name="python3",
            language="python",
            progress_bar=False,
            start_timeout=300,
            kernel_manager_class=_kernel_manager(),
            store_widget_state=False,
            coalesce_streams=True,
            on_cell_start=self.begin_cell,
        )


def _kernel_manager() -> Any:
    """Return a manager whose kernel is this interpreter, guarded, with encrypted messages."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    guarded = [sys.executable, "-m", "workbench.runs.kernel", "-f", "{connection_file}"]
    spec = KernelSpec(**{**get_kernel_dict(), "argv": guarded})

    class GuardedKernel(AsyncKernelManager):  # type: ignore[misc]
        @property
        def kernel_spec(self) -> Any:
            return spec

        def _transport_encryption_default(self) -> str:
            return "auto"  # where this ipykernel can; and no warning about plain text

    return GuardedKernel


def _peak(meter: Meter) -> dict[str, Any]:
    """Return the most memory that kernel and children held together, and how it was read."""
    tree = next(phase for phase in meter.phases if phase.place == TREE)
    return {"peak_bytes": tree.peak_bytes, "source": tree.source}


def main(arguments: list[str]) -> int:
    """Execute the run in the given folder; the exit code is 0 when it came to its end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # a thread waits for them
    die_with_parent(signal.SIGTERM)
    folder = Path(arguments[0])
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1 << 20)
        if not part:
            return 1  # whoever asked is gone before the request was complete
        line += part
    execution = Execution(folder, json.loads(line))
    execution.watch()
    with Meter(interval=_SAMPLING, children=True) as meter, meter.phase("run"):
        result = execution.execute()
    run = finish.finish(folder, **result, memory=_peak(meter))
    return 0 if run.outcome == "done" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
