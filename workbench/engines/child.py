"""A process of its own for an engine or for one function: started, asked, watched, ended."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from workbench.engines import death, plain
from workbench.engines.wire import Wire
from workbench.errors import ChildDiedError, EngineError, InputError
from workbench.paths import PACKAGE

_MAIN = """import sys
sys.path.append(sys.argv.pop())
from workbench.engines.inside import main
main()"""
_LOG_TAIL = 16_000
_PYTHON_STACKS, _CURRENT, _FRAMES = "Fatal Python error:", "Current thread", 3
_LOG_LINES = 6
_LOOK_SECONDS = 1.0
_STOP_SECONDS = 0.02
_END_SECONDS = 5.0
_LAST_SECONDS = 10.0


class Child:
    """A child process and the requests that are open in it.

    It ends with its parent, however that ends: it reads the end of the connection, and on Linux
    the kernel kills it as well. What it prints is kept in a file without a name, whose last lines
    go into the error if it dies. A second such file carries large arrays back.

    Args:
        memory_limit: Most bytes of data that it may hold (``RLIMIT_DATA``: heap and private
            mappings, not mapped weights), or None. Beyond it an allocation fails there.
        changes: What would need less memory, in sentences; told when it dies of that.
    """

    def __init__(self, *, memory_limit: int | None = None, changes: Sequence[str] = ()) -> None:
        self._changes = tuple(changes)
        self._watch = death.Watch()
        self._died: tuple[str, str] | None = None
        ours, theirs = socket.socketpair()
        self._wire = Wire(ours)
        self._log: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self._arrays: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        with theirs:
            self.process = _start(
                theirs.fileno(), self._arrays.fileno(), self._log, memory_limit or 0
            )
        self._numbers = itertools.count(1)
        self._boxes: dict[int, deque[dict[str, Any]]] = {}
        self._boxes_changed = threading.Condition()
        self._reading = False
        self._end = weakref.finalize(self, _end, self.process, self._wire, os.getpid())

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self.process.pid

    def start(self, operation: str, **arguments: Any) -> int:
        """Send a request and return its number.

        Raises:
            InputError: An argument is not plain data.
            ChildDiedError: The child is gone.
        """
        number = next(self._numbers)
        self._boxes[number] = deque()
        try:
            self._wire.send({"id": number, "do": operation, **arguments})
        except OSError:
            self.forget(number)
            raise self._death() from None
        except InputError:
            self.forget(number)
            raise
        except BaseException:  # interrupted: it may have been sent
            self.cancel(number)
            raise
        return number

    def answer(
        self, number: int, *, until: float | None = None, stopped: Callable[[], bool] | None = None
    ) -> dict[str, Any]:
        """Return the next frame that answers a request, whoever of several threads reads it.

        Args:
            number: The request.
            until: ``time.monotonic()`` at which to give up, or None.
            stopped: Asked all the while; when it says so, the child is told to come to an end.

        Raises:
            WorkbenchError: The error that the child sent.
            ChildDiedError: The child is gone.
            TimeoutError: No answer came in time.
        """
        look = _LOOK_SECONDS if stopped is None else _STOP_SECONDS
        while True:
            frame = self._read(number, look)
            if frame is None and stopped is not None and stopped():
                stopped, look = None, _LOOK_SECONDS
                self._tell("stop", number)
            if frame is None:
                if until is not None and time.monotonic() > until:
                    raise TimeoutError
                continue
            if "error" in frame:
                raise plain.to_error(frame["error"], changes=self._changes)
            return frame

    def _read(self, number: int, seconds: float) -> dict[str, Any] | None:
        """Take a frame from the box of a request, or read one; None after so long a silence."""
        with self._boxes_changed:
            if self._boxes[number]:
                return self._boxes[number].popleft()
            if self._reading:  # another thread reads, and sorts what it reads into the boxes
                self._boxes_changed.wait(seconds)
                return None
            self._reading = True
        frame: dict[str, Any] | None = None
        try:
            frame = self._wire.receive(seconds)
        except TimeoutError:
            if self.process.poll() is not None:
                raise self._death() from None
        except (EOFError, OSError):
            raise self._death() from None
        finally:
            with self._boxes_changed:
                self._reading = False
                if frame is not None and frame["id"] != number and frame["id"] in self._boxes:
                    self._boxes[frame["id"]].append(frame)
                self._boxes_changed.notify_all()
        return frame if frame is not None and frame["id"] == number else None

    def cancel(self, number: int) -> None:
        """Ask the child to stop a request; its further frames are dropped."""
        self.forget(number)
        self._tell("cancel", number)

    def _tell(self, what: str, number: int) -> None:
        with contextlib.suppress(OSError):
            self._wire.send({"id": 0, "do": what, "of": number})

    def forget(self, number: int) -> None:
        """Drop a request's frames from now on."""
        with self._boxes_changed:
            self._boxes.pop(number, None)

    def request(
        self,
        operation: str,
        *,
        timeout: float | None = None,
        progress: Callable[[Any], None] | None = None,
        stopped: Callable[[], bool] | None = None,
        interrupt: Callable[[], None] | None = None,
        **arguments: Any,
    ) -> Any:
        """Send a request and return its result; when this is interrupted, it is cancelled there.

        ``stopped`` is asked all the while: when it says so, the child comes to an end and answers.
        With ``interrupt``, a Ctrl-C is raised in the child instead, which answers with what it has
        within some seconds; ``interrupt`` is told of it, and may raise to end the wait.

        Raises:
            WorkbenchError: The error that the child sent.
            ChildDiedError: The child is gone.
            EngineError: No answer came within ``timeout`` seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        number = self.start(operation, **arguments)
        try:
            while True:
                try:
                    frame = self.answer(number, until=until, stopped=stopped)
                except KeyboardInterrupt:
                    if interrupt is None:
                        raise
                    interrupt()
                    self._tell("interrupt", number)
                    until = time.monotonic() + _LAST_SECONDS
                    continue
                if "progress" not in frame:
                    break
                if progress is not None:
                    progress(frame["progress"])
                if until is not None and time.monotonic() > until:
                    raise TimeoutError
        except TimeoutError:
            self.cancel(number)
            if timeout is None:  # it was interrupted, and is in the middle of a long step
                raise KeyboardInterrupt from None
            raise EngineError(
                f"The child process did not finish within {timeout:g} seconds.",
                hint="Give it more time, or less to do.",
            ) from None
        except BaseException:
            self.cancel(number)
            raise
        self.forget(number)
        return self._array(frame["array"]) if "array" in frame else frame["result"]

    def _array(self, description: Mapping[str, Any]) -> Any:
        import numpy as np

        array = np.empty(description["shape"], description["dtype"])
        view, done = array.reshape(-1).view(np.uint8).data, 0
        self._arrays.seek(0)
        while done < len(view):
            done += self._arrays.readinto(view[done:])  # type: ignore[attr-defined]
        self._arrays.truncate(0)
        return array

    def _death(self) -> ChildDiedError:
        """Return the error that says how the child ended, with its last words."""
        if self._died is None:
            try:
                code = self.process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                code = self.process.wait()
            said = self.last_lines()
            how, memory = death.cause_of(
                code, killed_for_memory=self._watch.killed_for_memory(), last_words=said
            )
            words = f" Its last words: {said}" if said else ""
            hint = death.advice(self._changes) if memory else "Load the model again."
            self._died = f"The child process {self.pid} {how}.{words}", hint
        message, hint = self._died
        return ChildDiedError(message, hint=hint)

    def last_lines(self) -> str:
        """Return the last lines that the child printed, joined by `` | ``."""
        if self._log.closed:
            return ""
        size = os.fstat(self._log.fileno()).st_size
        tail = os.pread(self._log.fileno(), _LOG_TAIL, max(0, size - _LOG_TAIL))
        text = tail.decode("utf-8", "replace")
        before, found, stacks = text.partition(_PYTHON_STACKS)  # a native abort says why first
        lines = [line.strip() for line in before.splitlines() if line.strip()][-_LOG_LINES:]
        if not lines and found:
            lines = [found + stacks.partition("\n")[0], *_frames(stacks)]
        return " | ".join(lines)

    def close(self) -> None:
        """End the child; safe to call twice."""
        self._end()
        self._log.close()
        self._arrays.close()


def _frames(stacks: str) -> list[str]:
    """Return the innermost frames of the thread that ended a process, by its fault handler."""
    own = stacks.partition(_CURRENT)[2].splitlines()[1:]
    return [line.strip() for line in own[:_FRAMES] if line.strip().startswith("File ")]


def _start(
    connection: int, arrays: int, log: IO[bytes], memory_limit: int
) -> subprocess.Popen[bytes]:
    # The kernel would kill the child when the *thread* that started it ends, so only the main
    # thread may ask for that.
    tethered = threading.current_thread() is threading.main_thread()
    command = [sys.executable, "-P", "-X", "faulthandler", "-c", _MAIN]
    command += [str(connection), str(arrays), str(os.getpid()), "1" if tethered else "0"]
    command.append(str(memory_limit))
    return subprocess.Popen(
        [*command, str(PACKAGE.parent)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(connection, arrays),
        env={
            **os.environ,
            "GGML_NO_BACKTRACE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "WORKBENCH_QUIET": "1",  # bars are drawn by the parent
        },
    )


def _end(process: subprocess.Popen[bytes], wire: Wire, owner: int) -> None:
    """Hang up, which ends the child at once; kill it when it does not listen."""
    wire.close()
    if os.getpid() != owner:  # a fork of the parent drops its copy only
        return
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def call(
    function: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    timeout: float | None = None,
    progress: Callable[[Any], None] | None = None,
) -> Any:
    """Run a named function in a child process of its own and return its result.

    Args:
        function: ``package.module:function``. A parameter named ``progress`` of it receives a
            function that takes plain data and hands it to ``progress`` here.
        arguments: Keyword arguments, plain data.
        timeout: Most seconds, or None.
        progress: Takes what the function reports.

    Returns:
        The function's result, plain data.

    Raises:
        WorkbenchError: What the function raised; an error that is not ours as EngineError.
        ChildDiedError: The child ended before it answered; the message says how.
        EngineError: It did not finish in time, and was ended.
    """
    child = Child()
    try:
        return child.request(
            "call",
            function=function,
            arguments=dict(arguments or {}),
            timeout=timeout,
            progress=progress,
        )
    finally:
        child.close()
