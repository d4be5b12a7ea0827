"""What goes wrong with a server is told in one error, and asked again only where that is safe."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import openai_parts
import pytest
from openai_parts import QUICK, ask
from openai_server import Answer, Asked, Cut, ScriptedServer, json_answer, said

import workbench as wb
from workbench.catalog import Card
from workbench.engines.http import Http
from workbench.engines.openai_session import OpenAISession
from workbench.errors import (
    ContextLengthError,
    EngineError,
    InputError,
    NotFoundError,
    UnsupportedError,
    WorkbenchError,
)

server, opened = openai_parts.server, openai_parts.sessions
no_waiting = openai_parts.no_waiting


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


def _receipts() -> str:
    from workbench.paths import outputs

    return "".join(path.read_text() for path in outputs().rglob("*.json"))
