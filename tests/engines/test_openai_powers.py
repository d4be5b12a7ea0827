"""What an OpenAI-compatible server is, what its model can do, and what it knows of ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openai_parts
import pytest
from openai_server import Answer, ScriptedServer, event, json_answer

from workbench.engines.base import Power
from workbench.engines.openai_session import OpenAISession
from workbench.errors import (
    EngineError,
    UnsupportedError,
)
from workbench.messages import Reply, Sampling

server, opened = openai_parts.server, openai_parts.sessions
no_waiting = openai_parts.no_waiting


@pytest.mark.parametrize(
    ("owner", "flavour"),
    [
        ("vllm", "vllm"),
        ("llamacpp", "llama-server"),
        ("sglang", "sglang"),
        ("library", "ollama"),
        ("organization_owner", "lmstudio"),
        ("somebody", "compatible"),
    ],
)
def test_kinds_are_told_by_the_owner_of_the_models(
    server: ScriptedServer, opened: Callable[..., OpenAISession], owner: str, flavour: str
) -> None:
    server.models("small", owned_by=owner)
    assert opened().flavour == flavour
    assert opened(flavour="vllm").flavour == "vllm"


def test_powers_are_what_the_server_tells(
    server: ScriptedServer, opened: Callable[..., OpenAISession]
) -> None:
    server.models("small", owned_by="vllm", max_model_len=77)
    server.on("/version", json_answer({"version": "0.32.0"}))
    paths = {"/v1/embeddings": {}, "/v1/rerank": {}, "/tokenize": {}}
    server.on("/openapi.json", json_answer({"paths": paths}))
    session = opened()
    assert (session.version, session.context) == ("0.32.0", 77)
    assert {Power.EMBED, Power.RERANK, Power.TOKENIZE} <= session.powers
    assert not {Power.COMPLETE, Power.SCORE, Power.SCHEMA} & session.powers

    server.models("small", owned_by="library")
    server.on("/api/show", json_answer({"capabilities": ["completion", "vision"]}))
    session = opened()
    assert Power.IMAGES in session.powers
    assert not {Power.TOOLS, Power.THINKING, Power.EMBED, Power.COMPLETE} & session.powers

    server.models("small", owned_by="llamacpp")
    props = {"default_generation_settings": {"n_ctx": 512}, "modalities": {"vision": True}}
    server.on("/props", json_answer(props))
    session = opened()
    assert session.context == 512
    assert Power.IMAGES in session.powers

    server.models("small", owned_by="organization_owner")
    server.on("/api/v0/models/small", json_answer({"type": "embeddings", "max_context_length": 99}))
    session = opened()
    assert session.context == 99
    assert Power.EMBED in session.powers
    assert Power.SCHEMA not in session.powers


def test_vectors_keep_their_order_and_their_length(
    server: ScriptedServer, opened: Callable[..., OpenAISession]
) -> None:
    rows = [{"index": 1, "embedding": [0, 2]}, {"index": 0, "embedding": [3, 4]}]
    server.on("/v1/embeddings", json_answer({"data": rows}))
    session = opened()
    assert session.embed(["a", "b"], False).tolist() == [[3, 4], [0, 2]]
    scaled = session.embed(["a", "b"], True)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [[0.6, 0.8], [0, 1]], rtol=1e-6)
    assert server.bodies("/v1/embeddings")[0]["input"] == ["a", "b"]
    with pytest.raises(EngineError, match="2 vectors for 3 texts"):
        session.embed(["a", "b", "c"], True)


@pytest.mark.parametrize("key", ["relevance_score", "score"])
def test_relevance_keeps_the_order_of_the_documents(
    server: ScriptedServer, opened: Callable[..., OpenAISession], key: str
) -> None:
    rows = [{"index": 2, key: 0.9}, {"index": 0, key: 0.5}, {"index": 1, key: -0.1}]
    server.on("/v1/rerank", json_answer({"results": rows} if key != "score" else rows))
    np.testing.assert_allclose(opened().rerank("q", ["a", "b", "c"]), [0.5, -0.1, 0.9])
    with pytest.raises(UnsupportedError, match="only a part"):
        opened().rerank("q", ["a", "b", "c", "d"])


def test_scores_of_vllm(server: ScriptedServer, opened: Callable[..., OpenAISession]) -> None:
    def row(**values: float) -> dict[str, Any]:
        return {name[1:]: {"logprob": value, "rank": 1} for name, value in values.items()}

    server.models("small", owned_by="vllm", max_model_len=77)
    rows = [None, row(_1=-0.5, _0=-0.1), row(_0=-2.0, _1=-0.2)]
    server.on("/v1/completions", json_answer({"choices": [{"prompt_logprobs": rows}]}))
    session = opened()
    np.testing.assert_allclose(session.score([0, 1, 0]), [-0.5, -2.0])
    np.testing.assert_allclose(session.log_probabilities([0, 1, 0]), [[-0.1, -0.5], [-2.0, -0.2]])
    assert [body["prompt_logprobs"] for body in server.bodies("/v1/completions")] == [0, -1]
    assert session.score([5]).shape == (0,)
    refusal = {"error": {"message": "Requested prompt logprobs of -1, which is more than 20"}}
    server.on("/v1/completions", json_answer(refusal, 400))
    with pytest.raises(UnsupportedError, match="likeliest"):
        session.log_probabilities([0, 1])


def test_bytes_that_a_server_cannot_tell_are_not_invented(
    server: ScriptedServer, opened: Callable[..., OpenAISession]
) -> None:
    server.models("small", owned_by="llamacpp")
    session = opened()
    server.on("/detokenize", json_answer({"content": "a\ufffd"}))
    server.on("/tokenize", json_answer({"tokens": [1, 9]}))
    with pytest.raises(EngineError, match="within a character"):
        session.detokenize([1, 2])
    assert session.detokenize([1, 9]) == "a\ufffd".encode()


def test_raw_ids_only_where_they_are_taken(
    server: ScriptedServer, opened: Callable[..., OpenAISession]
) -> None:
    server.on(
        "/v1/completions", Answer([event({"choices": [{"text": "x", "finish_reason": "stop"}]})])
    )
    with pytest.raises(UnsupportedError, match="not token ids"):
        opened().complete([1, 2], Sampling())
    assert Reply.joined(opened(flavour="vllm").complete([1, 2], Sampling())).text == "x"
    assert server.bodies("/v1/completions")[0]["prompt"] == [1, 2]
