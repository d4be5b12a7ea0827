"""Thinking and tool calls told apart from the answer, however the text is cut into tokens."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_models import random_model, tokenizer

from workbench.catalog import Card
from workbench.engines.base import Power
from workbench.engines.thinking import Divider, Format, Parts, format_of
from workbench.engines.transformers_session import TransformersSession
from workbench.messages import Message, Reply, Sampling, ToolCall
from workbench.planning import Plan

THINK = Format(tags=("<think>", "</think>"))
QWEN = "{% if tools %}<tool_call>{% endif %}{{ '</think>' }}"
HARMONY = "<|start|>{{ tools }}<|channel|>analysis<|message|>"
MISTRAL = "[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS]"
LLAMA = '{{ tools }} Respond with {"name": name, "parameters": values} <|python_tag|>'
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def parted(divider: Divider, pieces: list[str]) -> Parts:
    """Feed the pieces and join what comes out."""
    whole = Parts()
    for found in [*map(divider.feed, pieces), divider.finish()]:
        whole.text += found.text
        whole.thinking += found.thinking
        whole.calls += found.calls
    return whole


def cut(text: str, places: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[one:two] for one, two in itertools.pairwise(edges)]


@pytest.mark.parametrize(
    ("said", "thinking", "text"),
    [
        ("<think>\nTwo.\n</think>\n\nIt is 2.", "\nTwo.\n", "\n\nIt is 2."),
        ("\n <think>a</think>b", "a", "\n b"),
        ("<think></think>b", "", "b"),
        ("no thoughts", "", "no thoughts"),
        ("<thin air", "", "<thin air"),
        ("<think>never closed </thin", "never closed </thin", ""),
        ("a <think>b</think>", "", "a <think>b</think>"),
        ("<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
        ("<think>a <think> b</think>c", "a <think> b", "c"),
        ("", "", ""),
        ("<think", "", "<think"),
    ],
)
def test_the_thinking_part_is_told_apart_wherever_it_is_cut(
    said: str, thinking: str, text: str
) -> None:
    for pieces in ([said], list(said), [said[:3], said[3:]]):
        found = parted(Divider(THINK), pieces)
        assert (found.thinking, found.text, found.calls) == (thinking, text, [])


def test_a_thinking_part_that_the_prompt_opened() -> None:
    for said, thinking, text in (("a</think>b", "a", "b"), ("never", "never", "")):
        found = parted(Divider(THINK, inside=True), list(said))
        assert (found.thinking, found.text) == (thinking, text)


def test_what_is_certain_is_not_held_back() -> None:
    divider = Divider(THINK)
    assert divider.feed("<think>abc").thinking == "abc"
    assert divider.feed("</thi").thinking == ""
    assert divider.feed("s").thinking == "</this"
    assert not divider.is_over
    assert divider.feed("</think>d").text == "d"
    assert divider.is_over


@given(
    st.lists(st.sampled_from([*"ab<>/{}\n ", "<think>", "</think>", "think", "<tool_call>",
                              "</tool_call>", '{"name": "f", "arguments": {}}'])),
    st.lists(st.integers(0, 400)),
    st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_no_cut_changes_what_is_found(
    words: list[str], places: list[int], tools: bool, inside: bool
) -> None:
    said = "".join(words)
    form = format_of(QWEN)
    assert form is not None
    whole = parted(Divider(form, tools=tools, inside=inside), [said])
    assert parted(Divider(form, tools=tools, inside=inside), cut(said, places)) == whole
    if not tools:  # nothing is lost or doubled: only the two tags may be missing
        opened = said.lstrip().startswith("<think>") and not inside
        rest = said.replace("<think>", "", 1) if opened else said
        if opened or inside:
            rest = rest.replace("</think>", "", 1)
            space = said[: len(said) - len(said.lstrip())] if opened else ""
            assert space + whole.thinking + whole.text.removeprefix(space) == rest
        else:
            assert whole.text == said


ARGUMENTS = '{"city": "Kyōto", "days": 3}'
ONE = '{"name": "weather", "arguments": ' + ARGUMENTS + "}"


@pytest.mark.parametrize(
    ("template", "said", "text", "names"),
    [
        (QWEN, f"Let me see.\n<tool_call>\n{ONE}\n</tool_call>", "Let me see.\n", ["weather"]),
        (
            QWEN,
            f"<tool_call>{ONE}</tool_call>\n<tool_call>{ONE}</tool_call>",
            "\n",
            ["weather"] * 2,
        ),
        (QWEN, f"<tool_call>{ONE}", "", ["weather"]),
        (QWEN, "<tool_call>{'name'</tool_call> x", "<tool_call>{'name'</tool_call> x", []),
        (QWEN, "<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", []),
        (
            QWEN,
            "<tool_call>\n<function=weather>\n<parameter=city>\nKyōto\n</parameter>\n"
            "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
            "",
            ["weather"],
        ),
        (MISTRAL, f"[TOOL_CALLS][{ONE}, {ONE}]", "", ["weather"] * 2),
        (MISTRAL, f"Hm.[TOOL_CALLS]weather[ARGS]{ARGUMENTS}", "Hm.", ["weather"]),
        (
            MISTRAL,
            f"[TOOL_CALLS]weather[CALL_ID]abc123xyz[ARGS]{ARGUMENTS}[TOOL_CALLS]weather{ARGUMENTS}",
            "",
            ["weather"] * 2,
        ),
        (MISTRAL, "[TOOL_CALLS]weather[ARGS]{", "[TOOL_CALLS]weather[ARGS]{", []),
        (LLAMA, ONE.replace("arguments", "parameters"), "", ["weather"]),
        (LLAMA, f"<|python_tag|>{ONE}; {ONE}", "", ["weather"] * 2),
        (LLAMA, '{"an": "answer"}', '{"an": "answer"}', []),
        (LLAMA, f"I say {ONE}", f"I say {ONE}", []),
        (
            HARMONY,
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary"
            f" to=functions.weather <|constrain|>json<|message|>{ARGUMENTS}<|call|>",
            "",
            ["weather"],
        ),
        (
            HARMONY,
            f"<|start|>assistant to=functions.weather<|channel|>commentary<|message|>{ARGUMENTS}",
            "",
            ["weather"],
        ),
    ],
)
def test_calls_are_whole_and_what_is_no_call_stays_text(
    template: str, said: str, text: str, names: list[str]
) -> None:
    form = format_of(template)
    assert form is not None
    for pieces in ([said], list(said), [said[:-4], said[-4:]]):
        found = parted(Divider(form, tools=True, number=77), pieces)
        assert found.text == text
        assert [call.name for call in found.calls] == names
        for call in found.calls:
            assert call.values() == {"city": "Kyōto", "days": 3}
        assert len({call.id for call in found.calls}) == len(names)
        assert all(len(call.id) == 9 and call.id.isalnum() for call in found.calls)


def test_without_tools_calls_stay_text() -> None:
    form = format_of(QWEN)
    assert form is not None
    said = f"<think>a</think><tool_call>{ONE}</tool_call>"
    found = parted(Divider(form), list(said))
    assert (found.thinking, found.text, found.calls) == ("a", said[len("<think>a</think>") :], [])


@pytest.mark.parametrize(
    ("said", "thinking", "text"),
    [
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b"
         "<|return|>", "a", "b"),
        ("<|channel|>final<|message|>b", "", "b"),
        ("<|channel|>commentary<|message|>plan<|end|>", "", "plan"),
        ("<|channel|>analysis<|message|>a", "a", ""),
        ("plain text", "", "plain text"),
        ("<|channel|>fin", "", "<|channel|>fin"),
        ("<|channel|>final<|message|>a <|b|> c", "", "a <|b|> c"),
    ],
)  # fmt: skip
def test_channels_are_told_apart(said: str, thinking: str, text: str) -> None:
    form = format_of(HARMONY)
    assert form is not None
    for pieces in ([said], list(said)):
        found = parted(Divider(form), pieces)
        assert (found.thinking, found.text) == (thinking, text)


def test_plain_templates_have_no_marks() -> None:
    for plain in (None, "", tokenizer().chat_template, "{{ tools }}"):
        assert format_of(plain) is None


# In a session

CHAT = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }} "
    "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments | tojson }}"
    "</tool_call>{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>"
    "assistant {% if enable_thinking is defined and not enable_thinking %}<think></think>"
    "{% else %}<think>{% endif %}{% endif %}"
)


def session_with(template: str, marks: list[str] = ()) -> TransformersSession:  # type: ignore[assignment]
    """A session whose tokenizer has this template, and these marks as control tokens."""
    own = copy.deepcopy(tokenizer())
    own.chat_template = template
    if marks:
        own.add_special_tokens({"extra_special_tokens": list(marks)})
    plan = Plan(card=Card(id="marked"), engine="transformers", context=2048)
    return TransformersSession(random_model("llama"), own, plan)


def saying(session: TransformersSession, said: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the session sample this text."""
    ids = session.tokenize(said)

    def tokens(prompt: list[int], sampling: Sampling) -> Iterator[int]:
        yield from [*ids, 2]

    monkeypatch.setattr(session, "_tokens", tokens)
    return ids


def reply_of(session: TransformersSession, **settings: Any) -> Reply:
    turns = [Message("user", "What is the weather?")]
    return Reply.joined(session.stream(turns, Sampling(**settings)))


def test_a_session_divides_what_it_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_with(CHAT)
    assert {Power.THINKING, Power.TOOLS} <= session.powers
    said = f"I wonder.</think>Let me see. <tool_call>{ONE}</tool_call>"
    ids = saying(session, said, monkeypatch)
    found = reply_of(session, tools=(WEATHER,))
    assert (found.thinking, found.text) == ("I wonder.", "Let me see. ")
    assert [call.values() for call in found.tool_calls] == [{"city": "Kyōto", "days": 3}]
    assert found.finish_reason == "tool_calls"
    assert found.token_ids == (*ids, 2)
    plain = reply_of(session)
    assert plain.text == f"Let me see. <tool_call>{ONE}</tool_call>"
    assert plain.finish_reason == "stop"
    quiet = reply_of(session, think=False)  # the prompt closes the thinking part itself
    assert (quiet.thinking, quiet.text) == ("", said)


def test_marks_that_are_control_tokens_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"]
    session = session_with(CHAT.replace("<think>", "<|channel|><|message|>"), marks)
    said = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
    )
    saying(session, said, monkeypatch)
    found = reply_of(session)
    assert (found.thinking, found.text) == ("Hm.", "Yes.")
    whole = Reply.joined(session.complete([5, 6], Sampling()))
    assert whole.text == "analysisHm.assistantfinalYes."  # a raw prompt's reply is not divided


def test_templates_get_tools_the_wish_to_think_and_arguments_as_values() -> None:
    session = session_with(CHAT)
    turns = [
        Message("user", "Hi."),
        Message("assistant", "", tool_calls=(ToolCall(name="weather", arguments=ARGUMENTS),)),
        Message("tool", "sunny", tool_call_id="c00000001"),
    ]
    ids = session.prompt_ids_for(turns, Sampling(tools=(WEATHER,), think=False))
    text = session.detokenize(ids).decode()
    assert text.startswith("[{")
    assert json.dumps(WEATHER)[2:20] in text
    assert text.endswith("<think></think>")
    called = text.split("<tool_call>")[1].split("</tool_call>")[0]
    assert json.loads(called) == {"city": "Kyōto", "days": 3}
    assert session.detokenize(session.prompt_ids(turns)).decode().endswith("assistant <think>")


def test_batches_divide_as_streams_do(monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_with(CHAT)
    turns = [[Message("user", "Hi.")], [Message("user", "What is the weather in Kyoto?")]]
    sampling = Sampling(max_tokens=12, ignore_end=True)
    singles = [Reply.joined(session.stream(each, sampling)) for each in turns]
    batch = session.ask_many(turns, sampling)
    assert [reply.thinking for reply in batch] == [reply.thinking for reply in singles]
    assert all(reply.thinking and not reply.text for reply in batch)  # it was never closed


def test_models_without_marks_stream_untouched() -> None:
    session = session_with(str(tokenizer().chat_template))
    assert session.form is None
    assert not {Power.THINKING, Power.TOOLS} & session.powers
    pieces = session.stream([Message("user", "Hi.")], Sampling(max_tokens=3))
    assert pieces.__name__ == "pieces"  # type: ignore[attr-defined]
    pieces.close()  # type: ignore[attr-defined]
