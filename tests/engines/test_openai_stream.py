"""Replies of OpenAI-compatible servers: however they are cut, they come out whole."""

from __future__ import annotations

import threading
from collections.abc import Callable

import openai_parts
import pytest
from openai_parts import TEXT
from openai_server import (
    Answer,
    Cut,
    Hold,
    ScriptedServer,
    chunk,
    event,
    json_answer,
    said,
)

import workbench as wb
from workbench.engines.model import Model
from workbench.engines.sse import EventParser
from workbench.errors import EngineError
from workbench.messages import ToolCall, Usage

server, opened = openai_parts.server, openai_parts.models


# Events


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_events_are_whole_however_the_bytes_are_cut(end: str, size: int) -> None:
    lines = [
        ": ping", "", "data: 猫🐈", "", "event: error", "data: a", "data: b", "",
        "data:no space", "id: 7", "retry: 9", "unknown: x", "data", "", "data: [DONE]", "", "",
    ]  # fmt: skip
    raw = ("\ufeff" + end.join(lines)).encode()
    parser = EventParser()
    found = [one for at in range(0, len(raw), size) for one in parser.feed(raw[at : at + size])]
    found += parser.finish()
    assert [(one.kind, one.data) for one in found] == [
        ("message", "猫🐈"),
        ("error", "a\nb"),
        ("message", "no space\n"),
        ("message", "[DONE]"),
    ]


@pytest.mark.parametrize("size", [1, 5, 64, 100_000])
def test_a_reply_is_the_same_however_the_network_cuts_it(
    server: ScriptedServer, opened: Callable[..., Model], size: int
) -> None:
    whole = said(*TEXT, usage=(5, 30))
    raw = b"".join(part for part in whole.parts if isinstance(part, bytes))
    raw = raw.replace(b"\n\n", b"\n\n: ping\n\n")
    server.chat(Answer([raw[at : at + size] for at in range(0, len(raw), size)]))
    reply = opened().ask("Greet.")
    assert reply.text == TEXT
    assert reply.usage == Usage(prompt_tokens=5, completion_tokens=30)
    assert reply.finish_reason == "stop"


def test_lines_end_in_any_way_and_escapes_may_be_cut_in_half(
    server: ScriptedServer, opened: Callable[..., Model]
) -> None:
    halves = '{"choices": [{"index": 0, "delta": {"content": "%s"}}]}'
    parts = [
        event(chunk(content="a"), "\r\n\r\n"),
        b"data: " + (halves % r"\ud83d").encode() + b"\r\r",
        b"data: " + (halves % r"\udc08!").encode() + b"\n\n",
        event(chunk("length"), "\n\n"),
        b"data: [DONE]",
    ]
    server.chat(Answer(parts))
    pieces = list(opened().stream("Hi"))
    assert "".join(piece.text for piece in pieces) == "a🐈!"
    for piece in pieces:
        piece.text.encode()  # no half of a character anywhere
    assert pieces[-1].finish_reason == "length"


def test_a_server_that_does_not_stream_is_read_whole(
    server: ScriptedServer, opened: Callable[..., Model]
) -> None:
    choice = {"index": 0, "message": {"content": TEXT}, "finish_reason": "stop"}
    counts = {"prompt_tokens": 1, "completion_tokens": 2}
    server.chat(json_answer({"choices": [choice], "usage": counts}))
    reply = opened().ask("Hi")
    assert (reply.text, reply.usage) == (TEXT, Usage(prompt_tokens=1, completion_tokens=2))


# What a chunk may carry


def test_thinking_is_told_apart_whatever_the_field(
    server: ScriptedServer, opened: Callable[..., Model]
) -> None:
    parts = [
        chunk(reasoning_content="One ", reasoning="One "),
        chunk(reasoning="two "),
        chunk(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "three"}]}]),
        chunk(content=[{"type": "text", "text": "Four"}]),
        chunk("stop", content="!"),
    ]
    server.chat(Answer([*map(event, parts), b"data: [DONE]\n\n"]))
    reply = opened().ask("Count.")
    assert (reply.thinking, reply.text) == ("One two three", "Four!")
    marked = [chunk(reasoning="<think>One"), chunk(reasoning="<think>"), chunk("stop", content="!")]
    server.chat(Answer([*map(event, marked), b"data: [DONE]\n\n"]))
    reply = opened().ask("Count.")
    assert (reply.thinking, reply.text) == ("One<think>", "!"), "vLLM leaves the first mark there"


@pytest.mark.parametrize("size", [1, 3, 100])
def test_thinking_between_tags_is_told_apart_too(
    server: ScriptedServer, opened: Callable[..., Model], size: int
) -> None:
    text = "<think>Is it 猫? Yes.</think>Cat, a <think> of its own."
    server.chat(said(*(text[at : at + size] for at in range(0, len(text), size))))
    reply = opened().ask("Go")
    assert (reply.thinking, reply.text) == ("Is it 猫? Yes.", "Cat, a <think> of its own.")
    server.chat(said("<think>never closed"))
    assert opened().ask("Go").thinking == "never closed"
    server.chat(said(" <", "thin", " air"))
    assert opened().ask("Go").text == " <thin air"


def test_tool_calls_come_whole_and_in_order(
    server: ScriptedServer, opened: Callable[..., Model]
) -> None:
    def part(index: int | None, arguments: str | dict[str, int], **more: object) -> dict:
        call: dict[str, object] = {"function": {"arguments": arguments}, **more}
        if index is not None:
            call["index"] = index
        return call

    def named(name: str, arguments: object, **more: object) -> dict:
        return {"function": {"name": name, "arguments": arguments}, **more}

    parts = [
        chunk(tool_calls=[named("add", "", index=0, id="a")]),
        chunk(tool_calls=[part(0, '{"x": '), named("sub", '{"y"', index=1, id="b")]),
        chunk(tool_calls=[part(1, ": 2}"), part(0, '"猫"}')]),
        chunk(tool_calls=[named("whole", {"z": 3}, index=0, id="c")]),  # all numbered 0
        chunk("stop"),
    ]
    server.chat(Answer([*map(event, parts), b"data: [DONE]\n\n"]))
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    reply = opened().ask("Add.", tools=(tool,))
    assert reply.tool_calls == (
        ToolCall(name="add", arguments='{"x": "猫"}', id="a"),
        ToolCall(name="sub", arguments='{"y": 2}', id="b"),
        ToolCall(name="whole", arguments='{"z": 3}', id="c"),
    )
    assert reply.finish_reason == "tool_calls"
    assert server.bodies()[0]["tools"] == [tool]


def test_log_probabilities_of_both_forms(
    server: ScriptedServer, opened: Callable[..., Model]
) -> None:
    def told(token: str, value: float, **more: object) -> dict:
        return {"token": token, "logprob": value, "bytes": list(token.encode()), **more}

    content = [
        {**told("A", -0.1, id=7), "top_logprobs": [told("A", -0.1, id=7), told("B", -2.5, id=8)]},
        {**told("猫", -0.2), "top_logprobs": [told("猫", -0.2)]},
    ]
    new = chunk("stop", content="A猫")
    new["choices"][0]["logprobs"] = {"content": content}
    server.chat(Answer([event(new), b"data: [DONE]\n\n"]))
    model = opened()
    reply = model.ask("Hi", top_logprobs=2)
    assert [value for value, _ in reply.logprobs] == [-0.1, -0.2]
    best = reply.logprobs[0][1]
    assert [(each.token_id, each.text, each.logprob) for each in best] == [
        (7, "A", -0.1),
        (8, "B", -2.5),
    ]
    assert reply.text == "A猫"
    assert server.bodies()[0]["top_logprobs"] == 2

    old = {"tokens": ["x"], "token_logprobs": [-1.0], "top_logprobs": [{"y": -3.0, "x": -1.0}]}
    choice = {"index": 0, "text": "x", "logprobs": old, "finish_reason": "length"}
    server.on("/v1/completions", Answer([event({"choices": [choice]}), b"data: [DONE]\n\n"]))
    pieces = list(model.complete("Go", top_logprobs=2))
    assert pieces[0].logprob == -1.0
    assert [each.text for each in pieces[0].top] == ["x", "y"]


def test_token_ids_are_asked_for_and_kept(
    server: ScriptedServer, opened: Callable[..., Model]
) -> None:
    def ids(*found: int, finish: str | None = None, **delta: str) -> dict:
        one = chunk(finish, **delta)
        one["choices"][0]["token_ids"] = list(found)
        return one

    server.models("small", owned_by="vllm", max_model_len=100)
    parts = [ids(5, content=""), ids(6, 7, content="猫"), ids(2, finish="stop")]
    server.chat(Answer([*map(event, parts), b"data: [DONE]\n\n"]))
    reply = opened().ask("Hi")
    assert (reply.text, reply.token_ids) == ("猫", (5, 6, 7, 2))
    assert server.bodies()[0]["return_token_ids"] is True


def test_a_stop_string_holds_where_the_server_ignores_it(
    server: ScriptedServer, opened: Callable[..., Model]
) -> None:
    hold = Hold()
    texts = [event(chunk(content=text)) for text in ("One. E", "N", "D and more")]
    server.chat(Answer([*texts, hold]))
    reply = opened().ask("Hi", stop="END")
    assert (reply.text, reply.finish_reason) == ("One. ", "stop")
    assert server.bodies()[0]["stop"] == ["END"]
    assert server.hung_up.wait(5), "the server goes on with what nobody reads"


def test_a_reply_may_be_empty(server: ScriptedServer, opened: Callable[..., Model]) -> None:
    server.chat(said(usage=(4, 1)))
    reply = opened().ask("Hi")
    assert (reply.text, reply.finish_reason) == ("", "stop")
    assert reply.timings is not None
    assert reply.timings.ttft <= reply.timings.total


# Streams that end badly


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([event({"error": {"message": "out of memory"}})], "out of memory"),
        ([event({"error": "Unauthorized"})], "Unauthorized"),
        ([b'error: {"code": 500, "message": "slot gone"}\n\n'], "slot gone"),
        ([b'event: error\ndata: {"message": "too much"}\n\n'], "too much"),
        ([Cut()], "hung up in the middle"),
        ([b'data: {"choices": [{"ind', Cut()], "hung up in the middle"),
        ([], "hung up in the middle"),
        ([b'data: {"choices": [{"ind'], "hung up in the middle"),
        ([b"data: <html>\n\n"], "no JSON"),
        ([event([1, 2])], "no chunk"),
        ([event(chunk("content_filter")), b"data: [DONE]\n\n"], "content_filter"),
    ],
)
def test_a_reply_that_breaks_off_says_where_and_why(
    server: ScriptedServer, opened: Callable[..., Model], parts: list, reason: str
) -> None:
    server.chat(Answer([event(chunk(content="As far as 猫")), *parts]))
    pieces = []
    with pytest.raises(EngineError, match=reason) as caught:
        pieces.extend(opened().stream("Go"))
    assert "As far as 猫" in str(caught.value)
    assert len(server.bodies()) == 1, "a reply that was streamed in part is never asked for again"


def test_the_rest_may_lack_once_the_reply_has_ended(
    server: ScriptedServer, opened: Callable[..., Model]
) -> None:
    server.chat(Answer([event(chunk(content="All.")), event(chunk("stop")), Cut()]))
    reply = opened().ask("Go")
    assert (reply.text, reply.finish_reason, reply.usage) == ("All.", "stop", None)


def test_silence_ends_in_an_error(server: ScriptedServer, opened: Callable[..., Model]) -> None:
    server.chat(Answer([event(chunk(content="Well")), Hold()]))
    with pytest.raises(EngineError, match=r"silent for 0\.2 seconds.*") as caught:
        opened(silence=0.2).ask("Go")
    assert "Well" in str(caught.value)
    server.chat(Answer([Hold()]))
    with pytest.raises(EngineError, match=r"silent for 0\.3 seconds"):
        opened(first=0.3).ask("Go")


def test_pings_are_signs_of_life(server: ScriptedServer, opened: Callable[..., Model]) -> None:
    tick = threading.Event()
    parts = [event(chunk(content="a")), *[b": ping\n\n", Hold(tick)] * 3, event(chunk("stop"))]
    tick.set()
    server.chat(Answer([*parts, b"data: [DONE]\n\n"]))
    assert opened(silence=5.0).ask("Go").text == "a"


def test_a_page_instead_of_a_stream_is_named(
    server: ScriptedServer, opened: Callable[..., Model]
) -> None:
    server.chat(Answer([b"<html>Log in</html>"], kind="text/html"))
    with pytest.raises(EngineError, match="text/html"):
        opened().ask("Go")


# Interruption


def test_closing_a_stream_hangs_up(server: ScriptedServer, opened: Callable[..., Model]) -> None:
    server.chat(Answer([event(chunk(content="One")), Hold()]))
    stream = opened().stream("Go")
    assert next(stream).text == "One"
    assert not server.hung_up.is_set()
    stream.close()
    assert server.hung_up.wait(5)


@pytest.mark.parametrize("before", [True, False], ids=["first token", "second token"])
def test_stop_wakes_a_thread_that_waits(
    server: ScriptedServer, opened: Callable[..., Model], before: bool
) -> None:
    server.chat(Answer([*([] if before else [event(chunk(content="One"))]), Hold()]))
    model = opened()
    replies: list[wb.Reply] = []
    thread = threading.Thread(target=lambda: replies.append(model.ask("Go")))
    thread.start()
    assert server.holding.wait(5)
    model.stop()
    thread.join(5)
    assert not thread.is_alive()
    assert server.hung_up.wait(5)
    assert replies[0].finish_reason == "cancelled"


def test_closing_the_model_ends_what_runs(
    server: ScriptedServer, opened: Callable[..., Model]
) -> None:
    server.chat(Answer([event(chunk(content="One")), Hold()]))
    model = opened()
    stream = model.stream("Go")
    next(stream)
    model.close()
    assert server.hung_up.wait(5)
    with pytest.raises(EngineError, match="closed"):
        model.ask("Go")
    model.close()


# Several at once


def test_many_are_asked_at_once_and_never_mix(
    server: ScriptedServer, opened: Callable[..., Model]
) -> None:
    together = threading.Barrier(8, timeout=20)

    def answer(asked: object) -> Answer:
        question = asked.body["messages"][-1]["content"]  # type: ignore[attr-defined]
        together.wait()
        if question == "5":
            return json_answer({"error": {"message": "five is refused"}}, 400)
        return said(*(f"{question}:{part} " for part in range(20)))

    server.chat(answer)
    replies = opened(concurrent=8).ask_many([str(number) for number in range(16)])
    for number, reply in enumerate(replies):
        if number == 5:
            assert reply.finish_reason == "error"
            assert "five is refused" in reply.error
        else:
            assert reply.text == "".join(f"{number}:{part} " for part in range(20))


def test_no_more_are_asked_at_once_than_allowed(
    server: ScriptedServer, opened: Callable[..., Model]
) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def answer(_: object) -> Answer:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.02)
        with lock:
            now -= 1
        return said("ok")

    server.chat(answer)
    assert len(opened(concurrent=3).ask_many(["x"] * 12)) == 12
    assert most <= 3
