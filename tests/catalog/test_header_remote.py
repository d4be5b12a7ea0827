"""A header read from a hub by ranges: no weights are fetched, and no server makes us fetch them."""

from __future__ import annotations

import importlib
import json
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from header_files import safetensors_bytes, safetensors_header, save_gguf, save_shards

from workbench.catalog import remote_header
from workbench.catalog.header import read_header
from workbench.catalog.remote_header import MOST_GGUF, RemoteModel, read_remote_header
from workbench.errors import DownloadError, FormatError, InputError, NotFoundError

COMMIT = "c" * 40
KEY = "hf_thisIsASecretKey"


class SmallHub(ThreadingHTTPServer):
    """Speaks a listing, resolve with a redirect to another path, and ranges in several moods."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.mood = "ranges"
        self.sent = 0
        self.requests: list[tuple[str, str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: SmallHub

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.requests.append(
            (path, self.headers.get("Range", ""), self.headers.get("Authorization"))
        )
        if path.startswith("/api/models/"):
            return self.listing(path)
        if "/resolve/" in path:
            name = path.partition("/resolve/")[2].partition("/")[2]
            if name not in hub.files:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            if hub.mood == "gated":
                return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
            return self.answer(302, b"", {"Location": f"/cdn/{name}"})
        return self.file(hub.files[path.removeprefix("/cdn/")])

    def listing(self, path: str) -> None:
        if "nobody" in path or self.server.mood == "private":
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        siblings = [{"rfilename": name} for name in self.server.files]
        body = {"id": "some/model", "sha": COMMIT, "siblings": siblings}
        return self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def file(self, data: bytes) -> None:
        mood = self.server.mood
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        begin, end = int(first), min(int(last) + 1, len(data))
        if mood in ("ignores ranges", "no length"):
            return self.endless(data, length=mood == "ignores ranges")
        if mood == "compressed":
            return self.answer(206, data[begin:end], {"Content-Encoding": "gzip"})
        if begin >= len(data):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        shift = 1 if mood == "shifted" else 0
        total = "*" if mood == "no size" else str(len(data) + (begin if mood == "grows" else 0))
        where = f"bytes {begin + shift}-{end - 1}/{total}"
        if mood == "breaks off":
            end -= (end - begin) // 2
        return self.answer(206, data[begin:end], {"Content-Range": where})

    def endless(self, data: bytes, *, length: bool) -> None:
        """Send the whole file, then ten gigabytes of zeros, unless the reader goes away."""
        self.send_response(200)
        if length:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data)
            self.server.sent += len(data)
            while not length and self.server.sent < 10**10:
                self.server.sent += self.wfile.write(bytes(1 << 20))
        except OSError:
            pass

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            return
        self.server.sent += len(body)


@pytest.fixture
def hub(online: None) -> Iterator[SmallHub]:
    server = SmallHub()
    yield server
    server.shutdown()
    server.server_close()


def upload(hub: SmallHub, folder: Path) -> None:
    hub.files |= {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def big_file(weights: int = 30_000_000) -> bytes:
    return safetensors_bytes(safetensors_header({"a": ("U8", (weights,)), "b": ("F32", (2, 3))}))


def test_one_file_is_read_without_its_weights(hub: SmallHub) -> None:
    hub.files["model.safetensors"] = big_file()
    hub.files["config.json"] = json.dumps({"model_type": "llama", "vocab_size": 9}).encode()
    header = read_remote_header("some/model", endpoint=hub.url)
    assert [(tensor.name, tensor.bytes) for tensor in header.tensors] == [
        ("a", 30_000_000), ("b", 24),
    ]  # fmt: skip
    assert header.architecture().vocab_size == 9
    assert (header.name, header.revision, header.folder) == ("some/model", COMMIT, None)
    assert hub.sent < 200_000
    asked = [path for path, _, _ in hub.requests if "/resolve/" in path]
    assert asked
    assert all(f"/some/model/resolve/{COMMIT}/" in path for path in asked)


def test_a_long_header_is_fetched_in_growing_ranges(hub: SmallHub) -> None:
    tensors = {f"layer.{number}.weight": ("U8", (1,)) for number in range(10_000)}
    hub.files["model.safetensors"] = safetensors_bytes(safetensors_header(tensors))
    header = read_header(RemoteModel(repository="some/model", endpoint=hub.url))
    assert len(header.tensors) == 10_000
    ranges = [span for path, span, _ in hub.requests if path.startswith("/cdn/")]
    assert 2 <= len(ranges) <= 5
    assert hub.sent < 2 * len(hub.files["model.safetensors"])


def test_shards_of_a_hub_are_those_of_the_folder(hub: SmallHub, tmp_path: Path) -> None:
    shards: Any = [{f"t{n}": ("BF16", (n + 1, 3)), f"u{n}": ("F32", (2,))} for n in range(40)]
    folder = save_shards(tmp_path / "model", shards)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    upload(hub, folder)
    remote, here = read_remote_header("some/model", endpoint=hub.url), read_header(folder)
    assert (remote.tensors, remote.files, remote.config) == (here.tensors, here.files, here.config)
    del hub.files["model-00007-of-00040.safetensors"]
    with pytest.raises(FormatError, match=r"lacks 'model-00007-of-00040\.safetensors'"):
        read_remote_header("some/model", endpoint=hub.url)


def test_gguf_of_a_hub_whole_and_split(hub: SmallHub, tmp_path: Path) -> None:
    words = [f"token {number}" for number in range(60_000)]
    arrays = {f"blk.{number}.x": np.zeros((64, 64), np.float32) for number in range(5)}
    (tmp_path / "one").mkdir()
    path = save_gguf(
        tmp_path / "one" / "m-Q8_0.gguf", arrays | {"w": np.zeros(4_000_000, np.float32)},
        {"block_count": 5, "tokenizer.ggml.tokens": words},
    )  # fmt: skip
    upload(hub, path.parent)
    header = read_remote_header("some/model", endpoint=hub.url)
    assert header.tensors == read_header(path).tensors
    assert header.architecture() == read_header(path).architecture()
    assert hub.sent < 5_000_000 < path.stat().st_size
    (tmp_path / "two").mkdir()
    save_gguf(tmp_path / "two" / "s.gguf", arrays, {"block_count": 5}, splits=2)
    upload(hub, tmp_path / "two")
    with pytest.raises(InputError, match=r"2 models.*'m-Q8_0\.gguf', 's-00001-of-00003\.gguf'"):
        read_remote_header("some/model", endpoint=hub.url)
    split = read_remote_header("some/model", file="s-00002-of-00003.gguf", endpoint=hub.url)
    assert split.tensors == read_header(tmp_path / "two").tensors
    del hub.files["s-00003-of-00003.gguf"]
    with pytest.raises(FormatError, match="lacks s-00003-of-00003"):
        read_remote_header("some/model", file="s-00002-of-00003.gguf", endpoint=hub.url)


@pytest.mark.parametrize("mood", ["ignores ranges", "no length", "no size"])
def test_a_server_without_ranges_is_left_after_the_header(hub: SmallHub, mood: str) -> None:
    hub.files["model.safetensors"] = big_file()
    hub.mood = mood
    header = read_remote_header("some/model", endpoint=hub.url)
    assert [tensor.name for tensor in header.tensors] == ["a", "b"]
    assert hub.sent < 30_000_000


def test_an_endless_gguf_header_ends_at_the_bound(
    hub: SmallHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MOST_GGUF == 64 << 20
    monkeypatch.setattr(remote_header, "MOST_GGUF", 3 << 20)
    key = struct.pack("<Q", 1) + b"k"
    array = struct.pack("<IIQ", 9, 8, 2**24)  # an array of as many strings, all empty
    hub.files["m.gguf"] = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + array
    hub.mood = "no length"
    with pytest.raises(FormatError, match="more than 3145728 bytes"):
        read_remote_header("some/model", endpoint=hub.url)
    assert hub.sent < 200 << 20


@pytest.mark.parametrize(
    ("mood", "error", "words"),
    [
        ("compressed", FormatError, "compressed"),
        ("shifted", FormatError, "other bytes"),
        ("grows", FormatError, "changed while"),
        ("breaks off", DownloadError, "broke off"),
        ("gated", DownloadError, "licence"),
        ("private", NotFoundError, "has no repository"),
    ],
)
def test_a_server_that_misbehaves_is_named(
    hub: SmallHub, mood: str, error: type[Exception], words: str
) -> None:
    tensors = {f"layer.{number}.weight": ("U8", (1,)) for number in range(10_000)}
    hub.files["model.safetensors"] = safetensors_bytes(safetensors_header(tensors))
    hub.mood = mood
    with pytest.raises(error, match=words) as caught:
        read_remote_header("some/model", endpoint=hub.url, token=KEY)
    assert KEY not in str(caught.value)


def test_a_file_cut_off_on_the_hub_is_refused(hub: SmallHub) -> None:
    data = big_file(1000)
    for cut in (0, 7, 30, len(data) - 1):
        hub.files["model.safetensors"] = data[:cut]
        with pytest.raises(FormatError, match=r"model\.safetensors"):
            read_remote_header("some/model", endpoint=hub.url)


def test_what_is_not_there_is_named(hub: SmallHub) -> None:
    hub.files = {"README.md": b"nothing", "pytorch_model.bin": b"no"}
    with pytest.raises(NotFoundError, match="holds no safetensors"):
        read_remote_header("some/model", endpoint=hub.url)
    with pytest.raises(NotFoundError, match=r"no file 'b\.gguf'"):
        read_remote_header("some/model", file="b.gguf", endpoint=hub.url)
    with pytest.raises(InputError, match="no weight file"):
        read_remote_header("some/model", file="README.md", endpoint=hub.url)
    with pytest.raises(NotFoundError, match="nobody/model"):
        read_remote_header("nobody/model", endpoint=hub.url)
    with pytest.raises(InputError, match="not the name of a repository"):
        read_remote_header("some/model/too/long", endpoint=hub.url)


def test_the_key_goes_to_the_hub_and_is_never_shown(hub: SmallHub) -> None:
    hub.files["model.safetensors"] = big_file(10)
    model = RemoteModel(repository="some/model", endpoint=hub.url, token=KEY)
    assert KEY not in repr(model)
    assert KEY not in repr(read_header(model))
    assert all(key == f"Bearer {KEY}" for path, _, key in hub.requests if "/resolve/" in path)


def test_offline_asks_nobody(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="offline"):
        read_remote_header("some/model", endpoint=hub.url)
    assert hub.requests == []


def test_a_hub_that_is_away_is_named(online: None) -> None:
    importlib.import_module("huggingface_hub").close_session()
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9"):
        read_remote_header("some/model", endpoint="http://127.0.0.1:9")
