"""Fixtures for tests against a scripted server: the server, and what is opened at its URL.

A test file takes one by giving it a name: ``server = openai_parts.server``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai_server import ScriptedServer

import workbench as wb
from workbench.catalog import Card
from workbench.engines import http_exchange
from workbench.engines.base import Loading
from workbench.engines.http import Waits
from workbench.engines.model import Model
from workbench.engines.openai import OpenAIEngine
from workbench.engines.openai_session import OpenAISession
from workbench.messages import Message, Reply, Sampling

SECRET = "sk-proj-abcdefghijklmnop0123456789"
TEXT = "こんにちは、世界！ 🐈‍⬛ — naïve\n\nline\r\nend"
QUICK = Waits(connect=2.0, first=10.0, silence=10.0)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A server that has the model ``small``."""
    with ScriptedServer().running() as running:
        yield running


@pytest.fixture
def sessions(server: ScriptedServer) -> Callable[..., OpenAISession]:
    """Open a session at the server, which never waits long."""

    def get(**settings: Any) -> OpenAISession:
        return OpenAISession(server.url, "small", **{"waits": QUICK, **settings})

    return get


@pytest.fixture
def models(server: ScriptedServer) -> Iterator[Callable[..., Model]]:
    """Open a model at the server, with its plan; each is closed after the test."""
    opened: list[Model] = []

    def get(name: str = "small", **options: object) -> Model:
        plan = wb.plan(Card(id=name), engine="openai", url=server.url, **options)
        nothing = Loading(seconds=0, weight_bytes=0, rss_bytes=0)
        opened.append(Model(OpenAIEngine().open(plan), plan, loading=nothing))
        return opened[-1]

    yield get
    for model in opened:
        model.close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked again is asked at once."""
    monkeypatch.setattr(http_exchange, "_backoff", lambda attempt: 0.01)


def ask(session: OpenAISession, **settings: Any) -> Reply:
    """Return the session's whole reply to one word."""
    return Reply.joined(session.stream((Message("user", "Hi"),), Sampling(**settings)))
