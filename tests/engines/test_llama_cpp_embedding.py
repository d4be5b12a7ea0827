"""Embedding and reranking models in llama.cpp: equal to transformers, and no chat models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import open_model
from random_bert import bert_gguf, save_bert, save_reranker
from remote_model import at_url

import workbench as wb
from workbench.catalog import Card
from workbench.engines.base import Power
from workbench.errors import ContextLengthError, InputError, UnsupportedError

TEXTS = ["the cat sat on mat", "a", "one two three water house red zebra", "the dog " * 20]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, Any, Path]]:
    folder = tmp_path_factory.mktemp("bert")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        reference, tokenizer = save_bert(folder / "source")
        path = bert_gguf(folder / "source", folder / "bert.gguf")
    with wb.load(path, engine="llama.cpp", threads=1, context=128) as model:
        yield model, reference, tokenizer, path


def expected(reference: Any, tokenizer: Any, *, mean: bool = True) -> Any:
    import torch

    rows = []
    for text in TEXTS:
        with torch.inference_mode():
            found = reference(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        rows.append((found.mean(0) if mean else found[0]).numpy())
    return np.stack(rows)


@pytest.mark.slow
def test_vectors_are_those_of_transformers_pooled_as_the_file_says(
    embedder: Any, shows: Callable[..., None]
) -> None:
    model, reference, tokenizer, _ = embedder
    wanted = expected(reference, tokenizer)
    found = model.embed(TEXTS, normalize=False)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=5e-3)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.1
    scaled = model.embed(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(
        scaled, found / np.linalg.norm(found, axis=-1, keepdims=True), atol=1e-5
    )
    shows(model, Power.EMBED)


def test_a_server_embeds_as_in_this_process(
    embedder: Any, session_home: Path, shows: Callable[..., None]
) -> None:
    model, _, _, path = embedder
    settings = {"threads": 1, "context": 128, "parallel": 1, "embedding": True}
    card = Card.of({"id": "bert", "path": str(path), "tasks": ["embedding"]})
    with wb.load(card, engine="llama-server", **settings) as server:
        expected = model.embed(TEXTS)
        np.testing.assert_allclose(server.embed(TEXTS), expected, atol=1e-3)
        shows(server, Power.EMBED)
        command = server._session.server.command
        with at_url(f"{command.url}/v1", command.key, session_home, card) as remote:
            np.testing.assert_allclose(remote.embed(TEXTS), expected, atol=1e-3)
            shows(remote, Power.EMBED)


def test_many_texts_at_once_equal_each_alone(embedder: Any) -> None:
    model = embedder[0]
    many = [" ".join(TEXTS[number % 4].split()[: number % 7 + 1]) for number in range(80)]
    together = model.embed(many, normalize=False)
    alone = np.concatenate([model.embed(text, normalize=False) for text in many])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_another_pooling_is_an_option(embedder: Any) -> None:
    _, reference, tokenizer, path = embedder
    with wb.load(path, engine="llama.cpp", threads=1, context=128, pooling_type=2) as model:
        first = model.embed(TEXTS, normalize=False)
    np.testing.assert_allclose(first, expected(reference, tokenizer, mean=False), atol=5e-3)


def test_an_embedding_model_writes_no_text(embedder: Any) -> None:
    model = embedder[0]
    assert model.powers == {Power.TOKENIZE, Power.EMBED}
    with pytest.raises(UnsupportedError, match="does not write any"):
        model.ask("Hi!")
    with pytest.raises(UnsupportedError, match="cannot rerank"):
        model.rerank("a", ["b"])
    with pytest.raises(ContextLengthError, match=r"Text 2 has \d+ tokens, the model takes 128"):
        model.embed(["a", "the cat " * 100])
    assert model.embed("the cat").shape == (1, 48)


def test_a_chat_model_embeds_when_asked_to() -> None:
    with open_model("llama.cpp", embedding=True, quantization="Q8_0") as model:
        found = model.embed(["猫", "犬がいる", "猫"])
        assert found.shape == (3, 256) or found.shape[0] == 3
        np.testing.assert_allclose(found[0], found[2], atol=1e-3)
        assert float(found[0] @ found[1]) < 0.999
    with open_model("llama.cpp") as model, pytest.raises(UnsupportedError, match="cannot embed"):
        model.embed("猫")
    with pytest.raises(InputError, match="embedding is True or False"):
        open_model("llama.cpp", embedding="mean")


@pytest.mark.slow
def test_relevances_are_those_of_transformers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    session_home: Path,
    shows: Callable[..., None],
) -> None:
    import torch

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    reference = save_reranker(tmp_path / "source")
    path = bert_gguf(tmp_path / "source", tmp_path / "judge.gguf", pre_tokenizer="gpt-2")
    with wb.load(path, engine="llama.cpp", threads=1, context=128, pooling_type=4) as model:
        assert model.powers == {Power.TOKENIZE, Power.RERANK}
        found = model.rerank("the cat", TEXTS)
        pairs = [model._session._pair("the cat", text) for text in TEXTS]
        shows(model, Power.RERANK)
        template = b"{query} and {document}"
        monkeypatch.setattr(model._session._c, "llama_model_chat_template", lambda *_: template)
        marks = model._session._pair("a {document}", "the cat")
        assert marks == model._session.words.tokenize("a {document} and the cat")
    for value, ids in zip(found, pairs, strict=True):
        with torch.inference_mode():
            wanted = reference(input_ids=torch.tensor([ids])).logits.item()
        assert value == pytest.approx(wanted, abs=5e-3)
    assert np.ptp(found) > 0.01
    card = Card.of({"id": "judge", "path": str(path), "tasks": ["rerank"]})
    settings = {"threads": 1, "context": 128, "parallel": 1, "reranking": True}
    with wb.load(card, engine="llama-server", **settings) as server:
        np.testing.assert_allclose(server.rerank("the cat", TEXTS), found, atol=2e-2)
        shows(server, Power.RERANK)
        command = server._session.server.command
        with at_url(f"{command.url}/v1", command.key, session_home, card) as remote:
            np.testing.assert_allclose(remote.rerank("the cat", TEXTS), found, atol=2e-2)
            shows(remote, Power.RERANK)


def test_an_adapter_is_refused_and_not_ignored(embedder: Any) -> None:
    path = embedder[-1]
    with pytest.raises(UnsupportedError, match="takes no adapter"):
        wb.load(path, engine="llama.cpp", threads=1, context=128, adapter=path)
