"""A server as a child process: started, waited for, watched, and ended with its whole tree."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.catalog.capabilities import Cause
from workbench.engines.server_log import ServerLog
from workbench.engines.server_memory import Freed, Held, held_by
from workbench.errors import ChildDiedError, EngineError
from workbench.progress import progress

_LAUNCHER = Path(__file__).with_name("server_launcher.py")
_LOOK_SECONDS = 0.1
_ANSWER_SECONDS = 5.0
_KILL_SECONDS = 12.0  # the launcher's own bound, and a little
_PORT_TAKEN = "address already in use"
_MEMORY_HINT = "The system may have run out of memory; try a smaller form or a shorter context."
_numbers = itertools.count(1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What is started, and how it is asked whether it is ready.

    Attributes:
        engine: Name of the engine.
        label: The model, for sentences.
        words: The command.
        environment: Variables on top of this process's own.
        port: Where it listens on 127.0.0.1.
        key: The key it wants, "" for none.
        ready: Path that answers 200 when the model is loaded.
        causes: What is known of its last words.
        noise: Lines of its log that say nothing.
        patience: Seconds that it may be silent and idle while it loads.
        grace: Seconds it gets to end by itself.
    """

    engine: str
    label: str
    words: Sequence[str]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    port: int
    key: str = dataclasses.field(default="", repr=False)
    ready: str = "/health"
    causes: Sequence[Cause] = ()
    noise: str | None = None
    patience: float = 600.0
    grace: float = 10.0

    @property
    def url(self) -> str:
        """Its address, without a path."""
        return f"http://127.0.0.1:{self.port}"


class PortTakenError(EngineError):
    """Another program took the port between the choice and the server's start."""


class ServerProcess:
    """A running server.

    It ends with this process, however that ends: a launcher between the two reads the end of a
    connection, watches its parent's id, and kills everything that descends from it.

    Attributes:
        command: What was started.
        log: What it prints.
        freed: What ending it gave back, None while it runs.
    """

    def __init__(self, command: Command) -> None:
        self.command = command
        self.freed: Freed | None = None
        self.log = ServerLog.new(command.engine, number=next(_numbers), noise=command.noise)
        self._tree: dict[int, Any] = {}  # every process seen below the launcher
        self._when = ""
        self._control, theirs = socket.socketpair()
        try:
            with theirs, self.log.path.open("ab") as log:
                self.launcher = _start(command, theirs.fileno(), log.fileno())
        except BaseException:  # an interrupt, just after it was started
            self._control.close()
            raise
        self._end = weakref.finalize(
            self, _end, self.launcher, self._control, self._tree, os.getpid()
        )

    @property
    def pid(self) -> int:
        """Process id of the launcher, the root of the server's tree."""
        return self.launcher.pid

    @property
    def alive(self) -> bool:
        """Whether the server runs."""
        return self.launcher.poll() is None

    def answers(self) -> bool:
        """Whether the server says that it is ready."""
        return _answers(self.command)

    def wait_ready(self) -> None:
        """Return when the server answers; show its log meanwhile.

        Raises:
            EngineError: It ended, with its last words and the cause; or it fell silent.
            PortTakenError: Its port was taken.
        """
        with progress(f"Starting {self.command.engine}", unit="seconds") as bar:
            began = stirred = time.monotonic()
            stir = (-1, 0)
            while True:
                if not self.alive:
                    raise self.death("while it loaded")
                if self.answers():
                    self.processes()
                    return
                now = time.monotonic()
                if stir != (self.log.size, int(self._burnt())):
                    stir, stirred = (self.log.size, int(self._burnt())), now
                    bar.update(note=" ".join(self.log.lines(1))[:80])
                if now - stirred > self.command.patience:
                    raise self._silence()
                bar.update(done=round(now - began))
                time.sleep(_LOOK_SECONDS)

    def _silence(self) -> EngineError:
        words = " | ".join(self.log.lines()) or "nothing"
        return EngineError(
            f"The {self.command.engine} server of {self.command.label} neither printed nor "
            f"computed anything for {self.command.patience:g} seconds. Its last words: {words}",
            hint=f"Its log: {self.log.path}",
        )

    def _burnt(self) -> float:
        """Return the CPU seconds that the tree has used."""
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(Exception):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def processes(self) -> list[Any]:
        """Return the processes of the tree, as ``psutil.Process``, those remembered included."""
        import psutil

        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self.launcher.pid)
            for process in (root, *root.children(recursive=True)):
                self._tree.setdefault(process.pid, process)
        return [process for process in self._tree.values() if process.is_running()]

    def held(self) -> Held:
        """Return what the tree holds now."""
        return held_by(self.processes())

    def dies(self, within: float) -> bool:
        """Whether the server ends within so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.launcher.wait(within)
        return not self.alive

    def death(self, when: str) -> EngineError:
        """Return the error that says how the server ended, why, and its last words.

        Args:
            when: ``while it loaded``, or ``while it answered``; what was said first stays.
        """
        self._when = when = self._when or when
        code = self.launcher.wait()
        self._end()  # what it left behind
        said, hint = self.log.cause(self.command.causes)
        if not said and code == -signal.SIGKILL:
            hint = _MEMORY_HINT
        words = " | ".join(self.log.lines())
        parts = [
            f"The {self.command.engine} server of {self.command.label} {_ended(code)} {when}.",
            *([f"Cause: {said}"] if said else []),
            *([f"Its last words: {words}"] if words else []),
        ]
        loading = when == "while it loaded"
        kind: type[EngineError] = EngineError if loading else ChildDiedError
        if loading and _PORT_TAKEN in self.log.text().lower():
            kind = PortTakenError
        return kind(" ".join(parts), hint=f"{hint} Its log: {self.log.path}".strip())

    def stop(self) -> Freed:
        """End the whole tree and return what that gave back; safe to call twice.

        The server is asked, then killed; what is left after that is named.
        """
        if self.freed is not None:
            return self.freed
        known = self.processes()
        before, began = held_by(known), time.monotonic()
        grace = self.command.grace if self.alive else 0.0
        with contextlib.suppress(OSError):
            self._control.sendall(f"{grace:g}\n".encode())
        forced = False
        try:
            code = self.launcher.wait(grace + _KILL_SECONDS)
            forced = code == -signal.SIGKILL
        except subprocess.TimeoutExpired:
            forced = True
        finally:
            self._end()
        after = held_by(known)
        left = tuple(process.pid for process in known if _lives(process))
        self.freed = Freed(
            before=before, after=after, seconds=time.monotonic() - began, forced=forced, left=left
        )
        return self.freed


def _start(command: Command, control: int, log: int) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-I", "-S", str(_LAUNCHER)]
    words += [str(control), str(os.getpid()), "2", *command.words]
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(control,),
        start_new_session=True,  # Ctrl-C in a terminal is for this process alone
        env={**os.environ, **command.environment},
    )


def _end(
    launcher: subprocess.Popen[bytes],
    control: socket.socket,
    tree: Mapping[int, Any],
    owner: int,
) -> None:
    """Hang up, which makes the launcher end the tree; kill what does not listen."""
    if os.getpid() != owner:  # a fork of the owner drops its copy only
        control.close()
        return
    with contextlib.suppress(OSError):
        control.shutdown(socket.SHUT_RDWR)  # also where a fork holds a copy
    control.close()
    try:
        launcher.wait(_KILL_SECONDS + 4)
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.wait()
    for process in tuple(tree.values()):  # a launcher that was killed could not do it
        if _lives(process):
            with contextlib.suppress(Exception):
                process.kill()
    until = time.monotonic() + _ANSWER_SECONDS
    while time.monotonic() < until and any(_lives(process) for process in tuple(tree.values())):
        time.sleep(0.02)


def _lives(process: Any) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _answers(command: Command) -> bool:
    """Whether the server says that it is ready; one that refuses our key is another's."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", command.port, timeout=_ANSWER_SECONDS)
    headers = {"Authorization": f"Bearer {command.key}"} if command.key else {}
    try:
        for path in dict.fromkeys((command.ready, "/v1/models")):
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                return False
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port: int = asked.getsockname()[1]
    return port
