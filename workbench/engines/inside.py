"""What runs inside a child process: opens an engine or calls a function, and answers the parent."""

from __future__ import annotations

import base64
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
import traceback
from collections.abc import Callable
from typing import Any

from workbench.engines import plain
from workbench.engines.wire import Wire
from workbench.errors import EngineError, InputError, WorkbenchError
from workbench.messages import Piece

_PR_SET_PDEATHSIG = 1
_AT_ONCE = ("tokenize", "detokenize", "render", "prompt_ids")
"""Answered while a stream goes on: they do not touch the model."""


class _Cancelled(BaseException):
    """Raised in the main thread when the parent cancels what it does."""


class Server:
    """Answers the requests of one parent; the main thread works, another one listens.

    The listener ends the process as soon as the parent hangs up, whatever the main thread does.
    """

    def __init__(self, wire: Wire, arrays: int) -> None:
        self._wire = wire
        self._arrays = os.fdopen(arrays, "r+b", buffering=0)
        self._session: Any = None
        self._work: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._cancelled = 0
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
                request = self._wire.receive()
                if request["do"] == "cancel":
                    self._cancelled = max(self._cancelled, int(request["of"]))
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                elif request["do"] in _AT_ONCE:
                    self._answer(request, self._at_once)
                else:
                    self._work.put(request)
        except (EOFError, OSError):  # the parent is gone
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _on_cancel(self, *_: object) -> None:
        if self._current and self._current <= self._cancelled:
            self._current = 0
            raise _Cancelled

    def _do(self, request: dict[str, Any]) -> None:
        if request["do"] in ("stream", "complete"):
            self._stream(request)
            return
        self._current = request["id"]
        try:
            if self._current > self._cancelled:
                self._answer(request, self._result)
        finally:
            self._current = 0

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
            many = [plain.to_messages(turns) for turns in request["conversations"]]
            replies = self._session.ask_many(many, plain.to_sampling(request["sampling"]))
            return {"result": [plain.from_reply(reply) for reply in replies]}
        if operation in ("score", "log_probabilities"):
            return {"array": self._keep(getattr(self._session, operation)(request["ids"]))}
        raise EngineError(f"The child process was asked for {operation!r}, which it does not know.")

    def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        from workbench.engines.memory import Growth
        from workbench.engines.registry import engine

        plan = plain.to_plan(request["plan"])
        growth = Growth(plan.engine, plan.device)
        self._session = engine(plan.engine).open(plan)
        return {
            "powers": sorted(self._session.powers),
            "grown": dataclasses.asdict(getattr(self._session, "grown", None) or growth.end()),
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
        number, send = request["id"], self._wire.send
        if number <= self._cancelled:
            return
        sampling = plain.to_sampling(request["sampling"])
        try:
            if request["do"] == "stream":
                pieces = self._session.stream(plain.to_messages(request["messages"]), sampling)
            else:
                pieces = self._session.complete(request["prompt"], sampling)
            for piece in pieces:
                if number <= self._cancelled:
                    pieces.close()
                    return
                if _is_plain(piece):
                    send({"id": number, "piece": [piece.text, piece.token_id]})
                else:
                    send({"id": number, "full": plain.from_piece(piece)})
        except Exception as error:
            self._fail(number, error)


def _is_plain(piece: Piece) -> bool:
    """Whether a piece is no more than text and token id, as nearly all are."""
    return (
        piece.finish_reason is None
        and piece.logprob is None
        and not piece.thinking
        and piece.tool_call is None
    )


def main() -> None:
    """Serve the parent: arguments are connection, array file, parent's pid, and tether."""
    connection, arrays, parent, tethered = (int(argument) for argument in sys.argv[1:5])
    _tether(parent, bool(tethered))
    for descriptor in (connection, arrays):
        os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which cancels here
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Server(Wire(socket.socket(fileno=connection)), arrays).run()


def _tether(parent: int, tethered: bool) -> None:
    """Die with the parent, also when it is killed: on Linux the kernel sees to it."""
    if sys.platform == "linux" and tethered:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
