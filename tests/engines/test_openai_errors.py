"""What goes wrong with a server is told in one error; keys go where they belong, and no further."""

from __future__ import annotations

import copy
import json
import pickle
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai_server import Answer, Asked, Cut, ScriptedServer, event, json_answer, said

import workbench as wb
from workbench.catalog import Card
from workbench.engines import http_exchange, http_route
from workbench.engines.base import Power
from workbench.engines.http import Http, Key, Waits
from workbench.engines.http_errors import said_by_server
from workbench.engines.http_route import is_this_machine, route_to
from workbench.engines.openai_session import OpenAISession
from workbench.errors import (
    ContextLengthError,
    EngineError,
    InputError,
    NotFoundError,
    UnsupportedError,
    WorkbenchError,
)
from workbench.messages import Message, Reply, Sampling

SECRET = "sk-proj-abcdefghijklmnop0123456789"
TURN = (Message("user", "Hi"),)
QUICK = Waits(connect=2.0, first=10.0, silence=10.0)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer().running() as running:
        yield running


@pytest.fixture
def opened(server: ScriptedServer) -> Callable[..., OpenAISession]:
    def get(**settings: Any) -> OpenAISession:
        return OpenAISession(server.url, "small", **{"waits": QUICK, **settings})

    return get


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_exchange, "_backoff", lambda attempt: 0.01)


def ask(session: OpenAISession, **settings: Any) -> Reply:
    return Reply.joined(session.stream(TURN, Sampling(**settings)))


# Refusals


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, {"error": {"message": "bad temperature"}}, InputError, "bad temperature"),
        (401, {"error": "Unauthorized"}, EngineError, "wants a key"),
        (403, {"error": {"message": "no"}}, EngineError, "wants a key"),
        (413, {"error": {"message": "too big"}}, InputError, "too large"),
        (422, {"detail": [{"loc": ["body", "n"], "msg": "wrong"}]}, InputError, r"body\.n: wrong"),
        (500, {"error": {"message": "assert failed"}}, EngineError, "assert failed"),
        (501, {"error": {"message": "no chat"}}, UnsupportedError, "no chat"),
        (503, {"error": {"message": "Loading model"}}, EngineError, "Loading model"),
        (429, {"error": {"message": "slow down"}}, EngineError, "slow down"),
        (
            400,
            {"error": {"message": "This model's maximum context length is 8 tokens."}},
            ContextLengthError,
            "8 tokens",
        ),
        (
            400,
            {"error": {"message": "request exceeds", "type": "exceed_context_size_error"}},
            ContextLengthError,
            "does not fit",
        ),
        (
            500,
            {"detail": "Requested tokens (9) exceed context window of 8"},
            ContextLengthError,
            "9",
        ),
    ],
)
def test_a_refusal_becomes_the_error_that_fits(
    server: ScriptedServer,
    opened: Callable[..., OpenAISession],
    status: int,
    body: Any,
    kind: type,
    words: str,
) -> None:
    server.chat(json_answer(body, status))
    with pytest.raises(WorkbenchError, match=words) as caught:
        ask(opened())
    assert type(caught.value) is kind
    assert f":{server.port}" in str(caught.value) or kind is ContextLengthError


def test_only_what_was_not_accepted_is_asked_again(
    server: ScriptedServer, opened: Callable[..., OpenAISession]
) -> None:
    session = opened()
    busy = json_answer({"error": {"message": "busy"}}, 503)
    later = json_answer({"error": {"message": "busy"}}, 429, Retry_After="0")
    server.chat([busy, later, said("ok")])
    assert ask(session).text == "ok"
    assert len(server.bodies()) == 3
    for status in (400, 500, 502):
        server.asked.clear()
        server.chat([json_answer({"error": {"message": "no"}}, status), said("ok")])
        with pytest.raises(WorkbenchError):
            ask(session)
        assert len(server.bodies()) == 1
    server.asked.clear()
    server.chat([Answer([Cut()]), said("ok")])
    with pytest.raises(EngineError, match="hung up"):
        ask(session)
    assert len(server.bodies()) == 1, "it may have been accepted"


def test_a_long_wait_is_told_instead_of_waited(
    server: ScriptedServer, opened: Callable[..., OpenAISession]
) -> None:
    server.chat(json_answer({"error": {"message": "quota"}}, 429, Retry_After="3600"))
    with pytest.raises(EngineError, match="wait 3600 seconds"):
        ask(opened())
    assert len(server.bodies()) == 1


def test_a_reply_too_long_is_cut_where_the_prompt_fits(
    server: ScriptedServer, opened: Callable[..., OpenAISession]
) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.body["max_tokens"] > 90:
            return json_answer({"error": {"message": "maximum context length is 100"}}, 400)
        return said("ok")

    server.models("small", owned_by="vllm", max_model_len=100)
    server.on("/tokenize", json_answer({"tokens": list(range(40)), "count": 40}))
    server.chat(answer)
    session = opened()
    assert ask(session, max_tokens=500).text == "ok"
    assert [body["max_tokens"] for body in server.bodies()] == [500, 60]
    server.on("/tokenize", json_answer({"tokens": list(range(100)), "count": 100}))
    with pytest.raises(ContextLengthError):
        ask(session, max_tokens=500)


def test_a_missing_model_is_answered_with_those_there_are(server: ScriptedServer) -> None:
    server.models("one", "org/two", "models/three")
    with pytest.raises(NotFoundError, match=r"has no model 'four'.*models/three, one, org/two"):
        OpenAISession(server.url, "four")
    assert OpenAISession(server.url, "two").model == "org/two"
    assert OpenAISession(server.url, "x", names=["base/THREE"]).model == "models/three"


def test_a_model_that_went_away(
    server: ScriptedServer, opened: Callable[..., OpenAISession]
) -> None:
    session = opened()
    server.models("other")
    server.chat(json_answer({"error": {"message": "model not found"}}, 404))
    with pytest.raises(NotFoundError, match="It has: other"):
        ask(session)


def test_a_wrong_path_is_no_missing_model(
    server: ScriptedServer, opened: Callable[..., OpenAISession]
) -> None:
    with pytest.raises(EngineError, match="/v1/chat/completions is not there"):
        ask(opened())


def test_a_server_without_a_list_is_taken_at_its_word(server: ScriptedServer) -> None:
    server.on("/v1/models", json_answer({"detail": "Not Found"}, 404))
    session = OpenAISession(server.url, "anything")
    assert (session.model, session.flavour) == ("anything", "compatible")
    with pytest.raises(UnsupportedError, match="lists no models"):
        session.models()


# Connections


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(EngineError, match=rf"127\.0\.0\.1:{port}.*refused.*server running"):
        OpenAISession(f"http://127.0.0.1:{port}/v1", "x")


def test_the_load_leaves_a_receipt_that_says_why(server: ScriptedServer) -> None:
    server.on("/v1/models", json_answer({"error": "Unauthorized"}, 401))
    with pytest.raises(EngineError, match="key_variable"):
        wb.load(Card(id="small"), engine="openai", url=server.url)
    assert "wants a key" in _receipts()


@pytest.mark.parametrize(
    ("greeting", "words"),
    [(b"SSH-2.0-OpenSSH_9\r\n", "does not speak HTTP"), (b"", "hung up without an answer")],
)
def test_something_else_listens(greeting: bytes, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        http = Http(f"http://127.0.0.1:{port}/v1", waits=QUICK)
        exchange = http.exchange("GET", "/models")

        def greet() -> None:
            other, _ = listener.accept()
            other.recv(65536)
            other.sendall(greeting)
            other.close()

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(EngineError, match=words):
            exchange.start()
        exchange.close()
        thread.join(5)


def test_a_cut_answer_is_no_answer(server: ScriptedServer) -> None:
    server.on("/v1/models", Answer([b'{"data": [', Cut()], kind="application/json"))
    with pytest.raises(EngineError, match="hung up in the middle"):
        OpenAISession(server.url, "small")
    server.on("/v1/models", Answer([b"<html>"], kind="text/html"))
    with pytest.raises(EngineError, match="no JSON but text/html"):
        OpenAISession(server.url, "small")


def test_certificates_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 "
        f"-out {files[0]} -keyout {files[1]}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    http_route._trust.cache_clear()
    with ScriptedServer(files).running() as server:
        with pytest.raises(EngineError, match=r"certificate of .* is not trusted"):
            OpenAISession(server.url, "small", waits=QUICK)
        with pytest.raises(EngineError):
            OpenAISession(server.url.replace("https", "http"), "small", waits=QUICK)
        monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
        http_route._trust.cache_clear()
        server.chat(said("over TLS ", "猫"))
        session = OpenAISession(server.url, "small", waits=QUICK)
        assert [ask(session).text for _ in range(3)] == ["over TLS 猫"] * 3
        session.close()
    with (
        ScriptedServer().running() as plain,
        pytest.raises(EngineError, match="does not speak TLS"),
    ):
        OpenAISession(plain.url.replace("http", "https"), "small", waits=QUICK)
    http_route._trust.cache_clear()


# Proxies


def test_a_proxy_carries_remote_requests_and_never_local_ones(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedServer().running() as proxy:
        there = f"http://user:pass@127.0.0.1:{proxy.port}"
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, there)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        OpenAISession(server.url, "small", waits=QUICK)
        assert proxy.asked == []
        models = {"data": [{"id": "far"}]}
        proxy.on("http://models.example/v1/models", json_answer(models))
        session = OpenAISession("http://models.example/v1", "far", waits=QUICK)
        assert session.model == "far"
        assert proxy.asked[0].headers["proxy-authorization"].startswith("Basic ")
        assert proxy.asked[0].headers["host"] == "models.example"
        assert "pass" not in repr(route_to("http://models.example/v1"))
        monkeypatch.setenv("no_proxy", "models.example")
        assert route_to("http://models.example/v1").proxy is None
        monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
        with pytest.raises(EngineError, match="socks5"):
            route_to("https://far.example/v1")


def test_which_hosts_are_this_machine() -> None:
    assert all(map(is_this_machine, ("localhost", "127.0.0.1", "127.8.9.1", "::1", "a.localhost.")))
    assert not any(
        map(is_this_machine, ("localhost.evil.com", "128.0.0.1", "example.com", "10.0.0.1"))
    )


# Keys


def test_a_key_is_sent_and_shows_nowhere(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEST_SERVICE_KEY", SECRET)
    server.chat(json_answer({"error": {"message": f"Incorrect key {SECRET}."}}, 401))
    plan = wb.plan(Card(id="small"), url=server.url, key_variable="TEST_SERVICE_KEY")
    with wb.load(plan) as model:
        with pytest.raises(EngineError, match="key in TEST_SERVICE_KEY") as caught:
            model.ask("Hi")
        seen = [repr(model), repr(model.raw), repr(model.raw.key), str(caught.value)]
        seen += [str(plan), repr(plan), json.dumps(plan.describe()), _receipts(), caplog.text]
        seen += [repr(model._repr_mimebundle_())]
        server.chat(json_answer({"error": {"message": f"broken by {SECRET}"}}, 500))
        with pytest.raises(EngineError) as caught:
            model.ask("Hi")
        seen.append(str(caught.value))
        traceback = caught.value.__traceback__
        assert caught.value.__cause__ is None
        while traceback is not None:
            frame = traceback.tb_frame
            if (
                "workbench" in frame.f_code.co_filename
                and "/tests/" not in frame.f_code.co_filename
            ):
                seen.append(repr(frame.f_locals))
            traceback = traceback.tb_next
        with pytest.raises(TypeError):
            pickle.dumps(model.raw.key)
        with pytest.raises(TypeError):
            copy.deepcopy(model.raw.key)
    assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {SECRET}"}
    assert not [text for text in seen if SECRET in text]


def test_a_redirect_to_another_host_gets_no_key(
    server: ScriptedServer, opened: Callable[..., OpenAISession]
) -> None:
    with ScriptedServer().running() as other:
        other.chat(said("from the other"))
        server.on(
            "/v1/chat/completions", json_answer({}, 307, Location=f"{other.url}/chat/completions")
        )
        session = opened(key=Key(SECRET, variable="K"))
        assert ask(session).text == "from the other"
        assert "authorization" not in other.asked[0].headers
        assert other.asked[0].body["messages"][0]["content"] == "Hi"
    server.on("/v1/chat/completions", json_answer({}, 308, Location="/v1/here"))
    server.on("/v1/here", said("here"))
    assert ask(session).text == "here"
    assert server.asked[-1].headers["authorization"] == f"Bearer {SECRET}"
    server.on("/v1/chat/completions", json_answer({}, 301, Location="/v1/here"))
    with pytest.raises(EngineError, match=r"has moved to .*/v1/here"):
        ask(session)
    server.on("/v1/chat/completions", json_answer({}, 307, Location="/v1/round"))
    server.on("/v1/round", json_answer({}, 307, Location="/v1/chat/completions"))
    with pytest.raises(EngineError, match="more than 5 times"):
        ask(session)


@pytest.mark.parametrize("value", ["", "two words", "ke\ny", "schlüssel"])
def test_a_key_that_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TEST_SERVICE_KEY", value)
    with pytest.raises(InputError, match="TEST_SERVICE_KEY") as caught:
        wb.load(Card(id="x"), url="http://127.0.0.1:9/v1", key_variable="TEST_SERVICE_KEY")
    assert not value or value not in str(caught.value)


def test_keys_are_not_taken_in_the_open() -> None:
    for options in ({"api_key": SECRET}, {"extra": {"api-key": SECRET}}):
        with pytest.raises(InputError, match="key_variable") as caught:
            wb.plan(Card(id="x"), url="http://127.0.0.1:9/v1", **options)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said_there"),
    [
        ('{"error": {"message": "a\\nb"}}', "a b"),
        ('[{"error": {"code": 400, "message": "google"}}]', "google"),
        ('{"message": "plain"}', "plain"),
        ("<html><body>502 Bad Gateway</body></html>", "502 Bad Gateway"),
        ('{"odd": 1}', '{"odd": 1}'),
        ("", ""),
    ],
)
def test_what_servers_say(text: str, said_there: str) -> None:
    assert said_by_server(text) == said_there
    assert len(said_by_server("x" * 10_000)) <= 600


# What servers are, and what they know


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


def _receipts() -> str:
    from workbench.paths import outputs

    return "".join(path.read_text() for path in outputs().rglob("*.json"))
