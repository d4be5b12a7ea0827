"""A card becomes files, and files become a loaded model, also from a hub."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_hub import FakeHub, gguf

import workbench as wb
from workbench.catalog import Card, fetch, locate
from workbench.catalog.card import GgufSource, ReadyForm, Remote
from workbench.catalog.disk import downloaded
from workbench.catalog.prune import prune
from workbench.catalog.source import find_local, form_of, kind_to_fetch
from workbench.errors import DownloadError, NotFoundError, UnsupportedError
from workbench.formats.gguf import ensure_gguf
from workbench.paths import cache, shipped
from workbench.receipts import receipts

NAME = "owner/tiny"


def published() -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in shipped("data", "tiny-chat").iterdir()
        if path.is_file() and path.name != "evaluation.json"
    }


def card(**more: object) -> Card:
    """Return the embedded model's card as a model of the hub would have it."""
    local = wb.catalog()["tiny-chat"].model_dump(exclude={"path", "id"}, exclude_none=True)
    return Card.of({**local, "id": "tiny-hub", "repository": NAME, **more})


def test_a_plan_downloads_nothing_and_a_load_does(fake_hub: FakeHub) -> None:
    fake_hub.add(NAME, published())
    planned = wb.plan(card(), engine="transformers", dtype="fp32")
    assert planned.files is None
    assert not fake_hub.requests
    with wb.load(card(), engine="transformers", dtype="fp32") as model:
        files = model.plan.files
        assert files is not None
        assert (files.source, files.revision) == ("hub", fake_hub.repositories[NAME].commit)
        said = model.ask("Hello.", temperature=0, max_tokens=8).text
    before = len(fake_hub.requests)
    again = wb.plan(card(), engine="transformers", dtype="fp32")
    assert again.files is not None
    assert again.files.source == "hugging face cache"
    with wb.load("tiny-chat", engine="transformers", dtype="fp32") as local:
        assert local.ask("Hello.", temperature=0, max_tokens=8).text == said
    assert len(fake_hub.requests) == before


def test_a_ready_gguf_is_downloaded_and_loaded_by_llama_cpp(fake_hub: FakeHub, f16: Path) -> None:
    kept = cache("gguf", f16.parent.name)
    kept.mkdir()
    for name in (f16.name, "about.json"):
        shutil.copy(f16.with_name(name), kept)
    file = ensure_gguf(locate(wb.catalog()["tiny-chat"]), "F16")
    assert file == kept / f16.name
    (row,) = [each for each in downloaded() if each.store == "converted"]
    assert (row.path, row.repository, row.form) == (file, "tiny-chat", "gguf F16")
    fake_hub.add("owner/tiny-GGUF", {"tiny-F16.gguf": file.read_bytes()})
    made = card(repository=None, gguf=GgufSource(repository="owner/tiny-GGUF").model_dump())
    with wb.load(made, engine="llama.cpp", quantization="F16", threads=1) as model:
        assert model.plan.files is not None
        assert model.plan.files.repository == "owner/tiny-GGUF"
        assert model.ask("Hello.", temperature=0, max_tokens=4).text
    assert fake_hub.sent("tiny-F16.gguf") == file.stat().st_size
    assert prune(converted=True).execute() == row.bytes
    assert not file.exists()


def test_a_load_that_gets_no_files_leaves_a_receipt(fake_hub: FakeHub) -> None:
    fake_hub.fail(503)
    with pytest.raises(DownloadError):
        wb.load(card(), engine="transformers", dtype="fp32")
    (receipt,) = receipts(what="load", outcome="failed")
    assert "503" in str(receipt.reason)


def test_an_unverified_repository_is_told_and_never_asked(fake_hub: FakeHub) -> None:
    with pytest.raises(NotFoundError, match=r"owner/guess.*nobody has verified"):
        locate(Card(id="x", unverified_repository="owner/guess"))
    assert not fake_hub.requests


def test_a_service_has_no_files(fake_hub: FakeHub) -> None:
    made = Card(id="x", remote=Remote(url="http://127.0.0.1:1", model="m"))
    assert find_local(made) is None
    with pytest.raises(UnsupportedError, match="service"):
        locate(made)
    with pytest.raises(NotFoundError, match="names no local files"):
        locate(Card(id="y"))


def test_forms_of_a_card(fake_hub: FakeHub) -> None:
    fake_hub.add("owner/tiny-awq", published())
    made = Card(
        id="x",
        repository=NAME,
        gguf=GgufSource(repository="owner/g"),
        forms=(ReadyForm(kind="awq", repository="owner/tiny-awq"),),
    )
    assert locate(made, form="awq").repository == "owner/tiny-awq"
    assert [form_of(made, name) for name in (NAME, "owner/g", "owner/tiny-awq", "z")] == [
        "safetensors", "gguf", "awq", None,
    ]  # fmt: skip
    assert kind_to_fetch(made, ("gguf", "safetensors")) == "gguf"
    assert kind_to_fetch(made) == "safetensors"
    with pytest.raises(NotFoundError, match="mlx"):
        locate(made, form="mlx")
    with pytest.raises(UnsupportedError, match="ONNX"):
        locate(made, form="onnx")
    with pytest.raises(NotFoundError, match="not on this machine"):
        locate(made, form="gguf", download=False)


def test_a_repository_that_is_itself_gguf(fake_hub: FakeHub) -> None:
    first = fake_hub.add("owner/g", {"m-Q8_0.gguf": gguf(7), "m-Q4_K_M.gguf": gguf(15)})
    fake_hub.add("owner/g", {"m-Q8_0.gguf": gguf(7, seed=9)})
    made = Card.of(
        {"id": "x", "repository": "owner/g", "revision": first.commit, "stored": {"method": "gguf"}}
    )
    found = fetch(made)
    assert (found.path.name, found.revision) == ("m-Q4_K_M.gguf", first.commit)


def test_a_local_path_goes_before_the_hub(fake_hub: FakeHub, tmp_path: Path) -> None:
    found = locate(card(path="data/tiny-chat"))
    assert (found.source, found.revision) == ("local", None)
    assert not fake_hub.requests
