"""``model.stop()`` and Ctrl-C end ``ask_many`` between two tokens, and what is whole stays."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_models import REAL, STEP, open_model
from openai_server import Answer, Hold, ScriptedServer, chunk, event, said

import workbench as wb
from workbench.catalog import Card
from workbench.engines import batch, openai_session
from workbench.engines import child as child_module
from workbench.engines.base import Interrupted, Loading, Power
from workbench.engines.model import Model
from workbench.engines.openai import OpenAIEngine

STORY = "Tell me a story."


def counting(model: Model, at: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have the model stopped by its own step of that number; return the list of its steps."""
    session, name = model._session, STEP[model.plan.engine]
    if model.plan.engine == "mlx":
        name = "step_many"
    steps: list[int] = []
    original = getattr(session, name)

    def counted(*given: Any, **more: Any) -> Any:
        steps.append(len(steps) + 1)
        if len(steps) == at:
            model.stop()
        return original(*given, **more)

    monkeypatch.setattr(session, name, counted)
    return steps


def check_second_batch_cut(replies: list[wb.Reply], whole: wb.Reply) -> None:
    """Six times one prompt of eight tokens in batches of two, ended within the second batch."""
    assert [reply.finish_reason for reply in replies] == ["length"] * 2 + ["cancelled"] * 4
    assert [reply.token_ids for reply in replies[:2]] == [whole.token_ids] * 2
    for part in replies[2:4]:
        assert 0 < len(part.token_ids) < 8
        assert part.token_ids == whole.token_ids[: len(part.token_ids)]
        assert whole.text.startswith(part.text)
    assert [reply.text for reply in replies[4:]] == ["", ""]


@pytest.mark.parametrize("engine", ["transformers", "mlx"])
def test_a_batch_ends_between_two_tokens_and_whole_replies_stay(
    engine: str, opened: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(engine, False)
    assert Power.BATCH in model.powers
    monkeypatch.setattr(batch, "ROWS_AT_ONCE", 2)
    settings = {"max_tokens": 8, "ignore_end": True}
    whole = model.ask(STORY, **settings)
    steps = counting(model, 11, monkeypatch)  # within the second batch
    replies = model.ask_many([STORY] * 6, **settings)
    assert len(steps) == 11
    check_second_batch_cut(replies, whole)
    assert all(reply.model == model.label and not reply.error for reply in replies)
    monkeypatch.undo()
    assert model.ask(STORY, **settings).token_ids == whole.token_ids


def test_asked_one_after_another_the_rest_is_not_begun(
    opened: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened("llama.cpp", False)
    assert Power.BATCH not in model.powers
    settings = {"max_tokens": 4, "ignore_end": True}
    steps = counting(model, 6, monkeypatch)
    replies = model.ask_many([STORY] * 4, **settings)
    assert [reply.finish_reason for reply in replies] == ["length"] + ["cancelled"] * 3
    assert 0 < len(replies[1].token_ids) < 4
    assert [reply.token_ids for reply in replies[2:]] == [(), ()]
    assert len(steps) == 6
    monkeypatch.undo()
    assert model.ask(STORY, **settings).token_ids == replies[0].token_ids


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
def test_a_child_ends_what_it_answers(engine: str, opened: Callable[..., Model]) -> None:
    model = opened(engine, True)
    long = model.plan.context - 200
    replies: list[wb.Reply] = []
    thread = threading.Thread(
        target=lambda: replies.extend(
            model.ask_many([STORY] * 16, max_tokens=long, ignore_end=True)
        )
    )
    thread.start()
    time.sleep(0.5)
    model.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert {reply.finish_reason for reply in replies} <= {"cancelled", "length"}
    assert replies[-1].finish_reason == "cancelled"
    assert model.ask("What is 3 + 4?", max_tokens=8).text.startswith("3 + 4")


def test_a_server_that_is_silent_is_hung_up_on() -> None:
    with ScriptedServer().running() as server:
        plan = wb.plan(Card(id="small"), engine="openai", url=server.url, concurrent=2)

        def answer(asked: Any) -> Answer:
            question = asked.body["messages"][-1]["content"]
            if question == "long":
                return Answer([event(chunk(content="One")), Hold()])
            return said("whole")

        server.chat(answer)
        nothing = Loading(seconds=0, weight_bytes=0, rss_bytes=0)
        with Model(OpenAIEngine().open(plan), plan, loading=nothing) as model:
            replies: list[wb.Reply] = []
            thread = threading.Thread(
                target=lambda: replies.extend(model.ask_many(["x", "long", "long", "long"]))
            )
            thread.start()
            # Two at a time: the third is asked once the first is answered.
            until = time.monotonic() + 20
            while len(server.bodies()) < 3 and time.monotonic() < until:
                time.sleep(0.01)
            model.stop()
            thread.join(20)
            assert not thread.is_alive()
            reasons = [(reply.text, reply.finish_reason) for reply in replies]
            assert reasons[0] == ("whole", "stop")
            assert {reason for _, reason in reasons[1:]} == {"cancelled"}


def cut_at(model: Model, at: int, monkeypatch: pytest.MonkeyPatch, *, within: str = "step") -> None:
    """Have Ctrl-C pressed within the model's own step of that number."""
    session, name = model._session, STEP[model.plan.engine]
    if model.plan.engine == "mlx":
        name = within
    steps: list[int] = []
    original = getattr(session, name)

    def counted(*given: Any, **more: Any) -> Any:
        steps.append(len(steps) + 1)
        found = original(*given, **more)
        if len(steps) == at:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(session, name, counted)


@pytest.mark.parametrize("engine", ["transformers", "mlx"])
def test_ctrl_c_within_a_batch_has_what_was_said(
    engine: str, opened: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(engine, False)
    settings = {"max_tokens": 8, "ignore_end": True}
    whole = model.ask(STORY, **settings)
    with monkeypatch.context() as patched:
        patched.setattr(batch, "ROWS_AT_ONCE", 2)
        cut_at(model, 11, patched, within="step_many")  # within the second batch
        with pytest.raises(KeyboardInterrupt) as caught:
            model.ask_many([STORY] * 6, **settings)
    assert isinstance(caught.value, Interrupted)
    replies = caught.value.replies
    check_second_batch_cut(replies, whole)
    assert {reply.model for reply in replies} == {model.label}
    assert "2 of 6 replies are whole" in str(caught.value)
    assert not model.busy
    assert model.ask(STORY, **settings).token_ids == whole.token_ids
    assert [reply.token_ids for reply in model.ask_many([STORY] * 3, **settings)] == [
        whole.token_ids
    ] * 3


def test_ctrl_c_while_the_prompts_are_read_keeps_the_order(
    opened: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened("transformers", False)
    session = model._session
    original, seen = session.prompt_ids_for, []

    def reading(messages: Any, sampling: Any) -> list[int]:
        seen.append(messages)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(messages, sampling)

    monkeypatch.setattr(session, "prompt_ids_for", reading)
    with pytest.raises(Interrupted) as caught:
        model.ask_many(["Hi!", "x " * 4000, STORY, STORY], max_tokens=4)
    reasons = [reply.finish_reason for reply in caught.value.replies]
    assert reasons == ["cancelled", "error", "cancelled", "cancelled"]


def test_ctrl_c_one_after_another_has_the_part_too(
    opened: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened("llama.cpp", False)
    settings = {"max_tokens": 6, "ignore_end": True}
    whole = model.ask(STORY, **settings)
    with monkeypatch.context() as patched:
        cut_at(model, 10, patched)
        with pytest.raises(Interrupted) as caught:
            model.ask_many([STORY] * 4, **settings)
    replies = caught.value.replies
    assert [reply.finish_reason for reply in replies] == ["length"] + ["cancelled"] * 3
    assert replies[0].token_ids == whole.token_ids
    assert 0 < len(replies[1].token_ids) < 6
    assert whole.text.startswith(replies[1].text)
    assert [reply.token_ids for reply in replies[2:]] == [(), ()]
    assert {reply.model for reply in replies} == {model.label}
    assert not model.busy
    assert model.ask(STORY, **settings).token_ids == whole.token_ids


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
def test_ctrl_c_has_what_a_child_had_answered(
    engine: str, opened: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(engine, True)
    child = model._session._child
    before = model.ask(STORY, max_tokens=8, ignore_end=True)
    original, frames = child.answer, []

    def answer(number: int, **more: Any) -> Any:
        frames.append(number)
        if len(frames) == 4 and engine == "llama.cpp":  # one frame a piece
            raise KeyboardInterrupt
        if len(frames) == 1 and engine == "transformers":  # one frame for all
            time.sleep(1.5)
            raise KeyboardInterrupt
        return original(number, **more)

    long = model.plan.context - 200
    with monkeypatch.context() as patched:
        patched.setattr(child, "answer", answer)
        with pytest.raises(Interrupted) as caught:
            model.ask_many([STORY] * 16, max_tokens=long, ignore_end=True)
    replies = caught.value.replies
    assert [reply.finish_reason for reply in replies] == ["cancelled"] * 16
    assert replies[0].token_ids
    shared = min(len(replies[0].token_ids), 8)
    assert replies[0].token_ids[:shared] == before.token_ids[:shared]
    assert (not replies[1].token_ids) == (engine == "llama.cpp")
    assert model.ask(STORY, max_tokens=8, ignore_end=True).token_ids == before.token_ids


def test_a_second_ctrl_c_does_not_wait_for_the_child(
    opened: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened("transformers", True)

    def answer(number: int, **more: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(model._session._child, "answer", answer)
        with pytest.raises(Interrupted) as caught:
            model.ask_many([STORY] * 2, max_tokens=1500, ignore_end=True)
    assert [reply.text for reply in caught.value.replies] == ["", ""]
    assert model.ask("What is 3 + 4?", max_tokens=8).text.startswith("3 + 4")


def test_a_child_that_hands_nothing_over_is_not_waited_for(
    opened: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened("transformers", True)
    child = model._session._child
    original, frames = child.answer, []

    def answer(number: int, **more: Any) -> Any:
        frames.append(number)
        if len(frames) == 1:
            raise KeyboardInterrupt
        return original(number, **more)

    tell = child._tell
    with monkeypatch.context() as patched:
        patched.setattr(child_module, "_LAST_SECONDS", 0.2)
        patched.setattr(child_module, "_LOOK_SECONDS", 0.1)
        patched.setattr(child, "answer", answer)
        patched.setattr(
            child, "_tell", lambda what, number: what == "interrupt" or tell(what, number)
        )
        with pytest.raises(Interrupted):
            model.ask_many([STORY] * 16, max_tokens=1500, ignore_end=True)
    assert model.ask("What is 3 + 4?", max_tokens=8).text.startswith("3 + 4")


def test_ctrl_c_hangs_up_on_a_silent_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer().running() as server:
        plan = wb.plan(Card(id="small"), engine="openai", url=server.url, concurrent=2)

        def answer(asked: Any) -> Answer:
            if asked.body["messages"][-1]["content"] == "long":
                return Answer([event(chunk(content="One")), Hold()])
            return said("whole")

        server.chat(answer)
        nothing = Loading(seconds=0, weight_bytes=0, rss_bytes=0)
        with Model(OpenAIEngine().open(plan), plan, loading=nothing) as model:
            original, pressed = openai_session.wait, []

            def wait(asked: Any, timeout: float) -> Any:
                if server.holding.is_set() and not pressed:
                    pressed.append(True)
                    raise KeyboardInterrupt
                return original(asked, timeout=timeout)

            monkeypatch.setattr(openai_session, "wait", wait)
            with pytest.raises(Interrupted) as caught:
                model.ask_many(["x", "long", "long", "long"])
            replies = caught.value.replies
            assert (replies[0].text, replies[0].finish_reason) == ("whole", "stop")
            assert [reply.finish_reason for reply in replies[1:]] == ["cancelled"] * 3
            assert "One" in {reply.text for reply in replies[1:]}
            assert model.ask("x").text == "whole"


SCRIPT = """
import os, signal, sys, threading
import workbench as wb
from workbench.engines import {module}
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits "ignored"
with wb.load("tiny-chat", threads=1, isolate={isolate}, **{settings}) as model:
    before = model.ask("What is 3 + 4?", max_tokens=8).token_ids
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        model.ask_many(["Tell me a story."] * 64, max_tokens=1500, ignore_end=True)
        print("not interrupted")
    except KeyboardInterrupt as cut:
        print("interrupted", len(cut.replies), cut.replies[-1].finish_reason)
    print(model.ask("What is 3 + 4?", max_tokens=8).token_ids == before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
def test_ctrl_c_ends_many_and_the_model_lives_on(
    engine: str, isolate: bool, f32: Path, tmp_path: Path
) -> None:
    settings = dict(REAL[engine])
    source = SCRIPT.format(module="model", isolate=isolate, settings=settings)
    if engine == "llama.cpp":
        source = source.replace('"tiny-chat", threads=1', f'"{f32}", threads=1')
        source = source.replace("'quantization': 'F32'", "'context': 2048")
    found = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "WORKBENCH_HOME": str(tmp_path)},
    )
    assert found.stdout.split() == ["interrupted", "64", "cancelled", "True"], found.stderr


def test_closing_a_model_ends_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model("transformers")
    began = threading.Event()
    session = model._session
    original = session.step

    def told(*given: Any, **more: Any) -> Any:
        began.set()
        return original(*given, **more)

    monkeypatch.setattr(session, "step", told)
    replies: list[wb.Reply] = []
    thread = threading.Thread(
        target=lambda: replies.extend(
            model.ask_many([STORY] * 16, max_tokens=1500, ignore_end=True)
        )
    )
    thread.start()
    assert began.wait(60)
    model.close()
    thread.join(60)
    assert {reply.finish_reason for reply in replies} == {"cancelled"}
    assert model.closed
