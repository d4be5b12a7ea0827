"""What other programs have on this disk is found, and only when it is whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from fake_hub import gguf

from workbench.catalog import Card, find_local
from workbench.catalog.card import GgufSource
from workbench.catalog.stores import hub_cache, stored_quantization
from workbench.errors import InputError, NotFoundError, UnsupportedError
from workbench.paths import shipped

TINY = "owner/tiny"
GGUF = GgufSource(repository="owner/tiny-GGUF")
CARD = Card(id="tiny", repository=TINY, gguf=GGUF)
COMMIT = "c" * 40


def snapshot(
    repository: str, files: dict[str, bytes], *, commit: str = COMMIT, main: bool = True
) -> Path:
    """Put files into the Hugging Face cache as its library lays them out."""
    base = hub_cache() / f"models--{repository.replace('/', '--')}"
    folder = base / "snapshots" / commit
    for name, content in files.items():
        blob = base / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    if main:
        (base / "refs").mkdir(exist_ok=True)
        (base / "refs" / "main").write_text(commit)
    return folder


def tiny() -> dict[str, bytes]:
    folder = shipped("data", "tiny-chat")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def ollama(stores: Path, name: str, tag: str, content: bytes, *, host: str = "hf.co") -> Path:
    """Put a model into Ollama's store and return its blob."""
    digest = hashlib.sha256(content).hexdigest()
    blob = stores / "ollama" / "blobs" / f"sha256-{digest}"
    manifest = stores / "ollama" / "manifests" / host / name / tag
    for path in (blob, manifest):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    layer = {"digest": f"sha256:{digest}", "size": len(content)}
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:0", "size": 1},
        {"mediaType": "application/vnd.ollama.image.model", **layer},
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return blob


def test_a_snapshot_of_the_cache_is_found_with_its_commit() -> None:
    folder = snapshot(TINY, tiny())
    found = find_local(CARD)
    assert found is not None
    assert (found.path, found.source, found.revision) == (folder, "hugging face cache", COMMIT)
    assert found.label == TINY
    assert find_local(Card(id="other", repository="owner/other")) is None


@pytest.mark.parametrize("gone", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_snapshot_that_lacks_something_is_not_whole(gone: str) -> None:
    folder = snapshot(TINY, tiny())
    (folder / gone).resolve().unlink()  # the link dangles
    assert find_local(CARD) is None


def test_a_snapshot_without_all_shards_is_not_whole() -> None:
    weights = tiny().pop("model.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-1.safetensors": weights,
    }
    snapshot(TINY, files)
    assert find_local(CARD) is None
    snapshot("owner/numbers", {**files, "model-00001-of-00002.safetensors": weights})
    assert find_local(Card(id="numbers", repository="owner/numbers")) is None
    snapshot("owner/both", {**files, "model-2.safetensors": weights})
    found = find_local(Card(id="both", repository="owner/both"))
    assert found is not None
    assert len(found.weights) == 2


def test_a_listing_in_the_cache_says_what_belongs_to_a_snapshot() -> None:
    folder = snapshot(TINY, tiny())
    trees = folder.parent.parent / "trees"
    trees.mkdir()
    listed = {name: {"size": 1, "blob_id": "0"} for name in [*tiny(), "special_tokens_map.json"]}
    (trees / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": listed}))
    assert find_local(CARD) is None
    (folder / "special_tokens_map.json").write_text("{}")
    assert find_local(CARD) is not None


def test_a_cut_shard_is_not_whole() -> None:
    folder = snapshot(TINY, tiny())
    weights = (folder / "model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-1])
    assert find_local(CARD) is None


def test_a_pinned_commit_is_the_only_one_taken() -> None:
    old, new = "a" * 40, "b" * 40
    changed = {**tiny(), "generation_config.json": b"{}"}
    snapshot(TINY, tiny(), commit=old, main=False)
    snapshot(TINY, changed, commit=new)
    pinned = find_local(CARD.changed(revision=old))
    newest = find_local(CARD)
    assert pinned is not None
    assert newest is not None
    assert (pinned.revision, newest.revision) == (old, new)
    assert find_local(CARD.changed(revision="d" * 40)) is None
    assert find_local(CARD.changed(revision="main")) == newest


def test_a_model_that_ollama_pulled_from_the_same_repository(stores: Path) -> None:
    blob = ollama(stores, "Owner/Tiny-GGUF", "Q8_0", gguf(7))
    ollama(stores, "Owner/Tiny-GGUF", "latest", gguf(15))
    ollama(stores, "owner/another-GGUF", "Q8_0", gguf(7, seed=1))
    found = find_local(CARD, quantization="Q8_0")
    assert found is not None
    assert (found.path, found.kind, found.source) == (blob, "gguf", "ollama")
    assert found.label == "hf.co/Owner/Tiny-GGUF:Q8_0"
    by_header = find_local(CARD, quantization="q4_k_m")
    assert by_header is not None
    assert stored_quantization(by_header.path) == "Q4_K_M"
    assert find_local(CARD, quantization="F16") is None
    assert find_local(CARD, form="safetensors") is None
    blob.write_bytes(blob.read_bytes()[:-1])
    assert find_local(CARD, quantization="Q8_0") is None


def test_a_name_of_ollamas_library(stores: Path) -> None:
    card = Card(id="x", gguf=GgufSource(repository="owner/x", ollama="qwen2.5:7b-instruct"))
    host = "registry.ollama.ai/library"
    ollama(stores, "qwen2.5", "7b-instruct-extra", gguf(15), host=host)
    ollama(stores, "qwen2.5", "0.5b", gguf(15, seed=1), host=host)
    ollama(stores, "qwen2.5-coder", "7b-instruct", gguf(15, seed=2), host=host)
    assert find_local(card) is None
    ollama(stores, "qwen2.5", "7b-instruct-q8_0", gguf(7), host=host)
    exact = ollama(stores, "qwen2.5", "7b-instruct", gguf(15, seed=3), host=host)
    found = find_local(card, quantization="Q4_K_M")
    assert found is not None
    assert (found.path, found.label) == (exact, "qwen2.5:7b-instruct")
    eight = find_local(card, quantization="Q8_0")
    assert eight is not None
    assert eight.label == "qwen2.5:7b-instruct-q8_0"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"layers": 3}', '{"layers": [1]}',
     '{"layers": [{"mediaType": "application/vnd.ollama.image.model"}]}',
     '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "../../x"}]}'],
)  # fmt: skip
def test_a_manifest_that_makes_no_sense_is_passed_over(stores: Path, text: str) -> None:
    blob = ollama(stores, "owner/tiny-GGUF", "Q8_0", gguf(7))
    manifest = stores / "ollama/manifests/hf.co/owner/tiny-GGUF/F16"
    manifest.write_text(text)
    found = find_local(CARD, quantization="Q8_0")
    assert found is not None
    assert found.path == blob


def test_models_of_lm_studio(stores: Path) -> None:
    folder = stores / "lm-studio" / "owner" / "tiny-GGUF"
    folder.mkdir(parents=True)
    (folder / "tiny-Q8_0.gguf").write_bytes(gguf(7))
    (folder / "mmproj-Q8_0.gguf").write_bytes(b"x")
    (folder / "tiny-Q4_K_M-00001-of-00002.gguf").write_bytes(gguf(15))
    found = find_local(CARD, quantization="Q8_0")
    assert found is not None
    assert (found.path, found.source) == (folder / "tiny-Q8_0.gguf", "lm studio")
    assert find_local(CARD, quantization="Q4_K_M") is None
    (folder / "tiny-Q4_K_M-00002-of-00002.gguf").write_bytes(gguf(15))
    split = find_local(CARD, quantization="Q4_K_M")
    assert split is not None
    assert len(split.weights) == 2
    shutil.copytree(shipped("data", "tiny-chat"), stores / "lm-studio" / "owner" / "tiny")
    whole = find_local(CARD)
    assert whole is not None
    assert (whole.kind, whole.source) == ("safetensors", "lm studio")


def test_the_order_of_the_stores(stores: Path, tmp_path: Path) -> None:
    folder = stores / "lm-studio" / "owner" / "tiny-GGUF"
    folder.mkdir(parents=True)
    (folder / "tiny-Q8_0.gguf").write_bytes(gguf(7))
    sources = []
    for put in (
        lambda: None,
        lambda: ollama(stores, "owner/tiny-GGUF", "Q8_0", gguf(7)),
        lambda: snapshot("owner/tiny-GGUF", {"tiny-Q8_0.gguf": gguf(7)}),
        lambda: snapshot(TINY, tiny()),
    ):
        put()
        found = find_local(CARD)
        assert found is not None
        sources.append((found.source, found.kind))
    assert sources == [
        ("lm studio", "gguf"),
        ("ollama", "gguf"),
        ("hugging face cache", "gguf"),
        ("hugging face cache", "safetensors"),
    ]
    own = tmp_path / "own.gguf"
    own.write_bytes(gguf(1))
    here = find_local(CARD.changed(path=str(own)))
    assert here is not None
    assert (here.source, here.path) == ("local", own)
    other = find_local(CARD.changed(path=str(own)), form="safetensors")
    assert other is not None
    assert other.source == "hugging face cache"


def test_parts_of_a_split_gguf_are_one_model(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / f"big-{number:05}-of-00003.gguf").write_bytes(gguf(7))
    card = Card(id="big", path=str(tmp_path))
    found = find_local(card)
    assert found is not None
    assert [path.name[4:9] for path in found.weights] == ["00001", "00002", "00003"]
    assert found.path == found.weights[0]
    second = Card(id="second", path=str(tmp_path / "big-00002-of-00003.gguf"))
    assert find_local(second) == found
    (tmp_path / "another.gguf").write_bytes(gguf(7))
    with pytest.raises(UnsupportedError, match="4 GGUF files"):
        find_local(card)


def test_a_missing_path_is_an_error_and_no_reason_to_download() -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        find_local(CARD.changed(path="/nowhere/model"))


def test_an_unknown_form_names_the_nearest() -> None:
    with pytest.raises(InputError, match="safetensors"):
        find_local(CARD, form="safetensor")
