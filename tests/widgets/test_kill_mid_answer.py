"""A process that is killed in mid-answer leaves what was said, marked as cut off, to go on from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_parts import Listener, Session, model_of
from chat_stub import Stub, answer, user

import workbench as wb
from workbench.chats import Dialogue, chats_folder, keep_always, kept_file
from workbench.engines.base import Power
from workbench.messages import Message, Piece, Reply, Sampling, Usage
from workbench.widgets import worker
from workbench.widgets.chat import Chat
from workbench.widgets.chat_answer import joined

STORY = "".join(f"Day {number}: it rained. " for number in range(400))


def script(messages: list[Message]) -> str:
    """Tell the story; from a raw prompt, what of it is still to come."""
    return STORY.removeprefix(messages[-1].content.partition("assistant: ")[2])


CHAT = """
import sys, workbench as wb
from workbench.widgets import worker
assert worker.KEEP <= 2
worker.KEEP = 0.2
model = wb.load(
    "scripted", engine="scripted", script={story!r}, tokens_per_second=300, context=100_000
)
chat = wb.chat(model, system="Be brief.")
print(chat.kept, flush=True)
chat.ask("Go.", max_tokens=100_000)
"""
ARENA = f"""
import workbench as wb
from workbench.widgets import worker
worker.KEEP = 0.2
models = [
    wb.load("scripted", engine="scripted", script=text, tokens_per_second=300, context=100_000)
    for text in ({STORY!r}, {STORY.upper()!r})
]
print("ready", flush=True)
wb.arena(models, together=True).ask("Go.", max_tokens=100_000)
"""


def killed(source: str, seen: Callable[[], bool]) -> str:
    """Run a process until something is seen, kill it, and return the first line it said."""
    process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = process.stdout.readline().strip()
        until = time.monotonic() + 120
        while not seen():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    return said


def answers() -> list[Reply]:
    """Return the answers that are kept."""
    found = [Dialogue.load(file) for file in chats_folder().glob("*.jsonl")]
    turns = [turn for dialogue in found for turn in dialogue if turn.role == "assistant"]
    return [turn.reply for turn in turns if turn.reply is not None]


def grown(count: int, texts: int = 1) -> Callable[[], bool]:
    """Return what sees that so many answers were kept, each with two lengths or more."""
    lengths: dict[str, set[int]] = {}

    def seen() -> bool:
        for reply in answers():
            lengths.setdefault(reply.text[:6] or "-", set()).add(len(reply.token_ids))
        return sum(len(each) > count for each in lengths.values()) >= texts

    return seen


def test_a_chat_that_is_killed_keeps_what_was_said_and_goes_on(home: Path) -> None:
    file = Path(killed(CHAT.format(story=STORY), grown(2)))
    turn = Dialogue.load(file)["2"]
    reply = turn.reply
    assert reply is not None
    assert (reply.finish_reason, reply.usage, turn.error) == ("interrupted", None, None)
    assert 0 < len(turn.text) < len(STORY)
    assert STORY.startswith(turn.text)
    assert bytes(reply.token_ids).decode() == turn.text
    model = wb.load("scripted", engine="scripted", script=script, context=100_000)
    chat = wb.chat(model, dialogue=file)
    shown = chat._talk.state()["turns"][-1]
    assert (shown["text"], shown["meta"]["finish"]) == (turn.text, "interrupted")
    assert "interrupted" in chat.transcript().text
    assert "interrupted" in chat.transcript().html
    whole = chat.go_on(max_tokens=100_000)
    assert (whole.text, whole.finish_reason) == (STORY, "stop")
    prompt = len(model.prompt_ids([Message("system", "Be brief."), Message("user", "Go.")]))
    assert whole.usage == Usage(prompt_tokens=prompt, completion_tokens=len(STORY) + 1)
    assert Dialogue.load(file) == chat.dialogue
    assert len(chat.dialogue) == 2


def test_a_greedy_answer_goes_on_as_if_nobody_had_cut_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "KEEP", 0.05)
    with wb.load("tiny-chat", engine="transformers", threads=1) as model:
        first = wb.chat(model)
        first._talk.send("Tell me a story.", max_tokens=1800, ignore_end=True)
        assert first._talk.answer is not None
        while (reply := (read := Dialogue.load(first.kept))["2"].reply) is None:
            time.sleep(0.1)
        first.close()
        assert reply.finish_reason == "interrupted"
        read.id = "c0ffee00"
        whole = wb.chat(model, dialogue=read).go_on(max_tokens=8, ignore_end=True)
        count = len(reply.token_ids) + 8
        again = model.ask("Tell me a story.", max_tokens=count, ignore_end=True)
    assert whole.token_ids == again.token_ids
    assert whole.text == again.text
    assert whole.usage == again.usage


@pytest.mark.browser
def test_the_reader_sees_that_it_was_cut_off_and_can_go_on(page: Any) -> None:
    stub = Stub(page)
    meta = {"finish": "interrupted", "ttft": 1.25}
    stub.state(user("1", "Go."), answer("2", "Day 0: it", meta=meta))
    said = page.locator('[data-turn="2"] .wb-figures').inner_text()
    assert "cut off when its process ended" in said
    page.get_by_role("button", name="Continue this answer", exact=True).click()
    assert stub.sent("continue") == [{"type": "continue", "id": "2"}]
    assert page.said == []


def test_an_arena_that_is_killed_keeps_both_answers(home: Path) -> None:
    killed(ARENA, grown(2, texts=2))
    found = answers()
    assert [reply.finish_reason for reply in found] == ["interrupted"] * 2
    one, two = sorted((reply.text for reply in found), key=STORY.startswith, reverse=True)
    assert STORY.startswith(one)
    assert STORY.upper().startswith(two)
    assert min(len(one), len(two)) > 0


class Halting(Session):
    """Says one word, and the other when the gate is open."""

    def __init__(self) -> None:
        super().__init__([])
        self.gate.clear()

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Piece]:
        yield Piece(text="one ", token_id=1)
        assert self.gate.wait(30)
        yield Piece(text="two", token_id=2, finish_reason="stop")

    def goes_on(self, listener: Listener) -> dict[str, Any]:
        """Say the rest and wait until that is told."""
        self.gate.set()
        return listener.wait("end")


def test_a_slow_disk_holds_up_neither_the_answer_nor_its_end(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "KEEP", 0.02)
    session = Halting()
    chat = Chat(model_of(session))
    began, go_on, over = threading.Event(), threading.Event(), threading.Event()
    original = chat.dialogue.so_far

    def slow(turn: object, reply: Reply) -> None:
        began.set()
        assert go_on.wait(30)
        original(turn, reply)
        over.set()

    monkeypatch.setattr(chat.dialogue, "so_far", slow)
    listener = Listener(chat)
    chat._talk.send("Go.")
    assert began.wait(30)
    assert session.goes_on(listener)["turn"]["text"] == "one two"
    go_on.set()
    assert over.wait(30)
    assert Dialogue.load(chat.kept) == chat.dialogue
    assert chat.dialogue["2"].reply.finish_reason == "stop"


def test_a_copy_that_goes_on_from_the_part_does_not_cost_the_rest(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "KEEP", 0.02)
    session = Halting()
    chat = Chat(model_of(session))
    listener = Listener(chat)
    file = chat.kept
    chat._talk.send("Go.")
    while (other := Dialogue.load(file))["2"].text != "one ":
        time.sleep(0.02)
    keep_always(other)
    other.say("Go on.")
    with pytest.warns(UserWarning, match="Both are kept"):
        session.goes_on(listener)
    assert chat.kept != file
    assert Dialogue.load(chat.kept) == chat.dialogue
    assert chat.dialogue["2"].text == "one two"
    assert chat.kept.name in listener.wait("error")["message"]
    read = Dialogue.load(file)
    assert [turn.text for turn in read] == ["Go.", "one ", "Go on."]
    assert read["2"].reply.finish_reason == "interrupted"


def test_what_is_noted_too_late_changes_nothing(home: Path) -> None:
    chat = Chat(model_of(Session([Piece(text="Gone.", finish_reason="stop")])))
    chat.ask("Go.")
    question = chat.dialogue.say("And?")
    turn = chat.dialogue.answer(question.id)
    part = Reply(text="ha", token_ids=(7,), finish_reason="interrupted")
    chat.dialogue.so_far(turn, part)
    read = Dialogue.load(chat.kept)
    assert read[turn.id].reply == part
    assert chat.dialogue[turn.id].open  # here it still goes on
    assert read == chat.dialogue
    chat.dialogue.finish(turn.id, Reply(text="half"))
    chat.dialogue.so_far(turn, part)
    assert chat.dialogue[turn.id].text == "half"
    assert Dialogue.load(kept_file(chat.dialogue))[turn.id].text == "half"


def test_an_answer_that_goes_on_is_kept_with_what_it_held() -> None:
    """Killed twice, it has the words of all three parts."""
    first = Reply(text="one ", token_ids=(1,), finish_reason="interrupted")
    second = Reply(text="two ", token_ids=(2,), finish_reason="interrupted")
    usage = Usage(prompt_tokens=5 + 2, completion_tokens=3)
    third = Reply(text="three", token_ids=(3, 4), usage=usage)
    whole = joined(joined(first, second), third)
    assert (whole.text, whole.token_ids) == ("one two three", (1, 2, 3, 4))
    assert whole.finish_reason == "stop"
    assert whole.usage == Usage(prompt_tokens=5, completion_tokens=5)


def test_an_interrupted_answer_without_a_word_is_not_sent() -> None:
    dialogue = Dialogue()
    turn = dialogue.answer(dialogue.say("a").id)
    dialogue.finish(turn.id, Reply(text="", thinking="hm", finish_reason="interrupted"))
    dialogue.say("b")
    assert [message.content for message in dialogue.messages()] == ["b"]


def test_probabilities_are_left_to_the_end(home: Path) -> None:
    session = Session([Piece(text="a", token_id=1, logprob=-0.5)], Power.LOGPROBS)
    model = model_of(session)
    made = worker.Generation(
        model,
        lambda: session.stream([], Sampling()),
        take=lambda pieces: None,
        waits=lambda waiting: None,
        end=lambda made: None,
    )
    made.run()
    assert made.join(30)
    part = made.so_far()
    assert (part.text, part.token_ids, part.logprobs) == ("a", (1,), ())
    assert (part.finish_reason, part.model) == ("interrupted", model.label)
    assert made.reply(prompt_tokens=lambda: None).logprobs == ((-0.5, ()),)
