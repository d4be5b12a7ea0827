"""Downloads from a hub: once, resumed, verified, and every refusal by its name."""

from __future__ import annotations

import errno
import hashlib
import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_hub import FakeHub, gguf

from workbench.catalog import Card
from workbench.catalog.card import GgufSource
from workbench.catalog.hub import download, listing
from workbench.catalog.source import fetch, find_local, locate
from workbench.catalog.stores import hub_cache, repository_folder
from workbench.errors import (
    DiskSpaceError,
    DownloadError,
    FormatError,
    InputError,
    NotFoundError,
    UnsupportedError,
)
from workbench.paths import shipped

NAME = "owner/small"
CARD = Card(id="small", repository=NAME)


def weights(size: int, *, seed: int = 0) -> bytes:
    """Return a safetensors file with one tensor of ``size`` bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    body = bytes((index * 7 + seed) % 251 for index in range(4096)) * (size // 4096 + 1)
    return len(header).to_bytes(8, "little") + header + body[:size]


def files(**more: bytes) -> dict[str, bytes]:
    """Return a repository that has more than a model needs."""
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    index["weight_map"]["b"] = "model-00002-of-00002.safetensors"
    return {
        "config.json": b"{}",
        "tokenizer.json": b'{"a": 1}',
        "chat_template.jinja": b"hello",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00001-of-00002.safetensors": weights(300_000),
        "model-00002-of-00002.safetensors": weights(200_000, seed=1),
        "consolidated.safetensors": weights(500_000, seed=2),
        "pytorch_model.bin": b"pickle",
        "onnx/model.onnx": b"onnx",
        "original/params.json": b"{}",
        "modeling.py": b"raise SystemExit",
        "README.md": b"# small",
        **more,
    }


WANTED = {
    "config.json",
    "tokenizer.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
}
SHARD = "model-00001-of-00002.safetensors"


def transfer() -> ModuleType:
    return importlib.import_module("workbench.catalog.transfer")


def test_only_what_is_needed_is_downloaded_and_nothing_twice(fake_hub: FakeHub) -> None:
    made = fake_hub.add(NAME, files())
    assert find_local(CARD) is None
    found = locate(CARD)
    assert (found.source, found.revision, found.repository) == ("hub", made.commit, NAME)
    assert {path.name for path in found.path.iterdir()} == WANTED
    assert [path.name for path in found.weights] == [SHARD, SHARD.replace("00001-", "00002-")]
    for name in WANTED:
        assert (found.path / name).read_bytes() == made.files[name]
        assert fake_hub.sent(name) == len(made.files[name])
    before = len(fake_hub.requests)
    again = locate(CARD)
    assert (again.source, again.path) == ("hugging face cache", found.path)
    assert len(fake_hub.requests) == before
    fetch(CARD)
    assert all(fake_hub.sent(name) == len(made.files[name]) for name in WANTED)


def test_other_programs_find_the_download_offline(fake_hub: FakeHub) -> None:
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    found = None
    fake_hub.add(NAME, files())
    found = locate(CARD)
    assert try_to_load_from_cache(NAME, "config.json", hub_cache()) == str(
        found.path / "config.json"
    )
    folder = snapshot_download(
        NAME, cache_dir=hub_cache(), local_files_only=True, allow_patterns=sorted(WANTED)
    )
    assert Path(folder) == found.path


def test_a_new_commit_fetches_only_what_changed(fake_hub: FakeHub) -> None:
    first = fake_hub.add(NAME, files())
    locate(CARD)
    second = fake_hub.add(NAME, files(**{"tokenizer.json": b'{"a": 2}'}))
    found = fetch(CARD)
    assert found.revision == second.commit != first.commit
    assert (found.path / "tokenizer.json").read_bytes() == b'{"a": 2}'
    assert fake_hub.sent(SHARD) == len(second.files[SHARD])
    pinned = locate(CARD.changed(revision=first.commit))
    assert (pinned.source, pinned.revision) == ("hugging face cache", first.commit)


def test_a_pinned_revision_is_taken_and_not_the_newest(fake_hub: FakeHub) -> None:
    first = fake_hub.add(NAME, files())
    fake_hub.add(NAME, files(**{"config.json": b'{"new": 1}'}))
    found = locate(CARD.changed(revision=first.commit))
    assert found.revision == first.commit
    assert (found.path / "config.json").read_bytes() == b"{}"


def test_a_cut_connection_is_taken_up_where_it_broke(fake_hub: FakeHub) -> None:
    made = fake_hub.add(NAME, files())
    fake_hub.cut(after=100_000, times=2, where=SHARD)
    found = locate(CARD)
    assert (found.path / SHARD).read_bytes() == made.files[SHARD]
    asked = [
        each.headers.get("range") for each in fake_hub.downloads(SHARD) if each.server != "hub"
    ]
    assert asked == [None, "bytes=100000-", "bytes=200000-"]
    assert fake_hub.sent(SHARD) == len(made.files[SHARD])


def test_a_connection_that_keeps_breaking_ends_in_one_error_and_keeps_the_part(
    fake_hub: FakeHub,
) -> None:
    made = fake_hub.add(NAME, files())
    fake_hub.cut(after=100_000, where=SHARD)
    fake_hub.cut(after=0, times=50, where=SHARD)
    with pytest.raises(DownloadError, match="run it again"):
        locate(CARD)
    (part,) = repository_folder(NAME).glob("blobs/*.incomplete")
    kept = part.stat().st_size
    assert find_local(CARD) is None
    fake_hub.faults.clear()
    locate(CARD)
    assert fake_hub.sent(SHARD) == len(made.files[SHARD])
    assert kept <= 100_000


def test_a_killed_download_goes_on_where_it_was(fake_hub: FakeHub, tmp_path: Path) -> None:
    made = fake_hub.add(NAME, files(**{SHARD: weights(3_000_000)}))
    fake_hub.pause = 0.01
    code = (
        f"from workbench.catalog import Card, locate\nlocate(Card(id='small', repository={NAME!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "WORKBENCH_QUIET": "1"}
    )
    blobs = repository_folder(NAME) / "blobs"
    while not any(part.stat().st_size > 1_000_000 for part in blobs.glob("*.incomplete")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (part,) = blobs.glob("*.incomplete")
    kept = part.stat().st_size
    assert 0 < kept < len(made.files[SHARD])
    assert find_local(CARD) is None
    fake_hub.pause = 0
    found = locate(CARD)
    assert (found.path / SHARD).read_bytes() == made.files[SHARD]
    last = fake_hub.downloads(SHARD)[-1]
    assert last.headers["range"] == f"bytes={kept}-"
    assert last.sent == len(made.files[SHARD]) - kept
    assert not list(blobs.glob("*.incomplete"))


def test_a_server_without_ranges_is_read_from_the_start(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fake_hub.add(NAME, files())
    digest = hashlib.sha256(made.files[SHARD]).hexdigest()
    part = repository_folder(NAME) / "blobs" / f"{digest}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(made.files[SHARD][:1000])

    def deaf(handler: Any, line: str) -> bool:
        if line.startswith("network"):
            del handler.headers["Range"]
        return False

    fake_hub.faults.append(deaf)
    assert (locate(CARD).path / SHARD).read_bytes() == made.files[SHARD]


def test_a_part_that_is_of_another_file_is_not_built_on(fake_hub: FakeHub) -> None:
    made = fake_hub.add(NAME, files())
    digest = hashlib.sha256(made.files[SHARD]).hexdigest()
    for wrong in (b"x" * 1000, b"x" * len(made.files[SHARD]), b"x" * 1_000_000):
        part = repository_folder(NAME) / "blobs" / f"{digest}.incomplete"
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(wrong)
        assert (fetch(CARD).path / SHARD).read_bytes() == made.files[SHARD]
        (part.parent / digest).unlink()


def test_a_file_with_another_hash_is_removed_and_named(fake_hub: FakeHub) -> None:
    fake_hub.add(NAME, files())
    fake_hub.wrong.add(SHARD)
    with pytest.raises(FormatError, match=SHARD):
        locate(CARD)
    digest = hashlib.sha256(files()[SHARD]).hexdigest()
    assert not list(repository_folder(NAME).glob(f"blobs/{digest}*"))
    assert find_local(CARD) is None
    fake_hub.wrong.clear()
    assert (locate(CARD).path / SHARD).read_bytes() == files()[SHARD]


def test_a_damaged_blob_in_the_cache_is_fetched_anew(fake_hub: FakeHub) -> None:
    made = fake_hub.add(NAME, files())
    found = locate(CARD)
    blob = (found.path / SHARD).resolve()
    blob.write_bytes(made.files[SHARD][:-1])
    assert find_local(CARD) is None
    assert (locate(CARD).path / SHARD).read_bytes() == made.files[SHARD]


def test_space_is_asked_for_before_the_first_byte_and_counts_what_is_here(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from collections import namedtuple

    made = fake_hub.add(NAME, files())
    need = sum(len(made.files[name]) for name in WANTED)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, need - 1))
    with pytest.raises(DiskSpaceError, match=NAME):
        locate(CARD)
    assert not fake_hub.downloads(SHARD)
    digest = hashlib.sha256(made.files[SHARD]).hexdigest()
    part = repository_folder(NAME) / "blobs" / f"{digest}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(made.files[SHARD][:1])
    assert locate(CARD).source == "hub"


def test_a_disk_that_gets_full_is_named(fake_hub: FakeHub) -> None:
    made = fake_hub.add(NAME, files())
    digest = hashlib.sha256(made.files[SHARD]).hexdigest()
    part = repository_folder(NAME) / "blobs" / f"{digest}.incomplete"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with pytest.raises(DiskSpaceError, match="got full"):
        locate(CARD)
    assert find_local(CARD) is None


def test_a_cache_that_cannot_be_written_is_named(fake_hub: FakeHub, stores: Path) -> None:
    fake_hub.add(NAME, files())
    stores.mkdir(exist_ok=True)
    (stores / "huggingface").write_text("a file where a folder should be")
    with pytest.raises(InputError, match="HF_HOME"):
        locate(CARD)


@pytest.mark.parametrize(
    ("status", "headers", "error", "said"),
    [
        (401, {"X-Error-Code": "RepoNotFound"}, NotFoundError, "no repository owner/small"),
        (404, {"X-Error-Code": "RepoNotFound"}, NotFoundError, "no repository owner/small"),
        (404, {"X-Error-Code": "RevisionNotFound"}, NotFoundError, "no revision"),
        (403, {"X-Error-Code": "GatedRepo"}, DownloadError, "licence"),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, DownloadError,
         "does not accept the token"),
        (403, {}, DownloadError, "403"),
        (429, {"Retry-After": "86400"}, DownloadError, "86400 s"),
        (503, {}, DownloadError, "503"),
        (418, {}, DownloadError, "418"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["/api/models", "HEAD"])
def test_refusals_are_told_apart(
    fake_hub: FakeHub, status: int, headers: dict[str, str], error: type, said: str, where: str
) -> None:
    fake_hub.add(NAME, files())
    fake_hub.fail(status, where=where, **headers)
    with pytest.raises(error, match=said) as caught:
        locate(CARD)
    assert "Traceback" not in str(caught.value)


def test_a_missing_revision_and_a_missing_file_are_told_apart(fake_hub: FakeHub) -> None:
    fake_hub.add(NAME, files())
    with pytest.raises(NotFoundError, match="no revision 'v9'"):
        locate(CARD.changed(revision="v9"))
    fake_hub.fail(404, where=f"HEAD /{NAME}/resolve", **{"X-Error-Code": "EntryNotFound"})
    with pytest.raises(NotFoundError, match="no file"):
        locate(CARD)


def test_a_gated_repository_names_its_licence_page(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.add(NAME, files(), gated=True)
    for token in ("", "hf_" + "a" * 30):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(DownloadError) as caught:
            locate(CARD)
        assert f"{fake_hub.url}/{NAME}" in str(caught.value)
        assert "hf_aaa" not in str(caught.value)


def test_a_busy_hub_is_waited_for(fake_hub: FakeHub) -> None:
    fake_hub.add(NAME, files())
    fake_hub.fail(429, times=2, where="/api/models", **{"Retry-After": "0"})
    fake_hub.fail(503, times=2, where="HEAD")
    fake_hub.fail(500, times=2, where=f"network GET /{NAME}")
    assert locate(CARD).source == "hub"


def test_the_wait_that_a_hub_asks_for_is_kept_and_bounded(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(transfer().time, "sleep", slept.append)
    fake_hub.add(NAME, files())
    fake_hub.fail(429, where="/api/models", **{"Retry-After": "50"})
    with pytest.raises(DownloadError, match="429"):
        listing(NAME)
    assert [pause for pause in slept if pause >= 1] == [50.0, 50.0]
    fake_hub.faults.clear()
    slept.clear()
    fake_hub.fail(429, times=1, where="/api/models", RateLimit='"api";r=0;t=55')
    listing(NAME)
    assert 55.0 in slept


def test_the_token_reaches_the_hub_and_no_other(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "hf_" + "s" * 30
    monkeypatch.setenv("HF_TOKEN", secret)
    fake_hub.add(NAME, files())
    fake_hub.cut(after=1000, where=SHARD)
    locate(CARD)
    at_hub = [each for each in fake_hub.requests if each.server == "hub"]
    at_network = [each for each in fake_hub.requests if each.server == "network"]
    assert at_network
    assert {each.token for each in at_hub} == {f"Bearer {secret}"}
    assert {each.token for each in at_network} == {None}
    said = capfd.readouterr()
    assert secret not in said.out + said.err
    assert "signature=secret" not in said.out + said.err


def test_a_stored_login_is_used(fake_hub: FakeHub, stores: Path) -> None:
    stores.mkdir(exist_ok=True)
    (stores / "token").write_text("hf_stored")
    fake_hub.add(NAME, files())
    locate(CARD)
    assert fake_hub.requests[0].token == "Bearer hf_stored"


def test_nothing_is_told_about_the_user(fake_hub: FakeHub) -> None:
    fake_hub.add(NAME, files())
    locate(CARD)
    agents = {each.headers["user-agent"] for each in fake_hub.requests if each.server == "hub"}
    assert all(agent.startswith("llm-workbench/") for agent in agents)
    assert not any("torch/" in agent or "agent/" in agent for agent in agents)
    assert not any("telemetry" in each.path or "harness" in each.path for each in fake_hub.requests)


def test_a_proxy_is_used_and_left_out_where_the_environment_says_so(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import close_session

    fake_hub.add(NAME, files())
    monkeypatch.setenv("HTTP_PROXY", fake_hub.url)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    close_session()
    assert listing(NAME).commit == fake_hub.repositories[NAME].commit
    assert fake_hub.requests[-1].path.startswith("http://hub.invalid/api/models/")
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:9")
    close_session()
    with pytest.raises(DownloadError) as caught:
        listing(NAME)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("HF_ENDPOINT", fake_hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    assert listing(NAME).files["config.json"].size == 2


def test_a_hub_that_is_not_there(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://user:secret@127.0.0.1:9/")
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:9 cannot be reached") as caught:
        locate(CARD)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["WORKBENCH_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_asks_nobody_and_names_what_is_missing(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made = fake_hub.add(NAME, files())
    monkeypatch.setenv(name, "1")
    with pytest.raises(DownloadError, match="owner/small"):
        locate(CARD)
    assert not fake_hub.requests
    monkeypatch.delenv(name)
    locate(CARD)
    monkeypatch.setenv(name, "1")
    assert locate(CARD).revision == made.commit


def test_names_from_the_hub_stay_inside_the_cache(fake_hub: FakeHub, stores: Path) -> None:
    fake_hub.add(NAME, files(**{"../../escape.json": b"{}", "/absolute.json": b"{}"}))
    found = locate(CARD)
    assert {path.name for path in found.path.iterdir()} == WANTED
    assert not list(stores.rglob("escape.json"))

    def forged(handler: Any, line: str) -> bool:
        if "HEAD" not in line or "config.json" not in line:
            return False
        handler._send(200, b"{}", {"ETag": '"../../../x"', "X-Repo-Commit": "c" * 40})
        return True

    other = "owner/forged"
    fake_hub.add(other, files())
    fake_hub.faults.append(forged)
    with pytest.raises(DownloadError, match="ETag"):
        locate(Card(id="forged", repository=other))
    with pytest.raises(InputError, match="not the name of a repository"):
        locate(Card(id="bad", repository="a/../b"))


def test_pickles_are_refused_before_they_are_downloaded(fake_hub: FakeHub) -> None:
    fake_hub.add(NAME, {"config.json": b"{}", "pytorch_model.bin": b"\x80"})
    with pytest.raises(UnsupportedError, match="pickle"):
        locate(CARD)
    assert not fake_hub.downloads("pytorch_model.bin")


def test_a_large_repository_is_listed_page_by_page(fake_hub: FakeHub) -> None:
    many = {f"extra_{number}.json": b"%d" % number for number in range(10)}
    fake_hub.add(NAME, files(**many))
    found = locate(CARD)
    assert {path.name for path in found.path.iterdir()} == WANTED | set(many)


def test_ready_gguf_files(fake_hub: FakeHub) -> None:
    f16 = gguf(1)
    repository = "owner/small-GGUF"
    split = {f"deep/small-Q8_0-{n:05}-of-00002.gguf": f16 for n in (1, 2)}
    fake_hub.add(
        repository,
        {"small-BF16.gguf": f16, "small-f16.gguf": f16, "mmproj-F16.gguf": b"x", **split},
    )
    card = Card(id="small", gguf=GgufSource(repository=repository))
    found = locate(card, quantization="F16")
    assert (found.kind, found.path.name, found.source) == ("gguf", "small-f16.gguf", "hub")
    assert not fake_hub.downloads("small-BF16.gguf")
    both = locate(card, quantization="Q8_0")
    assert [path.name[-8:-5] for path in both.weights] == ["002", "002"]
    assert both.weight_bytes() == 2 * len(f16)
    again = locate(card, quantization="Q8_0")
    assert (again.source, again.weights) == ("hugging face cache", both.weights)
    again.weights[1].resolve().unlink()
    assert find_local(card, quantization="Q8_0") is None
    with pytest.raises(NotFoundError, match=r"Q5_K_M.*It has BF16, F16, Q8_0"):
        locate(card, quantization="Q5_K_M")


def test_two_downloads_at_once_fetch_each_file_once(fake_hub: FakeHub) -> None:
    from concurrent.futures import ThreadPoolExecutor

    made = fake_hub.add(NAME, files())
    fake_hub.pause = 0.005
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: fetch(CARD), range(3)))
    assert len({each.path for each in found}) == 1
    assert fake_hub.sent(SHARD) == len(made.files[SHARD])


def test_progress_counts_the_bytes_that_are_left(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.progress import Bar

    seen: list[tuple[float, float | None]] = []
    update = Bar.update

    def watched(self: Bar, **given: Any) -> None:
        update(self, **given)
        seen.append((self.done, self.total))

    monkeypatch.setattr(Bar, "update", watched)
    made = fake_hub.add(NAME, files())
    download(NAME, lambda names: sorted(WANTED), quiet=True)
    total = round(sum(len(made.files[name]) for name in WANTED) / 1e6, 1)
    assert seen[-1] == (total, total)
    assert all(early <= late for (early, _), (late, _) in itertools.pairwise(seen))


def test_the_embedded_model_goes_through_a_hub(fake_hub: FakeHub) -> None:
    folder = shipped("data", "tiny-chat")
    published = {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.name != "evaluation.json"
    }
    fake_hub.add("owner/tiny", published)
    found = locate(Card(id="tiny", repository="owner/tiny"))
    local = locate(Card(id="local", path=str(folder)))
    assert found.content_hash() == local.content_hash()


def test_what_xet_serves_is_left_to_the_library_and_verified(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = importlib.import_module("huggingface_hub.file_download")
    made = fake_hub.add(NAME, files())
    fake_hub.xet.add(SHARD)
    content = [bytes(len(made.files[SHARD]))]

    def arrive(*, incomplete_path: Path, **_: Any) -> None:  # in place of the native client
        incomplete_path.write_bytes(content[0])

    monkeypatch.setattr(client, "xet_get", arrive)
    with pytest.raises(FormatError, match=SHARD):
        locate(CARD)
    assert find_local(CARD) is None
    content[0] = made.files[SHARD]
    found = locate(CARD)
    assert (found.path / SHARD).read_bytes() == made.files[SHARD]
    assert not fake_hub.downloads(SHARD)
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    (found.path / SHARD).resolve().unlink()
    locate(CARD)
    assert fake_hub.sent(SHARD) == len(made.files[SHARD])


def test_a_cache_that_is_only_read_serves_all_the_same(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.add(NAME, files())
    found = locate(CARD)

    def refused(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    for name in ("mkdir", "write_text", "write_bytes", "unlink", "replace", "touch"):
        monkeypatch.setattr(Path, name, refused)
    assert locate(CARD).path == found.path
    assert fetch(CARD).path == found.path
    fake_hub.add("owner/other", files())
    with pytest.raises(InputError, match=r"cannot be written.*Read-only"):
        locate(Card(id="other", repository="owner/other"))
