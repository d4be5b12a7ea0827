"""Settings reach each kind of server in its own words; one that it would ignore is refused."""

from __future__ import annotations

import json
from collections.abc import Callable

import openai_parts
import pytest
from openai_server import (
    ScriptedServer,
    json_answer,
    said,
)

from workbench.engines.model import Model
from workbench.errors import UnsupportedError
from workbench.messages import Image

PNG = b"\x89PNG\r\n\x1a\n"


server, opened = openai_parts.server, openai_parts.models


def test_neutral_settings_are_sent_where_the_server_has_defaults_of_its_own(
    server: ScriptedServer, opened: Callable[..., Model]
) -> None:
    server.chat(said("ok"))
    opened(flavour="vllm").ask("Hi", seed=3, max_tokens=9)
    body = server.bodies()[0]
    expected = {
        "model": "small", "max_tokens": 9, "temperature": 0.0, "top_p": 1.0, "top_k": 0,
        "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": False, "seed": 3, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert {name: body[name] for name in expected} == expected


@pytest.mark.parametrize("seed", [-1, 2**32 - 1, 2**70])
def test_no_seed_is_sent_that_stands_for_a_random_one(
    server: ScriptedServer, opened: Callable[..., Model], seed: int
) -> None:
    server.chat(said("ok"))
    opened(flavour="vllm").ask("Hi", seed=seed)
    assert 0 <= server.bodies()[0]["seed"] < 2**32 - 1


@pytest.mark.parametrize(
    ("flavour", "setting", "sent"),
    [
        ("vllm", {"ignore_end": True}, {"ignore_eos": True}),
        (
            "llama-server",
            {"repetition_penalty": 1.2},
            {"repeat_penalty": 1.2, "repeat_last_n": 1048576},
        ),
        ("llama-server", {"grammar": "root ::= x"}, {"grammar": "root ::= x"}),
        ("vllm", {"grammar": "g"}, {"structured_outputs": {"grammar": "g"}}),
        ("sglang", {}, {"top_k": -1}),
        ("openai", {"max_tokens": 5}, {"max_completion_tokens": 5}),
        ("ollama", {"think": False}, {"reasoning_effort": "none"}),
        ("vllm", {"think": True}, {"chat_template_kwargs": {"enable_thinking": True}}),
    ],
)
def test_settings_in_the_words_of_each_server(
    server: ScriptedServer, opened: Callable[..., Model], flavour: str, setting: dict, sent: dict
) -> None:
    server.chat(said("ok"))
    opened(flavour=flavour).ask("Hi", **setting)
    body = server.bodies()[0]
    assert {name: body.get(name) for name in sent} == sent


@pytest.mark.parametrize(
    ("flavour", "setting"),
    [
        ("openai", {"top_k": 5}),
        ("ollama", {"min_p": 0.1}),
        ("compatible", {"repetition_penalty": 1.1}),
        ("llama-cpp-python", {"ignore_end": True}),
        ("openai", {"think": True}),
        ("vllm", {"top_logprobs": 50}),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(
    server: ScriptedServer, opened: Callable[..., Model], flavour: str, setting: dict
) -> None:
    server.chat(said("ok"))
    model = opened(flavour=flavour)
    with pytest.raises(UnsupportedError, match=next(iter(setting))):
        model.ask("Hi", **setting)
    assert server.bodies() == []


def test_a_schema_in_both_forms(server: ScriptedServer, opened: Callable[..., Model]) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    server.chat(said('{"n": 1}'))
    opened(flavour="vllm").ask("Hi", schema=schema)
    opened(flavour="llama-cpp-python").ask("Hi", schema=schema)
    strict, loose = (body["response_format"] for body in server.bodies())
    assert strict["json_schema"]["schema"] == schema
    assert strict["json_schema"]["strict"] is True
    assert loose == {"type": "json_object", "schema": schema}


def test_a_server_that_counts_nothing_is_asked_without_counting(
    server: ScriptedServer, opened: Callable[..., Model]
) -> None:
    refusal = {"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs"}]}
    server.chat([json_answer(refusal, 422), said("ok", usage=None)])
    model = opened()
    assert model.ask("Hi").text == "ok"
    assert model.ask("Again").usage is None
    assert ["stream_options" in body for body in server.bodies()] == [True, False, False]


def test_an_older_server_is_asked_without_what_it_does_not_know(
    server: ScriptedServer, opened: Callable[..., Model]
) -> None:
    refusal = {"error": {"message": "Unknown reasoning format: auto", "code": 500}}
    server.chat([json_answer(refusal, 500), said("ok")])
    model = opened(flavour="llama-server")
    assert [model.ask("Hi").text for _ in range(2)] == ["ok", "ok"]
    assert ["reasoning_format" in body for body in server.bodies()] == [True, False, False]


def test_extra_reaches_the_body(server: ScriptedServer, opened: Callable[..., Model]) -> None:
    server.chat(said("ok"))
    opened(extra={"top_k": 7, "service_tier": "flex"}).ask("Hi")
    assert json.dumps(server.bodies()[0]).count("flex") == 1
    assert server.bodies()[0]["top_k"] == 7


def test_images_travel_as_data_urls(server: ScriptedServer, opened: Callable[..., Model]) -> None:
    server.chat(said("A cat."))
    opened().ask([{"role": "user", "content": "What is it?", "images": [Image(PNG)]}])
    parts = server.bodies()[0]["messages"][0]["content"]
    assert parts[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert parts[1] == {"type": "text", "text": "What is it?"}
