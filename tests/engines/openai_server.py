"""A local HTTP server that says what a script says, byte by byte, and tells what it was asked."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request that came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclasses.dataclass(frozen=True)
class Hold:
    """Keep the answer open until the event is set or the other side hangs up."""

    until: threading.Event = dataclasses.field(default_factory=threading.Event)


class Cut:
    """Hang up here, in the middle of the answer."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer: a status and the parts of its body, each sent by itself."""

    parts: Sequence[bytes | Hold | Cut] = ()
    status: int = 200
    kind: str = "text/event-stream"
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


def json_answer(value: Any, status: int = 200, **headers: str) -> Answer:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer([json.dumps(value).encode()], status, "application/json", named)


def event(value: Any, end: str = "\n\n") -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}{end}".encode()


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def said(*texts: str, finish: str = "stop", usage: tuple[int, int] | None = (3, 2)) -> Answer:
    """Return the streamed reply of a server that behaves."""
    parts = [event(chunk(role="assistant", content=""))]
    parts += [event(chunk(content=text)) for text in texts]
    parts.append(event(chunk(finish)))
    if usage is not None:
        counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
        parts.append(event({"choices": [], "usage": counts}))
    return Answer([*parts, b"data: [DONE]\n\n"])


Script = Answer | list[Answer] | Callable[[Asked], Answer]


class ScriptedServer:
    """Answers each path by its script: one answer, several in order, or a function.

    Attributes:
        asked: The requests that came.
        hung_up: Set when the other side hung up on an answer that was held or underway.
    """

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        self.asked: list[Asked] = []
        self.hung_up = threading.Event()
        self.holding = threading.Event()
        self._scripts: dict[str, Script] = {}
        self._lock = threading.Lock()
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
            self.scheme = "https"
        self.models("small")

    @property
    def port(self) -> int:
        return self._http.server_address[1]

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/v1"

    def on(self, path: str, script: Script) -> None:
        self._scripts[path] = script

    def models(self, *names: str, **row: Any) -> None:
        rows = [{"id": name, "object": "model", **row} for name in names]
        self.on("/v1/models", json_answer({"object": "list", "data": rows}))

    def chat(self, script: Script) -> None:
        self.on("/v1/chat/completions", script)

    def bodies(self, path: str = "/v1/chat/completions") -> list[Any]:
        return [asked.body for asked in self.asked if asked.path == path]

    def answer_to(self, asked: Asked) -> Answer:
        with self._lock:
            self.asked.append(asked)
            script = self._scripts.get(asked.path)
            if isinstance(script, list):
                return script.pop(0) if len(script) > 1 else script[0]
        if script is None:
            return json_answer({"detail": "Not Found"}, 404)
        return script if isinstance(script, Answer) else script(asked)

    @contextlib.contextmanager
    def running(self) -> Iterator[ScriptedServer]:
        thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()


def _handler(server: ScriptedServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._do()

        def do_POST(self) -> None:
            self._do()

        def _do(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers, json.loads(raw) if raw else None)
            answer = server.answer_to(asked)
            try:
                self._send(answer)
            except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
                server.hung_up.set()
                self.close_connection = True

        def _send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.kind)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in answer.parts:
                if isinstance(part, Cut):
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if isinstance(part, Hold):
                    self._hold(part)
                elif part:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                    self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

        def _hold(self, hold: Hold) -> None:
            server.holding.set()
            while not hold.until.wait(0.01):
                readable, _, _ = select.select([self.connection], [], [], 0)
                if readable and not self.connection.recv(1):
                    raise BrokenPipeError

    return Handler
