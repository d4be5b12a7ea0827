"""Downloads from a hub: only what is needed, once, resumed and verified."""

from __future__ import annotations

import errno
import hashlib
import importlib
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub, gguf
from small_repository import CARD, NAME, SHARD, WANTED, files, weights

from workbench.catalog import Card
from workbench.catalog.card import GgufSource
from workbench.catalog.hub import download
from workbench.catalog.source import fetch, find_local, locate
from workbench.catalog.stores import hub_cache, repository_folder
from workbench.errors import (
    DiskSpaceError,
    DownloadError,
    FormatError,
    InputError,
    NotFoundError,
)
from workbench.paths import shipped


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
