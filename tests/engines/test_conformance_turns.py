"""Conformance: interruption, one request after another or sixteen at once, and errors within."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conformance import (
    QUESTIONS,
    SUM,
    SUMS,
    Form,
    greedy,
    needs,
    same_or_near,
    without,
)
from engine_models import AHEAD, STEP, open_model

from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.errors import EngineError
from workbench.messages import Reply

LONG = 400
"""Tokens of a reply that is interrupted after its first one."""


# Interruption


def test_a_closed_stream_stops_the_model_and_leaves_it_usable(each: Model) -> None:
    before = each.ask(SUM, max_tokens=16)
    stream = each.stream("Greet.", max_tokens=60)
    first = next(stream)
    stream.close()
    assert first.finish_reason is None
    assert list(stream) == []
    after = each.ask(SUM, max_tokens=16)
    assert (after.text, after.token_ids) == (before.text, before.token_ids)


def test_closing_stops_between_two_tokens(here: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    session = here._session
    name = STEP[here.plan.engine]
    steps, original = [], getattr(session, name)

    def counted(*args, **more):
        steps.append(1)
        return original(*args, **more)

    monkeypatch.setattr(session, name, counted)
    stream = here.stream("Tell me a story.", max_tokens=60)
    for _ in range(3):
        next(stream)
    stream.close()
    # the prompt and two tokens, and what the engine computes ahead
    assert len(steps) == 3 + AHEAD[here.plan.engine]


@pytest.mark.parametrize("engine", list(STEP))
def test_closing_stops_a_child_too(engine: str, opened: Callable[..., Model]) -> None:
    """A child does not wait for its reader, so it is a few tokens ahead; then it stops."""
    model = opened(engine, True)
    child = model._session._child
    child.request("call", function="engine_models:count_steps", arguments={"engine": engine})
    stream = model.stream("Tell me a story.", max_tokens=2 * LONG, ignore_end=True)
    next(stream)
    stream.close()
    taken = [
        child.request("call", function="engine_models:steps_taken", arguments={}) for _ in range(2)
    ]
    assert 0 < taken[0] == taken[1] < 2 * LONG
    assert model.ask(SUM, max_tokens=3).text


@pytest.mark.vllm
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["vllm", "vllm_at_url"])
def test_closing_frees_a_vllm(way: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(way)
    server = request.getfixturevalue("vllm")._session.server.command

    def metric(name: str) -> float:
        asked = urllib.request.Request(
            f"{server.url}/metrics", headers={"Authorization": f"Bearer {server.key}"}
        )
        with urllib.request.urlopen(asked, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))

    before = metric("vllm:generation_tokens_total")
    stream = model.stream("Tell me a story.", max_tokens=LONG, ignore_end=True)
    next(stream)
    stream.close()
    until = time.monotonic() + 60
    while metric("vllm:num_requests_running") and time.monotonic() < until:
        time.sleep(0.05)
    assert metric("vllm:num_requests_running") == 0
    assert metric("vllm:generation_tokens_total") - before < LONG


@pytest.mark.parametrize("way", ["llama_server_model", "llama_server_at_url"])
def test_closing_frees_the_slot_of_a_llama_server(way: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(way)

    def busy() -> list[dict[str, Any]]:
        slots = model.raw.json("GET", "/slots", at_root=True)
        return [slot for slot in slots if slot["is_processing"]]

    stream = model.stream("Tell me a story.", max_tokens=LONG, ignore_end=True)
    next(stream)
    assert len(busy()) == 1
    stream.close()
    until = time.monotonic() + 20
    while busy() and time.monotonic() < until:
        time.sleep(0.02)
    assert busy() == []


def test_stop_ends_a_stream_that_nobody_reads(each: Model) -> None:
    abandoned = each.stream("Greet.", max_tokens=60)
    next(abandoned)
    each.stop()
    assert each.ask(SUM, max_tokens=3).text
    assert [piece.finish_reason for piece in abandoned][-1:] == ["cancelled"]


def test_stop_ends_a_stream_of_another_thread(opened: Callable[..., Model]) -> None:
    model = opened("transformers", False)
    reasons: list[str | None] = []
    began = threading.Event()

    def read() -> None:
        settings = {"max_tokens": 2000, "temperature": 9.0, "seed": 1, "ignore_end": True}
        for piece in model.complete([5, 6, 7], **settings):
            began.set()
            reasons.append(piece.finish_reason)

    thread = threading.Thread(target=read)
    thread.start()
    assert began.wait(60)
    model.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert reasons[-1] == "cancelled"
    assert len(reasons) < 2000
    assert model.ask(SUM, max_tokens=3).text


def test_closing_ends_a_stream_of_another_thread() -> None:
    for isolate in (False, True):
        model = open_model("scripted", isolate=isolate, script="a " * 500, tokens_per_second=100)
        stream = model.stream("x", max_tokens=1000)
        reasons: list[str | None] = []
        began = threading.Event()

        def read() -> None:
            for piece in stream:  # noqa: B023
                reasons.append(piece.finish_reason)  # noqa: B023
                began.set()  # noqa: B023

        thread = threading.Thread(target=read)
        thread.start()
        assert began.wait(60)
        model.close()
        thread.join(60)
        assert not thread.is_alive()
        assert reasons[-1] == "cancelled"
        assert len(reasons) < 1000


def test_stopping_while_the_reader_goes_on_ends_the_reply_and_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open_model("scripted", script="a b c d e", tokens="words") as model:
        closing, original = threading.Event(), model._session.stream  # type: ignore[union-attr]

        def ending_slowly(*given: Any) -> Iterator[Any]:
            try:
                yield from original(*given)
            finally:  # an engine waits here for the token that is under way
                closing.set()
                time.sleep(0.2)

        monkeypatch.setattr(model._session, "stream", ending_slowly)
        stream = model.stream("x")
        next(stream)
        stopping = threading.Thread(target=model.stop)
        stopping.start()
        assert closing.wait(60)
        assert [piece.finish_reason for piece in stream] == ["cancelled"]
        stopping.join(60)


def test_an_ask_that_is_interrupted_leaves_no_turn_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(pieces: Iterator[Any]) -> None:
        next(pieces)
        raise KeyboardInterrupt

    with open_model("scripted", script="a b c") as model:
        with monkeypatch.context() as patch:
            patch.setattr(Reply, "joined", interrupted)
            with pytest.raises(KeyboardInterrupt) as kept:
                model.ask("x")
        assert model.ask("y").text == "a b c", kept  # the traceback is kept, as notebooks do


# Several requests


def test_sixteen_at_once_never_mix(each: Model, reference: Model, form: Form) -> None:
    """Sixteen threads ask at the same moment; each gets what it gets alone."""
    questions = [*SUMS, *QUESTIONS[1:5]]
    together = threading.Barrier(16, timeout=60)

    def ask(question: str) -> list[int]:
        together.wait()
        return greedy(each, question, 12)

    alone = [greedy(each, question, 12) for question in questions]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, questions))
    assert len({tuple(ids) for ids in alone}) > 8, "the replies can be told apart"
    for question, one, other in zip(questions, alone, found, strict=True):
        if form.tolerance == 0:
            assert one == other
        else:
            same_or_near(reference, reference.prompt_ids(question), one, other, form.gap)


@without("scripted", because="A script answers one after another.")
@needs(Power.CONCURRENT)
def test_two_streams_of_one_thread_run_side_by_side(
    each: Model, reference: Model, form: Form, shows: Callable[..., None]
) -> None:
    expected = [each.ask(question, max_tokens=12).text for question in QUESTIONS[:2]]
    one, other = (each.stream(question, max_tokens=12) for question in QUESTIONS[:2])
    texts = ["", ""]
    for _ in range(2):  # read in turns: neither waits for the other's end
        texts[0] += next(one).text
        texts[1] += next(other).text
    texts[0] += "".join(piece.text for piece in one)
    texts[1] += "".join(piece.text for piece in other)
    assert texts == expected
    shows(each, Power.CONCURRENT)


def test_the_same_thread_gets_an_error_instead_of_waiting_for_itself(model: Model) -> None:
    stream = model.stream(SUM, max_tokens=60)
    next(stream)
    if Power.CONCURRENT in model.powers:
        assert model.ask(SUM, max_tokens=3).text
    else:
        with pytest.raises(EngineError, match="busy"):
            model.ask(SUM, max_tokens=3)
    assert model.tokenize("meanwhile")  # needs no turn
    rest = list(stream)
    assert rest[-1].finish_reason == "stop"
    assert model.ask(SUM, max_tokens=3).text


def test_another_thread_waits_for_its_turn(model: Model) -> None:
    if Power.CONCURRENT in model.powers:
        return
    expected = model.ask(SUM, max_tokens=30).text
    found: list[str] = []
    stream = model.stream(SUM, max_tokens=30)
    next(stream)
    thread = threading.Thread(target=lambda: found.append(model.ask(SUM, max_tokens=30).text))
    thread.start()
    time.sleep(0.05)
    assert found == []
    for _ in stream:
        pass
    thread.join(60)
    assert found == [expected]


# Errors within a stream


def test_an_exception_in_the_engine_reaches_the_reader(
    here: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = here._session
    name = STEP[here.plan.engine]
    original, steps = getattr(session, name), []

    def breaking(*args, **more):
        steps.append(1)
        if len(steps) == 4:
            raise RuntimeError("the arithmetic unit is on fire")
        return original(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(session, name, breaking)
        shown = []
        with pytest.raises(EngineError, match="arithmetic unit is on fire") as caught:
            shown.extend(here.stream("Tell me a story.", max_tokens=60))
    assert len(shown) == 3 - AHEAD[here.plan.engine]
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert here.ask(SUM, max_tokens=30).finish_reason == "stop"


def test_an_exception_in_a_child_reaches_the_reader(opened: Callable[..., Model]) -> None:
    for isolated in (False, True):
        scripted = opened("scripted", isolated)
        shown = []
        with pytest.raises(EngineError, match="broke on purpose"):
            shown.extend(piece.text for piece in scripted.stream("Fail."))
        assert "".join(shown) == "as far as here"
        assert scripted.ask("Greet.").finish_reason == "stop"
