"""Guard a kernel: nothing that it started outlives it, and it does not outlive the run.

Usage: ``python -m workbench.runs.kernel -f CONNECTION_FILE``. The guard leads the process group in
which the kernel and its children live, and ends all of it when the kernel ends, when the guard is
told to, or when the process that executes the run is gone, killed or not.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from workbench.notebook import KERNEL_ID, RUN_FOLDER

_PR_SET_PDEATHSIG = 1  # prctl(2), Linux


def die_with_parent(number: int) -> None:
    """Ask the system to send signal ``number`` to this process when its parent ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def main(arguments: Sequence[str]) -> None:
    """Start the kernel, wait, and take everything along at the end."""
    parent = int(os.environ["JPY_PARENT_PID"])  # whoever starts a kernel says so
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the executing process blocks some
    signal.signal(signal.SIGTERM, lambda *_: _end())
    signal.signal(signal.SIGINT, lambda *_: None)  # meant for the kernel, in the same group
    die_with_parent(signal.SIGTERM)
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    folder = os.environ.get(RUN_FOLDER)
    if folder:
        Path(folder, KERNEL_ID).write_text(str(os.getpid()), encoding="ascii")
    kernel = subprocess.Popen(
        [sys.executable, "-m", "ipykernel_launcher", *arguments],
        env={**os.environ, "JPY_PARENT_PID": str(os.getpid())},
        preexec_fn=lambda: die_with_parent(signal.SIGKILL),
    )
    while os.getppid() == parent:  # where the system sends no signal, a look each second
        with contextlib.suppress(subprocess.TimeoutExpired):
            kernel.wait(timeout=1)
            break
    _end()


def _end() -> NoReturn:
    os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
