"""Keys go to the host they are for, and show nowhere; proxies, redirects, certificates."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path

import openai_parts
import pytest
from openai_parts import QUICK, SECRET, ask
from openai_server import ScriptedServer, json_answer, said

import workbench as wb
from workbench.catalog import Card
from workbench.engines import http_route
from workbench.engines.http import Key
from workbench.engines.http_errors import said_by_server
from workbench.engines.http_route import is_this_machine, route_to
from workbench.engines.openai_session import OpenAISession
from workbench.errors import (
    EngineError,
    InputError,
)

server, opened = openai_parts.server, openai_parts.sessions
no_waiting = openai_parts.no_waiting


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


def _receipts() -> str:
    from workbench.paths import outputs

    return "".join(path.read_text() for path in outputs().rglob("*.json"))
