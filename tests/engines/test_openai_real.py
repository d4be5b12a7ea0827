"""A real server of llama.cpp at its URL: what it is, its key, how it is found, and isolated.

What it answers is held against the other engines by the conformance suite.
"""

from __future__ import annotations

import pytest
from conformance import SERVED_CONTEXT
from llama_server_process import KEY

import workbench as wb
from workbench.engines.model import Model
from workbench.errors import EngineError


def test_it_is_known_for_what_it_is(llama_server_at_url: Model) -> None:
    remote = llama_server_at_url
    assert remote.plan.engine == "openai"
    assert remote._open_session.flavour == "llama-server"
    assert remote.plan.context == SERVED_CONTEXT
    assert remote._open_session.models() == ["tiny-chat"]


def test_stop_strings_in_any_language_end_a_reply(llama_server_at_url: Model) -> None:
    for question, stop in (
        ("Tell me a story.", " by the"),
        ("「犬」は英語で何ですか？", "o"),
        ("How do you say cat in Japanese?", "猫"),
    ):
        whole = llama_server_at_url.ask(question, max_tokens=24).text
        assert stop in whole
        reply = llama_server_at_url.ask(question, stop=stop, max_tokens=24)
        assert (reply.text, reply.finish_reason) == (whole[: whole.index(stop)], "stop")


def _open(url: str, **options: str) -> Model:
    return wb.load("tiny-chat", url=url, **options)


def test_another_key_is_refused(llama_server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="wants a key"), _open(llama_server_url) as model:
        model.ask("Hi")
    monkeypatch.setenv("TEST_LOCAL_KEY", "wrong-key")
    with (
        pytest.raises(EngineError, match="key in TEST_LOCAL_KEY") as caught,
        _open(llama_server_url, key_variable="TEST_LOCAL_KEY") as model,
    ):
        model.ask("Hi")
    assert "wrong-key" not in str(caught.value)


def test_the_environment_finds_it(llama_server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_BACKEND", "llama-server")
    monkeypatch.setenv("BACKEND_URL", llama_server_url)
    monkeypatch.setenv("TEST_LOCAL_KEY", KEY)
    with wb.load("tiny-chat", key_variable="TEST_LOCAL_KEY") as model:
        assert model.plan.engine == "openai"
        assert any("BACKEND_URL" in reason for reason in model.plan.reasons)
        assert model.ask("How do you say cat in Japanese?").text == "猫"


def test_it_works_isolated_too(llama_server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_LOCAL_KEY", KEY)
    settings = {"url": llama_server_url, "key_variable": "TEST_LOCAL_KEY", "isolate": True}
    with wb.load("tiny-chat", **settings) as model:
        assert model.ask("How do you say cat in Japanese?").text == "猫"
