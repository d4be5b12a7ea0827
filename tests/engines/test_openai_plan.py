"""Which service a plan goes to: argument, then card, then environment, then default, and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai_parts
import pytest
from openai_server import ScriptedServer, said

import workbench as wb
from workbench.catalog import Card
from workbench.catalog.capabilities import engine_facts
from workbench.engines.base import Power
from workbench.errors import InputError, NotFoundError
from workbench.planning import Plan

server = openai_parts.server
SERVICE = Card.of(
    {
        "id": "far",
        "remote": {"url": "https://far.example/v1", "model": "far-1", "key_variable": "FAR_KEY"},
    }
)


@pytest.fixture(autouse=True)
def _no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKBENCH_BACKEND", raising=False)
    monkeypatch.delenv("BACKEND_URL", raising=False)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def put(backend: str | None = None, url: str | None = None) -> None:
        for name, value in (("WORKBENCH_BACKEND", backend), ("BACKEND_URL", url)):
            if value is not None:
                monkeypatch.setenv(name, value)

    return put


def because(plan: Plan) -> str:
    return " ".join(plan.reasons)


def test_a_shipped_card_of_a_service_needs_no_files() -> None:
    plan = wb.plan("gemini-2.0-flash")
    assert (plan.engine, plan.files) == ("openai", None)
    assert plan.options == {
        "url": "https://generativelanguage.googleapis.com/v1beta/openai",
        "served_model": "gemini-2.0-flash",
        "key_variable": "GEMINI_API_KEY",
    }
    assert "card" in because(plan)
    assert Plan.of(plan.describe()).describe() == plan.describe()


def test_an_argument_comes_before_the_card_and_takes_no_key_along(
    environment: Callable[..., None],
) -> None:
    environment("ollama", "http://elsewhere:1/v1")
    plan = wb.plan(SERVICE, url="http://127.0.0.1:5/v1")
    assert plan.options == {"url": "http://127.0.0.1:5/v1", "served_model": "far"}
    assert "argument" in because(plan)


def test_the_card_comes_before_the_environment(environment: Callable[..., None]) -> None:
    environment("ollama", "http://elsewhere:1/v1")
    plan = wb.plan(SERVICE)
    assert plan.options["url"] == "https://far.example/v1"
    assert plan.options["key_variable"] == "FAR_KEY"
    assert "flavour" not in plan.options


def test_the_environment_comes_before_the_default(environment: Callable[..., None]) -> None:
    environment("lmstudio", "http://box:1234")
    plan = wb.plan("org/some-model:8b")
    assert plan.engine == "openai"
    assert plan.card.id == "some-model-8b"
    assert plan.options == {
        "url": "http://box:1234/v1",
        "served_model": "org/some-model:8b",
        "flavour": "lmstudio",
    }
    assert "WORKBENCH_BACKEND=lmstudio (environment)" in because(plan)
    assert "BACKEND_URL (environment)" in because(plan)


def test_a_backend_without_a_url_is_where_it_usually_listens(
    environment: Callable[..., None],
) -> None:
    environment("ollama")
    plan = wb.plan("some:1b")
    assert plan.options["url"] == "http://127.0.0.1:11434/v1"
    assert "(default)" in because(plan)
    assert "Modelfile" in because(plan)


def test_a_url_alone_is_enough(environment: Callable[..., None]) -> None:
    environment(url="http://127.0.0.1:7000/v1/")
    plan = wb.plan("some:1b")
    assert plan.options == {"url": "http://127.0.0.1:7000/v1", "served_model": "some:1b"}


def test_the_environment_may_name_an_engine_of_this_machine(
    environment: Callable[..., None],
) -> None:
    environment("llama.cpp")
    plan = wb.plan("tiny-chat")
    assert plan.engine == "llama.cpp"
    assert "WORKBENCH_BACKEND=llama.cpp" in plan.reasons[0]
    assert wb.plan("tiny-chat", engine="transformers").engine == "transformers"


def test_the_environment_says_nothing_of_files_and_other_machines(
    environment: Callable[..., None],
) -> None:
    folder = Path(__file__).parents[2] / "data" / "tiny-chat"
    environment("ollama", "http://127.0.0.1:1/v1")
    assert wb.plan(folder).engine != "openai"
    assert wb.plan(str(folder)).engine != "openai"
    assert wb.plan("tiny-chat", machine="24GB-cuda").engine != "openai"
    assert wb.plan("tiny-chat").engine == "openai"


def test_an_engine_and_a_server_of_one_name(environment: Callable[..., None]) -> None:
    environment("vllm", "http://127.0.0.1:8000/v1")
    plan = wb.plan("tiny-chat")
    assert (plan.engine, plan.options["flavour"]) == ("openai", "vllm")


def test_a_backend_that_there_is_not(environment: Callable[..., None]) -> None:
    environment("olama")
    with pytest.raises(InputError, match=r"'olama'.*'ollama'"):
        wb.plan("tiny-chat")


def test_kinds_of_servers_are_engines_by_name() -> None:
    plan = wb.plan("some:1b", engine="ollama")
    assert (plan.engine, plan.options["flavour"]) == ("openai", "ollama")


def test_no_url_is_asked_for() -> None:
    with pytest.raises(InputError, match="BACKEND_URL"):
        wb.plan("x", engine="openai")


def test_only_openai_s_own_hosts_get_its_key_by_themselves() -> None:
    def key(url: str) -> Any:
        return wb.plan(Card(id="x"), url=url).options.get("key_variable")

    assert key("https://api.openai.com/v1") == "OPENAI_API_KEY"
    assert key("https://mine.openai.azure.com/openai/v1") == "OPENAI_API_KEY"
    for url in (
        "http://api.openai.com/v1",
        "https://api.openai.com.evil.example/v1",
        "https://notapi.openai.com.example/v1",
        "https://evilapi.openai.comx/v1",
        "http://127.0.0.1:8000/v1",
    ):
        assert key(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/v1",
        "host:8000/v1",
        "http://",
        "http://user:secret-word@host/v1",
        "http://host/v1?key=secret-word",
        "http://host:99999/v1",
        "http://host\n/v1",
        "http://[::1/v1",
        "",
    ],
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(InputError) as caught:
        wb.plan(Card(id="x"), engine="openai", url=url)
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"silense": 3}, "'silence'"),
        ({"silence": 0}, "silence must be seconds"),
        ({"retries": -1}, "retries must be a whole number"),
        ({"concurrent": 0}, "concurrent"),
        ({"flavour": "vlm"}, "'vllm'"),
        ({"extra": [1]}, "extra is a mapping"),
    ],
)
def test_an_option_that_is_wrong(option: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        wb.load(Card(id="x"), url="http://127.0.0.1:9/v1", **option)


def test_a_load_by_name_url_and_engine(server: ScriptedServer) -> None:
    server.models("org/some-model:8b", owned_by="vllm", max_model_len=777)
    server.chat(said("猫"))
    with wb.load("org/some-model:8b", engine="openai", url=server.url) as model:
        assert model.ask("Hi").text == "猫"
        assert model.plan.context == 777
        assert model.label == "some-model-8b · openai · as stored"
        assert model in wb.loaded()
        assert server.bodies()[0]["model"] == "org/some-model:8b"
    with pytest.raises(NotFoundError, match="org/some-model:8b"):
        wb.load("another", engine="openai", url=server.url)


def test_what_the_card_says_adds_powers(server: ScriptedServer) -> None:
    server.models("x", owned_by="vllm")
    card = Card(id="x", tasks=("embedding", "vision"))
    with wb.load(card, url=server.url) as model:
        assert {Power.EMBED, Power.IMAGES} <= model.powers


def test_the_facts_of_servers_fit_together() -> None:
    facts = engine_facts()["openai"]
    for name, flavour in facts.flavours.items():
        assert set(flavour.powers) <= set(facts.powers), name
        assert set(flavour.powers) <= {power.value for power in Power}
        assert ("schema" in flavour.powers) == (flavour.schema_form is not None), name
        assert ("grammar" in flavour.powers) == (flavour.grammar is not None), name
        known = {"top_k", "min_p", "repetition_penalty", "ignore_end"}
        assert set(flavour.settings) <= known, name
