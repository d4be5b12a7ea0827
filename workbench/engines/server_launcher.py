"""Runs a server as a leash: when its owner hangs up or dies, the whole tree of processes ends.

Run by path, with the standard library alone: ``launcher.py CONTROL PARENT GRACE WORD...``. It stays
between the owner and the server. On Linux every process that the server leaves behind comes back to
it, so that none is forgotten; elsewhere the server's process group is what it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
import time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LOOK_SECONDS = 0.25
_KILL_SECONDS = 10.0
_NOT_STARTED = 127


def main() -> int:
    """Start the server and watch it and the owner; return the exit code to pass on."""
    control, parent, grace = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    os.set_inheritable(control, False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the owner speaks by the control
        signal.signal(name, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    server = _start(sys.argv[4:])
    code = None
    while code is None and os.getppid() == parent:
        asked = _asked(control)
        if asked is not None:
            grace = asked if asked >= 0 else grace
            break
        code = _reaped(server)
    if code is None:
        code = _ask_to_end(server, grace)
    _kill_rest(server)
    return code if code is not None else -signal.SIGKILL


def _start(words: list[str]) -> int:
    """Fork and run the words in a process group of their own; return the process id."""
    server = os.fork()
    if server:
        with contextlib.suppress(OSError):  # whichever of the two comes first
            os.setpgid(server, server)
        return server
    try:
        os.setpgid(0, 0)
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_DFL)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.execvp(words[0], words)
    except OSError as error:
        os.write(2, f"{words[0]} cannot be started: {error.strerror}.\n".encode())
    finally:
        os._exit(_NOT_STARTED)


def _asked(control: int) -> float | None:
    """Return the seconds of grace the owner gives, -1 when it hung up, None while it is silent."""
    if not select.select([control], [], [], _LOOK_SECONDS)[0]:
        return None
    try:
        return float(os.read(control, 64).split()[0])
    except (OSError, ValueError, IndexError):
        return -1.0


def _reaped(server: int) -> int | None:
    """Collect every process that ended; return the server's code once it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == server:
            found = os.waitstatus_to_exitcode(status)


def _ask_to_end(server: int, grace: float) -> int | None:
    """Ask the server to end, and wait for it as long as the grace lasts."""
    until = time.monotonic() + grace
    if grace > 0:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGTERM)
    while time.monotonic() < until:
        code = _reaped(server)
        if code is not None:
            return code
        time.sleep(0.02)
    return None


def _kill_rest(server: int) -> None:
    """Kill what is left: the server's group, and on Linux all that descends from here."""
    until = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < until:  # one that hangs in the kernel cannot be waited for
        left = _descendants()
        with contextlib.suppress(OSError):
            os.killpg(server, signal.SIGKILL)
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        _reaped(server)
        if not left:
            return
        time.sleep(0.02)


def _descendants() -> list[int]:
    """Return the processes below this one, by Linux's table of them; zombies are not counted."""
    if sys.platform != "linux":
        return []
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, above = file.read().rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    parents[int(name)] = int(above)
    found, edge = [], {os.getpid()}
    while edge:
        edge = {pid for pid, above in parents.items() if above in edge}
        found += sorted(edge)
    return found


if __name__ == "__main__":
    ended = main()
    if ended < 0:  # end as the server did
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-ended, signal.SIG_DFL)
        os.kill(os.getpid(), -ended)
    os._exit(ended & 0xFF)
