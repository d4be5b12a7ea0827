"""What lies on the disk is listed, and only what is ours is removed."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_hub import gguf
from test_stores import COMMIT, ollama, snapshot, tiny
from typer.testing import CliRunner

import workbench as wb
from workbench.catalog import Card, find_local
from workbench.catalog.card import GgufSource
from workbench.catalog.disk import downloaded
from workbench.catalog.prune import prune
from workbench.catalog.stores import hub_cache
from workbench.cli import app
from workbench.errors import InputError, NotFoundError
from workbench.paths import cache

CARDS = [
    Card(id="tiny", repository="owner/tiny", gguf=GgufSource(repository="owner/tiny-GGUF")),
    Card(id="own", path="data/tiny-chat"),
]


@pytest.fixture
def full(stores: Path) -> Path:
    """Fill every store: whole and partial snapshots, a part, a converted file, other programs."""
    snapshot("owner/tiny", tiny())
    snapshot("owner/partial", {"config.json": b"{}"}, commit="a" * 40)
    snapshot("owner/tiny-GGUF", {"tiny-Q8_0.gguf": gguf(7)}, commit="b" * 40)
    part = hub_cache() / "models--owner--partial" / "blobs" / f"{'e' * 64}.incomplete"
    part.write_bytes(bytes(1000))
    converted = cache("gguf", "abc", "F16.gguf")
    converted.write_bytes(gguf(1))
    (converted.parent / "about.json").write_text('{"source": "tiny-chat"}')
    ollama(stores, "owner/tiny-GGUF", "Q4_K_M", gguf(15))
    studio = stores / "lm-studio" / "owner" / "tiny-GGUF" / "tiny-F16.gguf"
    studio.parent.mkdir(parents=True)
    studio.write_bytes(gguf(1))
    return stores


def test_every_store_is_listed(full: Path) -> None:
    found = {(each.store, each.repository): each for each in downloaded(CARDS)}
    assert {key: (each.card, each.form, each.whole) for key, each in found.items()} == {
        ("hugging face cache", "owner/tiny"): ("tiny", "safetensors", True),
        ("hugging face cache", "owner/partial"): (None, "safetensors", False),
        ("hugging face cache", "owner/tiny-GGUF"): ("tiny", "gguf Q8_0", True),
        ("converted", "tiny-chat"): (None, "gguf F16", True),
        ("ollama", "hf.co/owner/tiny-GGUF:Q4_K_M"): ("tiny", "gguf Q4_K_M", True),
        ("lm studio", "owner/tiny-GGUF"): ("tiny", "gguf F16", True),
        ("local", "tiny-chat"): ("own", "safetensors", True),
    }
    tiny_row = found["hugging face cache", "owner/tiny"]
    assert tiny_row.revision == COMMIT
    assert tiny_row.bytes == sum(map(len, tiny().values()))
    text = str(wb.catalog().downloaded())
    assert "owner/partial" in text
    assert "partial" in text


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_model_is_pruned_and_the_other_stores_stay(full: Path) -> None:
    others = {name for name in everything(full) if name.startswith(("ollama", "lm-studio", "own"))}
    chosen = prune(CARDS, model="tiny")
    assert {each.repository for each in chosen.items} == {"owner/tiny", "owner/tiny-GGUF"}
    assert chosen.bytes == sum(map(len, tiny().values())) + len(gguf(7))
    assert find_local(CARDS[0]) is not None  # nothing has been removed yet
    assert chosen.execute() == chosen.bytes
    left = everything(full)
    assert others <= left
    assert not any("models--owner--tiny" in name and ".locks" not in name for name in left)
    assert any("models--owner--partial" in name for name in left)
    with pytest.raises(NotFoundError, match="tiny"):
        prune(CARDS, model="tiny")


def test_partial_downloads_are_pruned(full: Path) -> None:
    chosen = prune(CARDS, partial=True)
    assert [each.repository for each in chosen.items] == ["owner/partial"]
    assert [path.stat().st_size for path in chosen.parts] == [1000]
    assert chosen.bytes == 1000 + len(b"{}")
    chosen.execute()
    assert not list(hub_cache().glob("models--owner--partial/blobs/*"))
    assert find_local(CARDS[0]) is not None


def test_a_download_that_goes_on_is_left_alone(full: Path) -> None:
    part = hub_cache() / "models--owner--partial" / "blobs" / f"{'e' * 64}.incomplete"
    lock = hub_cache() / ".locks" / "models--owner--partial" / f"{'e' * 64}.lock"
    lock.parent.mkdir(parents=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    chosen = prune(CARDS, partial=True)
    assert not chosen.items
    assert chosen.execute() == 0
    assert part.exists()
    os.close(handle)
    assert prune(CARDS, partial=True).execute() == 1002
    assert not part.exists()


def test_converted_files_are_pruned(full: Path) -> None:
    chosen = prune(CARDS, converted=True)
    assert [each.store for each in chosen.items] == ["converted"]
    assert not chosen.parts
    assert chosen.execute() == len(gguf(1))
    assert not cache("gguf", "abc").exists()
    assert find_local(CARDS[0]) is not None


def test_only_what_was_not_used_for_long(full: Path) -> None:
    assert not prune(CARDS, older_than=1).items
    old = time.time() - 10 * 86_400
    for path in hub_cache().glob("models--owner--tiny/blobs/*"):
        os.utime(path, (old, old))
    assert [each.repository for each in prune(CARDS, older_than=9).items] == ["owner/tiny"]
    assert not prune(CARDS, older_than=11).items
    assert not prune(CARDS, older_than=9, converted=True).items


def test_a_commit_that_shares_files_frees_only_its_own(full: Path) -> None:
    weights = {"model.safetensors": tiny()["model.safetensors"], "extra.json": b"{ }"}
    snapshot("owner/tiny", weights, commit="f" * 40, main=False)
    chosen = prune(CARDS, model="tiny", partial=True)
    assert [each.revision for each in chosen.items] == ["f" * 40]
    assert chosen.execute() == chosen.bytes == len(b"{ }")
    found = find_local(CARDS[0])
    assert found is not None
    assert found.revision == COMMIT


def test_something_must_be_named() -> None:
    with pytest.raises(InputError, match="--partial"):
        prune()
    with pytest.raises(InputError, match="0 days or more"):
        prune(older_than=-1)


def test_the_commands(full: Path) -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["models", "downloaded"])
    assert listed.exit_code == 0
    assert "owner/tiny" in listed.output
    kept = runner.invoke(app, ["models", "prune", "owner/tiny"], input="n\n")
    assert "GB would be freed" in kept.output
    assert find_local(CARDS[0], form="safetensors") is not None
    removed = runner.invoke(app, ["models", "prune", "owner/tiny", "--yes"])
    assert (removed.exit_code, "freed" in removed.output) == (0, True)
    assert find_local(CARDS[0], form="safetensors") is None


def test_listing_loads_no_heavy_library(full: Path) -> None:
    code = (
        "import sys\nfrom workbench.cli import main\nmain(['models', 'downloaded'])\n"
        "names = {'torch', 'transformers', 'huggingface_hub', 'pandas', 'plotly'}\n"
        "heavy = names & {*sys.modules}\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
