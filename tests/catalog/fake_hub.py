"""A model hub on this machine: the API, redirects to a content network, and faults on demand.

It answers as huggingface_hub calls: model info with and without file metadata, the paginated tree,
HEAD and GET of ``/<repository>/resolve/<revision>/<file>`` with the hub's headers. LFS files are
redirected to a second port, as the real hub sends them to another host.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 3
CHUNK = 16 * 1024


@dataclasses.dataclass
class Request:
    """One request as it came in."""

    server: str
    method: str
    path: str
    headers: dict[str, str]
    sent: int = 0

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization")


@dataclasses.dataclass
class Repository:
    """Files by name at one commit, the commits before it, and who may have them."""

    name: str
    files: dict[str, bytes]
    lfs: set[str]
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)

    @property
    def commit(self) -> str:
        text = "".join(
            f"{n}:{hashlib.sha256(b).hexdigest()}" for n, b in sorted(self.files.items())
        )
        return hashlib.sha1(f"{self.name}:{text}".encode()).hexdigest()


Fault = Callable[["Handler", str], bool]
"""Answers a request in its own way and returns True, or returns False to let it pass."""


class FakeHub:
    """Two servers: the hub and its content network."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.wrong: set[str] = set()
        self.xet: set[str] = set()
        self.pause = 0.0
        self.lock = threading.Lock()
        self.hub = self._serve("hub")
        self.network = self._serve("network")

    def _serve(self, name: str) -> ThreadingHTTPServer:
        handler = type("Bound", (Handler,), {"fake": self, "server_name": name})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # a client that was killed is no failure of ours
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.hub.server_port}"

    @property
    def network_url(self) -> str:
        return f"http://127.0.0.1:{self.network.server_port}"

    def close(self) -> None:
        for server in (self.hub, self.network):
            server.shutdown()
            server.server_close()

    def add(
        self, name: str, files: Mapping[str, bytes], *, lfs: set[str] | None = None, gated=False
    ) -> Repository:
        """Publish a repository, or its next commit; weights are LFS files unless said otherwise."""
        kept = {file for file in files if file.endswith((".safetensors", ".gguf", ".bin", ".onnx"))}
        old = self.repositories.get(name)
        made = Repository(
            name=name, files=dict(files), lfs=kept if lfs is None else lfs, gated=gated
        )
        made.commits = {**(old.commits if old else {}), made.commit: made.files}
        self.repositories[name] = made
        return made

    def fail(self, status: int, *, times: int = 1_000, where: str = "", **headers: str) -> None:
        """Answer the next requests, whose line contains ``where``, with an error."""
        left = [times]

        def fault(handler: Handler, line: str) -> bool:
            if where not in line or left[0] <= 0:
                return False
            left[0] -= 1
            handler.refuse(status, **headers)
            return True

        self.faults.append(fault)

    def cut(self, *, after: int, times: int = 1, where: str = "GET") -> None:
        """Close the connection of the next downloads after so many bytes of the body."""
        left = [times]

        def fault(handler: Handler, line: str) -> bool:
            if not line.startswith("network ") or where not in line or left[0] <= 0:
                return False
            left[0] -= 1
            handler.most = after
            return False

        self.faults.append(fault)

    def downloads(self, file: str) -> list[Request]:
        """Return the requests for the content of a file."""
        return [
            each
            for each in self.requests
            if each.method == "GET" and unquote(each.path).partition("?")[0].endswith(f"/{file}")
        ]

    def sent(self, file: str) -> int:
        """Return the bytes of a file's content that were sent in all."""
        return sum(each.sent for each in self.downloads(file))


class Handler(BaseHTTPRequestHandler):
    """Answers like huggingface.co, or like the content network behind it."""

    fake: FakeHub
    server_name: str
    protocol_version = "HTTP/1.1"
    most: int | None = None

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.most = None
        self.line = f"{self.server_name} {self.command} {unquote(self.path)}"
        self.seen = Request(
            server=self.server_name,
            method=self.command,
            path=self.path,
            headers={name.lower(): value for name, value in self.headers.items()},
        )
        with self.fake.lock:
            self.fake.requests.append(self.seen)
            faults = list(self.fake.faults)
        answered = [fault(self, self.line) for fault in faults]  # each may count what it sees
        if any(answered):
            return
        # A proxy gets the whole address instead of a path.
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        if self.server_name == "network":
            self._content(path)
        elif path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/"), query)
        elif "/resolve/" in path:
            self._resolve(path.lstrip("/"))
        else:
            self.refuse(404)

    def _find(self, name: str, revision: str) -> tuple[Repository, str, dict[str, bytes]] | None:
        found = self.fake.repositories.get(name)
        if found is None:
            signed = "authorization" in self.seen.headers
            self.refuse(404 if signed else 401, **{"X-Error-Code": "RepoNotFound"})
            return None
        commit = found.commit if revision == "main" else revision
        if commit not in found.commits:
            self.refuse(404, **{"X-Error-Code": "RevisionNotFound"})
            return None
        return found, commit, found.commits[commit]

    def _api(self, path: str, query: dict[str, list[str]]) -> None:
        name, _, rest = path.partition("/revision/")
        if "/tree/" in name:
            name, _, revision = name.partition("/tree/")
            self._tree(name, revision, int(query.get("cursor", ["0"])[0]))
            return
        found = self._find(name, rest or "main")
        if found is None:
            return
        repository, commit, files = found
        siblings = []
        for file, content in sorted(files.items()):
            entry = {"rfilename": file}
            if "blobs" in query:
                entry |= self._entry(repository, file, content, size="size", oid="blobId")
            siblings.append(entry)
        gated = "manual" if repository.gated else False
        self._json({"id": name, "sha": commit, "gated": gated, "siblings": siblings})

    def _tree(self, name: str, revision: str, start: int) -> None:
        found = self._find(name, revision)
        if found is None:
            return
        repository, _, files = found
        names = sorted(files)
        page = [
            {"type": "file", "path": file, **self._entry(repository, file, files[file])}
            for file in names[start : start + PAGE]
        ]
        headers = {}
        if start + PAGE < len(names):
            after = f"{self.fake.url}/api/models/{name}/tree/{revision}?cursor={start + PAGE}"
            headers["Link"] = f'<{after}>; rel="next"'
        self._json(page, **headers)

    def _entry(
        self, repository: Repository, file: str, content: bytes, size="size", oid="oid"
    ) -> dict[str, object]:
        entry: dict[str, object] = {size: len(content), oid: git_hash(content)}
        if file in repository.lfs:
            digest = hashlib.sha256(content).hexdigest()
            key = "oid" if oid == "oid" else "sha256"
            entry["lfs"] = {key: digest, "size": len(content), "pointerSize": 134}
        return entry

    def _resolve(self, path: str) -> None:
        name, _, rest = path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        found = self._find(name, revision)
        if found is None:
            return
        repository, commit, files = found
        if repository.gated:
            status = 403 if "authorization" in self.seen.headers else 401
            self.refuse(status, **{"X-Error-Code": "GatedRepo"})
            return
        if file not in files:
            self.refuse(404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        content = files[file]
        headers = {"X-Repo-Commit": commit}
        if file in repository.lfs:
            headers |= {
                "X-Linked-Size": str(len(content)),
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
                "Location": f"{self.fake.network_url}/{name}/{commit}/{file}?signature=secret",
            }
            if file in self.fake.xet:
                headers |= {"X-Xet-Hash": "f" * 64, "X-Xet-Refresh-Route": f"{self.fake.url}/xet"}
            self._send(302, b"", headers)
        else:
            self._send(200, content, {**headers, "ETag": f'"{git_hash(content)}"'})

    def _content(self, path: str) -> None:
        for name, repository in self.fake.repositories.items():
            commit, _, file = path.lstrip("/").removeprefix(f"{name}/").partition("/")
            if path.startswith(f"/{name}/") and file in repository.commits.get(commit, {}):
                content = repository.commits[commit][file]
                if file in self.fake.wrong:
                    content = bytes(len(content))
                self._send(200, content, {"Accept-Ranges": "bytes"})
                return
        self.refuse(404)

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        if asked and status == 200:
            status = 206
            headers = {
                **headers,
                "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}",
            }
            content = content[start:]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        for at in range(0, len(content), CHUNK):
            piece = content[at : at + CHUNK]
            if self.most is not None and at + len(piece) > self.most:
                self.wfile.write(piece[: max(0, self.most - at)])
                self.seen.sent += max(0, self.most - at)
                self.close_connection = True
                return
            time.sleep(self.fake.pause)
            try:
                self.wfile.write(piece)
            except OSError:  # whoever asked has gone
                self.close_connection = True
                return
            self.seen.sent += len(piece)

    def _json(self, value: object, **headers: str) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    def refuse(self, status: int, **headers: str) -> None:
        """Answer with an error in the hub's own form."""
        self._send(status, json.dumps({"error": f"refused with {status}"}).encode(), headers)


def git_hash(content: bytes) -> str:
    """Return the id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def gguf(file_type: int, *, seed: int = 0) -> bytes:
    """Return a small whole GGUF file: a header that states its quantization, and one tensor."""
    key = b"general.file_type"
    name = b"w"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    head += struct.pack("<Q", len(key)) + key + struct.pack("<II", 4, file_type)
    head += struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 64, 0, 0)
    return head + bytes(-len(head) % 32) + bytes([seed]) * 256
