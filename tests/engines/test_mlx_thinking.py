"""Thinking, tool calls and the template under the engine mlx, here and in a child."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_copy import tiny_copy

import workbench as wb
from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.messages import Message, Sampling, ToolCall

pytest.importorskip("mlx.core")
CHAT = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }} "
    "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments | tojson }}"
    "</tool_call>{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>"
    "assistant {% if enable_thinking is defined and not enable_thinking %}<think></think>"
    "{% else %}<think>{% endif %}{% endif %}"
)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = '{"name": "weather", "arguments": {"city": "Kyōto"}}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny_copy(tmp_path_factory.mktemp("models"))
    (made / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def thinking(folder: Path) -> Iterator[Model]:
    with wb.load(folder, engine="mlx", dtype="fp32") as model:
        yield model


def test_a_reply_is_divided(thinking: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {Power.THINKING, Power.TOOLS} <= thinking.powers
    said = f"I wonder.</think>Let me see. <tool_call>{CALL}</tool_call>"
    ids = thinking.tokenize(said)

    def tokens(prompt: list[int], sampling: Sampling) -> Iterator[int]:
        yield from [*ids, 2]

    monkeypatch.setattr(thinking._session, "_tokens", tokens)
    found = thinking.ask("What is the weather?", tools=(WEATHER,))
    assert (found.thinking, found.text) == ("I wonder.", "Let me see. ")
    assert [call.values() for call in found.tool_calls] == [{"city": "Kyōto"}]
    assert found.finish_reason == "tool_calls"
    assert found.token_ids == (*ids, 2)
    quiet = thinking.ask("What is the weather?", think=False)
    assert (quiet.thinking, quiet.text) == ("", said)


def test_the_template_gets_tools_the_wish_and_arguments_as_values(thinking: Model) -> None:
    turns = [
        Message("user", "Hi."),
        Message("assistant", "", tool_calls=(ToolCall(name="weather", arguments='{"city": "K"}'),)),
        Message("tool", "sunny", tool_call_id="c00000001"),
    ]
    session: Any = thinking._session
    ids = session.prompt_ids_for(turns, Sampling(tools=(WEATHER,), think=False))
    text = thinking.detokenize(ids).decode()
    assert text.startswith("[{")
    assert text.endswith("<think></think>")
    called = text.split("<tool_call>")[1].split("</tool_call>")[0]
    assert json.loads(called) == {"city": "K"}


def test_batches_divide_as_single_asks_do(thinking: Model) -> None:
    settings: dict[str, Any] = {"max_tokens": 12, "ignore_end": True}
    questions = ["Hi.", "What is the weather in Kyoto?"]
    singles = [thinking.ask(question, **settings) for question in questions]
    many = thinking.ask_many(questions, **settings)
    assert [reply.thinking for reply in many] == [reply.thinking for reply in singles]
    assert all(reply.thinking and not reply.text for reply in many)  # it was never closed


def test_the_template_is_told_from_a_child_too(folder: Path, thinking: Model) -> None:
    assert thinking.template == CHAT
    with wb.load(folder, engine="mlx", dtype="fp32", isolate=True) as there:
        assert there.template == CHAT
        assert there.powers == thinking.powers
