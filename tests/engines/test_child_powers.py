"""Every power through a child: what is asked arrives there, what is answered arrives here."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import engine_powers
import numpy as np
import pytest

import workbench as wb
from workbench.catalog import Card
from workbench.engines import plain
from workbench.engines.base import Loading, Power
from workbench.engines.child import Child
from workbench.engines.child_session import ChildSession
from workbench.engines.model import Model
from workbench.errors import MemoryShortError, UnsupportedError
from workbench.messages import Image, Message
from workbench.planning import Plan

PIXEL = b"\x89PNG\r\n\x1a\n" + bytes(300)
PARALLEL = 6


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    card = Card(id="able")
    plan = Plan(card=card, engine=engine_powers.NAME, context=99, options={"together": PARALLEL})
    child = Child()
    child.request("call", function="engine_powers:register", arguments={})
    session = ChildSession(child, child.request("open", plan=plain.from_plan(plan)))
    loading = Loading(seconds=0.0, weight_bytes=0, rss_bytes=0)
    with Model(session, plan, loading=loading, isolated=True) as opened:
        yield opened


def test_a_request_and_its_reply_pass_whole(model: Model) -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    turns = [Message("user", "look 猫", images=(Image(PIXEL),))]
    reply = model.ask(turns, schema={"type": "object"}, tools=(tool,), top_logprobs=1)
    told = json.loads(reply.text)
    assert told["images"] == [len(PIXEL)]
    assert told["schema"] == {"type": "object"}
    assert told["tools"] == [tool]
    assert reply.thinking == "hm"
    assert reply.tool_calls[0].values() == {"a": 1}
    assert reply.logprobs[0][0] == -0.25
    assert reply.logprobs[0][1][0].text == "{"
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == 3
    (many,) = model.ask_many([turns])
    assert (many.text, many.tool_calls, many.logprobs) != ("", (), ())
    assert model.powers == frozenset(Power)
    assert model._open_session.context == 99
    assert model.template == "{{ messages }} 猫"


def test_a_batch_that_is_stopped_answers_with_what_it_has(model: Model) -> None:
    found: list[wb.Reply] = []
    thread = threading.Thread(target=lambda: found.extend(model.ask_many(["for ever", "x"])))
    thread.start()
    while not model._turns._active and thread.is_alive():
        time.sleep(0.001)
    model.stop()
    thread.join(60)
    assert [(reply.text, reply.finish_reason) for reply in found] == [("so far", "cancelled")] * 2
    assert json.loads(model.ask("x").text)["awake"] is True


def test_vectors_and_relevance_pass(model: Model) -> None:
    found = model.embed(["ab", "猫"], normalize=False)
    np.testing.assert_array_equal(found, np.array([[2, 0], [1, 0]], np.float32))
    assert found.dtype == np.float32
    assert model.embed("abc")[0, 1] == 1
    np.testing.assert_array_equal(model.rerank("a", ["aa", "b"]), np.array([2, 0], np.float32))


def test_adapters_and_sleep_reach_the_child_and_change_the_powers(
    model: Model, tmp_path: Path
) -> None:
    model.use_adapter(tmp_path)
    assert json.loads(model.ask("x").text)["adapter"] == str(tmp_path.resolve())
    assert Power.RERANK not in model.powers
    with pytest.raises(UnsupportedError, match="cannot rerank"):
        model.rerank("a", ["b"])
    model.use_adapter(None)
    assert json.loads(model.ask("x").text)["adapter"] is None
    assert Power.RERANK in model.powers
    model.sleep()
    assert json.loads(model.ask("x").text)["awake"] is False
    model.wake()
    assert json.loads(model.ask("x").text)["awake"] is True


def test_several_streams_run_at_once_and_never_mix(model: Model) -> None:
    """Each waits in the child until all are there: one after another none would end."""
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        model.ask("together")
        parts = ",".join(f"{number}-{index}" for index in range(40))
        found[number] = "".join(piece.text for piece in model.complete(parts))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(PARALLEL)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    expected = {
        number: "".join(f"{number}-{index}," for index in range(40)) for number in range(PARALLEL)
    }
    assert found == expected


def test_cancelling_one_stream_leaves_the_others(model: Model) -> None:
    endless, other = model.stream("for ever"), model.complete("a,b,c")
    assert next(endless).text == "x"
    assert next(other).text == "a,"
    endless.close()
    assert "".join(piece.text for piece in other) == "b,c,"
    assert json.loads(model.ask("x").text)["images"] == []


def test_figures_of_an_error_pass() -> None:
    error = MemoryShortError("too much", hint="less", needed=5, free=3, changes=("a", "b"))
    found = plain.to_error(json.loads(json.dumps(plain.from_error(error))))
    assert isinstance(found, MemoryShortError)
    assert (found.needed, found.free, found.changes, found.hint) == (5, 3, ("a", "b"), "less")
    ran_out = plain.to_error(plain.from_error(MemoryError("no")), changes=("Take Q4_K_M.",))
    assert "(1) Take Q4_K_M." in str(ran_out)
