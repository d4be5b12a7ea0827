"""The chat on the embedded model: continued answers, exact prompts and token probabilities."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from workbench.chats.dialogue import Dialogue
from workbench.engines.model import Model
from workbench.widgets import chat_inspect

QUESTION = "Tell me a story about a cat."
ENGINES = [("transformers", {"dtype": "fp32"}), ("llama.cpp", {})]


@pytest.fixture(scope="module", params=ENGINES, ids=[name for name, _ in ENGINES])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    engine, options = request.param
    with wb.load("tiny-chat", engine=engine, threads=1, context=512, **options) as loaded:
        yield loaded


def test_a_cut_off_answer_goes_on_as_if_it_had_not_been_cut(model: Model) -> None:
    whole = model.ask(QUESTION, max_tokens=24)
    chat = wb.chat(model)
    assert chat.ask(QUESTION, max_tokens=9).finish_reason == "length"
    reply = chat.go_on(max_tokens=15)
    assert reply.token_ids == whole.token_ids
    assert reply.text == whole.text
    assert reply.usage == whole.usage


def test_the_prompt_is_what_the_engine_is_fed(model: Model) -> None:
    chat = wb.chat(model, system="Be brief.")
    reply = chat.ask(QUESTION, max_tokens=4)
    prompt = chat.prompt("2")
    assert list(prompt.ids) == model.prompt_ids(chat.dialogue.messages(until="1"))
    assert len(prompt.ids) == reply.usage.prompt_tokens
    assert prompt.note is None
    assert "Be brief." in prompt.text
    assert QUESTION in prompt.text
    assert "".join(text for _, text in prompt.pieces) == prompt.text


def test_probabilities_told_while_answering_are_those_scored_afterwards(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = wb.chat(model, sampling={"max_tokens": 8})
    chat.ask(QUESTION)
    scored = chat.probabilities("2")
    chat.settings.update(probabilities=True)
    chat.regenerate()
    told = chat.probabilities("3")
    assert [t.token_id for t in scored.tokens] == list(chat.dialogue["2"].reply.token_ids)
    assert [t.token_id for t in told.tokens] == [t.token_id for t in scored.tokens]
    assert [t.text for t in told.tokens] == [t.text for t in scored.tokens]
    for one, two in zip(told.tokens, scored.tokens, strict=True):
        assert one.logprob == pytest.approx(two.logprob, abs=0.02)
        assert two.top[0].token_id == two.token_id  # it was greedy
        assert np.diff([each.logprob for each in two.top]).max() <= 0
    monkeypatch.setattr(chat_inspect, "_free_memory", lambda: 1000)
    alone = chat.probabilities("2")
    assert "does not fit" in alone.note
    assert [t.top for t in alone.tokens] == [()] * 8
    assert [t.logprob for t in alone.tokens] == pytest.approx(
        [t.logprob for t in scored.tokens], abs=1e-4
    )


def test_stop_in_the_middle_of_a_real_engine(model: Model) -> None:
    chat = wb.chat(model)
    answer = chat._talk.send(QUESTION, max_tokens=400, ignore_end=True)
    while len(answer.generation.pieces) < 5:
        time.sleep(0.005)
    chat.stop()
    assert answer.join(30)
    turn = chat.dialogue["2"]
    assert turn.reply.finish_reason == "cancelled"
    assert 5 <= len(turn.reply.token_ids) < 400
    assert turn.reply.usage.completion_tokens == len(turn.reply.token_ids)
    assert turn.reply.usage.prompt_tokens == len(chat.prompt("2").ids)
    assert turn.text.rstrip("\ufffd") in model.detokenize(turn.reply.token_ids).decode()
    assert chat.ask(QUESTION, max_tokens=2).finish_reason == "length"


LEAVING = """
import time
import workbench as wb
model = wb.load("tiny-chat", engine="llama.cpp", threads=1, context=2048)
answer = wb.chat(model)._talk.send("Tell me a story.", max_tokens=1900, ignore_end=True)
while len(answer.generation.pieces) < 5:
    time.sleep(0.01)
"""


def test_a_process_that_ends_in_the_middle_leaves_the_engine_and_keeps_the_text(home: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    (kept,) = (home / "outputs" / "chats").glob("*.jsonl")
    turn = Dialogue.load(kept)["2"]
    assert turn.text
    assert turn.reply.finish_reason == "cancelled"
