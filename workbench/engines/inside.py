"""What runs inside a child process: opens an engine or calls a function, and answers the parent."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import dataclasses
import importlib
import inspect
import os
import queue
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.engines import plain
from workbench.engines.base import Interrupted, Power
from workbench.engines.wire import Wire
from workbench.errors import EngineError, InputError, WorkbenchError
from workbench.messages import Piece

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 5.0
_STREAMS = ("stream", "complete")
_ARRAYS = ("score", "log_probabilities", "embed", "rerank")
_AT_ONCE = ("tokenize", "detokenize", "render", "prompt_ids")
"""Answered while a stream goes on: they do not touch the model."""


class _Cancelled(KeyboardInterrupt):
    """Raised in the main thread when the parent cancels or interrupts what it does."""


class Server:
    """Answers the requests of one parent; the main thread works, another one listens.

    The listener ends the process as soon as the parent hangs up, whatever the main thread does.
    Where the session answers several requests at once, each stream has a thread of its own.
    """

    def __init__(self, wire: Wire, arrays: int, parent: int) -> None:
        self._wire = wire
        self._arrays = os.fdopen(arrays, "r+b", buffering=0)
        self._parent = parent
        self._session: Any = None
        self._work: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._wanted: set[int] = set()
        self._stopped: set[int] = set()
        self._interrupted: set[int] = set()
        self._asking = False
        self._streams: dict[int, Any] = {}
        self._current = 0

    def run(self) -> None:
        """Serve until the parent hangs up."""
        signal.signal(signal.SIGUSR1, self._on_cancel)
        threading.Thread(target=self._listen, name="listener", daemon=True).start()
        while True:
            request = self._work.get()
            try:
                self._do(request)
            except _Cancelled:  # it came after the work was done
                continue

    def _listen(self) -> None:
        try:
            while True:
                try:
                    request = self._wire.receive(_LOOK_SECONDS)
                except TimeoutError:  # a fork of the parent may hold the connection open
                    if os.getppid() != self._parent:
                        os._exit(0)
                    continue
                self._sort(request)
        except (EOFError, OSError):  # the parent is gone
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _sort(self, request: dict[str, Any]) -> None:
        """Hand a request to the thread that does it."""
        operation = request["do"]
        if operation == "cancel":
            self._cancel(int(request["of"]))
            return
        if operation in ("stop", "interrupt"):
            self._stopped.add(int(request["of"]))
            if operation == "interrupt":
                self._interrupted.add(int(request["of"]))
                self._wake()
            return
        self._wanted.add(request["id"])
        if operation in _AT_ONCE:
            self._answer(request, self._at_once)
            self._wanted.discard(request["id"])
        elif operation in _STREAMS and Power.CONCURRENT in getattr(self._session, "powers", ()):
            threading.Thread(target=self._stream, args=(request,), daemon=True).start()
        else:
            self._work.put(request)

    def _cancel(self, number: int) -> None:
        self._wanted.discard(number)
        stream = self._streams.get(number)
        if stream is not None:
            with contextlib.suppress(ValueError):  # it runs, and sees by itself
                stream.close()
        self._wake()

    def _wake(self) -> None:
        """Have the main thread look whether its work is still wanted."""
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def _on_cancel(self, *_: object) -> None:
        current = self._current
        if current and current not in self._wanted:
            self._current = 0
            raise _Cancelled
        if current in self._interrupted and self._asking:
            self._interrupted.discard(current)
            raise _Cancelled

    def _do(self, request: dict[str, Any]) -> None:
        if request["do"] in _STREAMS:
            self._stream(request)
            return
        self._current = number = request["id"]
        try:
            if number in self._wanted:
                self._answer(request, self._result)
        finally:
            self._current = 0
            self._wanted.discard(number)
            self._stopped.discard(number)
            self._interrupted.discard(number)

    def _answer(
        self, request: dict[str, Any], work: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        number = request["id"]
        try:
            answer = work(request)
            self._send({"id": number, **answer})
        except Exception as error:
            self._fail(number, error)

    def _fail(self, number: int, error: Exception) -> None:
        if not isinstance(error, WorkbenchError):  # the log's last lines are for what is unexpected
            traceback.print_exc()
        self._send({"id": number, "error": plain.from_error(error)})

    def _send(self, frame: dict[str, Any]) -> None:
        """Send a frame whole: a cancellation of the main thread's work waits until it is out."""
        if threading.current_thread() is not threading.main_thread():
            self._wire.send(frame)
            return
        current, self._current = self._current, 0
        self._wire.send(frame)
        self._current = current
        self._on_cancel()

    # What can be asked for

    def _at_once(self, request: dict[str, Any]) -> dict[str, Any]:
        operation = request["do"]
        if operation == "tokenize":
            return {"result": self._session.tokenize(request["text"])}
        if operation == "detokenize":
            data = self._session.detokenize(request["ids"])
            return {"result": base64.b64encode(data).decode("ascii")}
        messages = plain.to_messages(request["messages"])
        if operation == "prompt_ids":
            return {"result": self._session.prompt_ids(messages)}
        prompted = request["add_generation_prompt"]
        return {"result": self._session.render(messages, add_generation_prompt=prompted)}

    def _result(self, request: dict[str, Any]) -> dict[str, Any]:
        operation = request["do"]
        if operation == "open":
            return {"result": self._open(request)}
        if operation == "call":
            return {"result": self._call(request)}
        if operation == "ask_many":
            return {"result": self._ask_many(request)}
        if operation in _ARRAYS:
            found = getattr(self._session, operation)(*request["arguments"])
            return {"array": self._keep(found)}
        if operation == "use_adapter":
            folder = request["folder"]
            self._session.use_adapter(None if folder is None else Path(folder))
            return self._state()
        if operation in ("sleep", "wake"):
            getattr(self._session, operation)()
            return self._state()
        raise EngineError(f"The child process was asked for {operation!r}, which it does not know.")

    def _ask_many(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        number, stopped = request["id"], self._stopped
        many = [plain.to_messages(turns) for turns in request["conversations"]]
        sampling = plain.to_sampling(request["sampling"])
        try:
            self._asking = True
            replies = self._session.ask_many(many, sampling, lambda: number in stopped)
        except Interrupted as cut:
            replies = cut.replies
        finally:
            self._asking = False
        return [plain.from_reply(reply) for reply in replies]

    def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        from workbench.engines.memory import Growth
        from workbench.engines.registry import engine

        plan = plain.to_plan(request["plan"])
        growth = Growth(plan.engine, plan.device, quantization=plan.quantization)
        self._session = engine(plan.engine).open(plan)
        grown = getattr(self._session, "grown", None) or growth.end()
        return {**self._state()["result"], "grown": dataclasses.asdict(grown)}

    def _state(self) -> dict[str, Any]:
        """Return what the parent knows of the session: an adapter may change its powers."""
        session = self._session
        return {
            "result": {
                "powers": sorted(session.powers),
                "context": getattr(session, "context", None),
                "template": str(getattr(session, "template", None) or ""),
            }
        }

    def _call(self, request: dict[str, Any]) -> Any:
        module, _, name = request["function"].partition(":")
        function = getattr(importlib.import_module(module), name, None)
        if not callable(function):
            raise InputError(f"{request['function']!r} is not a function.")
        arguments = dict(request["arguments"])
        if "progress" in inspect.signature(function).parameters and "progress" not in arguments:
            number = request["id"]
            arguments["progress"] = lambda value: self._send({"id": number, "progress": value})
        return function(**arguments)

    def _keep(self, array: Any) -> dict[str, Any]:
        """Write an array to the shared file, for the parent to read before it asks again."""
        import numpy as np

        whole = np.ascontiguousarray(array)
        self._arrays.seek(0)
        self._arrays.truncate(0)
        view = whole.reshape(-1).view(np.uint8).data
        while view:
            view = view[self._arrays.write(view) :]
        return {"shape": list(whole.shape), "dtype": str(whole.dtype)}

    def _stream(self, request: dict[str, Any]) -> None:
        number, send, wanted = request["id"], self._wire.send, self._wanted
        try:
            if number not in wanted:
                return
            pieces = self._streams[number] = self._pieces(request)
            for piece in pieces:
                if number not in wanted:
                    return
                if _is_plain(piece):
                    send({"id": number, "piece": [piece.text, piece.token_id]})
                else:
                    send({"id": number, "full": plain.from_piece(piece)})
        except Exception as error:
            if number in wanted:
                self._fail(number, error)
        finally:
            wanted.discard(number)
            pieces = self._streams.pop(number, None)
            if pieces is not None:
                _close(pieces)

    def _pieces(self, request: dict[str, Any]) -> Any:
        sampling = plain.to_sampling(request["sampling"])
        if request["do"] == "stream":
            return self._session.stream(plain.to_messages(request["messages"]), sampling)
        return self._session.complete(request["prompt"], sampling)


def _close(pieces: Any) -> None:
    """Close a stream; where the listener is about it already, wait until it is done."""
    while True:
        try:
            pieces.close()
        except ValueError:  # generator already executing
            time.sleep(0.001)
        else:
            return


def _is_plain(piece: Piece) -> bool:
    """Whether a piece is no more than text and token id, as nearly all are."""
    return (
        piece.finish_reason is None
        and piece.logprob is None
        and not piece.thinking
        and piece.tool_call is None
    )


def main() -> None:
    """Serve the parent: arguments are connection, array file, parent's pid, tether, limit."""
    connection, arrays, parent, tethered, limit = (int(argument) for argument in sys.argv[1:6])
    _tether(parent, bool(tethered))
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    for descriptor in (connection, arrays):
        os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which cancels here
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Server(Wire(socket.socket(fileno=connection)), arrays, parent).run()


def _tether(parent: int, tethered: bool) -> None:
    """Die with the parent, also when it is killed: on Linux the kernel sees to it."""
    if sys.platform == "linux" and tethered:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
