"""A program that behaves like a model server, in one of many moods; the standard library alone.

Its mood stands in FAKE: ready, slow, dies, killed, taken, mute, silent. FAKE_FOLDER is where it
leaves the ids of its processes; stubborn and brood in FAKE_ALSO add to a mood.
"""

from __future__ import annotations

import json
import os
import signal
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

MOOD = os.environ.get("FAKE", "ready")
ALSO = os.environ.get("FAKE_ALSO", "").split()
FOLDER = Path(os.environ["FAKE_FOLDER"])
KEY = os.environ.get("VLLM_API_KEY", "")
WORDS = ["one ", "two ", "three"]
DEATH = """\
(EngineCore pid=77) INFO 11-21 12:00:00 [core.py:133] Initializing a V1 LLM engine
(Worker pid=78) ERROR 11-21 12:00:01 [multiproc_executor.py:1063] Traceback (most recent call last):
(Worker pid=78) ERROR 11-21 12:00:01 [multiproc_executor.py:1063] {reason}
(APIServer pid=76) ERROR 11-21 12:00:02 [x.py:1] RuntimeError: Engine core initialization failed. \
See root cause above. Failed core proc(s): {{}}
"""


def value(flag: str) -> str:
    for place, word in enumerate(sys.argv):
        if word == flag:
            return sys.argv[place + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    raise SystemExit(f"{flag} is missing in {sys.argv}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def leave(kind: str) -> None:
    (FOLDER / f"{kind}-{os.getpid()}").touch()


def brood() -> None:
    """Start one process below, and one that cut every tie to here."""
    for cut in (False, True):
        if os.fork() == 0:
            if cut:
                os.setsid()
                if os.fork():
                    os._exit(0)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            leave("brood")
            while True:
                time.sleep(1)


def die() -> None:
    reason = os.environ.get(
        "FAKE_REASON", "torch.OutOfMemoryError: CUDA out of memory. Tried 1 GiB"
    )
    say(DEATH.format(reason=reason))
    os._exit(1)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def refused(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {KEY}" or self.path == "/health":
            return False
        self.answer(401, {"error": "Unauthorized"})
        return True

    def answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.refused():
            return
        name = value("--served-model-name")
        models = {
            "object": "list",
            "data": [{"id": name, "owned_by": "vllm", "max_model_len": 512}],
        }
        known = {"/health": {}, "/v1/models": models, "/version": {"version": "0.32.0"}}
        found = known.get(self.path)
        self.answer(404 if found is None else 200, found if found is not None else {"error": {}})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        if self.refused():
            return
        if self.path != "/v1/chat/completions":
            self.answer(404, {"error": {"message": "no such path", "code": 404}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for place, word in enumerate(WORDS):
            if MOOD == "mute" and place == 2:
                die()
            self.send({"choices": [{"index": 0, "delta": {"content": word}}]})
        self.send({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": len(asked["messages"]), "completion_tokens": 3, "total_tokens": 4}
        self.send({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def send(self, chunk: dict[str, object]) -> None:
        self.wfile.write(b"data: " + json.dumps({"id": "x", **chunk}).encode() + b"\n\n")
        self.wfile.flush()


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = True


def main() -> None:
    leave("server")
    (FOLDER / f"argv-{os.getpid()}").write_text("\n".join(sys.argv))
    if "stubborn" in ALSO:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "brood" in ALSO:
        brood()
    if MOOD == "dies":
        die()
    if MOOD == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if MOOD == "silent":
        time.sleep(600)
    if MOOD == "taken" and len(list(FOLDER.glob("server-*"))) == 1:
        say("OSError: [Errno 98] Address already in use")
        os._exit(1)
    if MOOD == "slow":
        for step in range(100 if "endless" in ALSO else 5):
            say(f"INFO 11-21 12:00:00 [loader.py:1] Loading shard {step}")
            time.sleep(0.1)
    with Server(("127.0.0.1", int(value("--port"))), Handler) as server:
        say("ready")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        while True:
            time.sleep(1)


if __name__ == "__main__":
    main()
