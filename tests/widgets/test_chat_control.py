"""A chat is stopped, continued and set, waits for its model, and is printed in a terminal."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from chat_parts import Listener, Session, model_of, scripted

import workbench as wb
from workbench.engines.base import Power
from workbench.errors import (
    InputError,
    UnsupportedError,
)
from workbench.messages import Likelihood, Message, Piece, Sampling, Usage
from workbench.widgets.chat import Chat
from workbench.widgets.worker import Generation

# Stopping


def test_an_engine_in_a_long_step_does_not_hold_up_stop() -> None:
    session = Session([Piece(text="late"), Piece(finish_reason="stop")])
    session.gate.clear()  # a prefill that takes for ever
    chat = Chat(model_of(session))
    listener = Listener(chat)
    chat._talk.send("Go.")
    chat.stop()
    end = listener.wait("end")
    assert end["turn"]["meta"]["finish"] == "cancelled"
    assert chat.dialogue["2"].text == ""
    told = len(listener.told)
    session.gate.set()
    assert session.ended.wait(30)
    assert not [kind for kind, _ in listener.told[told:] if kind == "delta"]
    assert chat.dialogue["2"].text == ""
    assert chat.ask("Again.").text == "late"


def test_stop_ends_only_the_answer_of_this_chat() -> None:
    pieces = [Piece(text="one "), Piece(text="two", finish_reason="stop")]
    session = Session(pieces, Power.CONCURRENT)
    session.gate.clear()
    model = model_of(session)
    one, two = Chat(model), Chat(model)
    ends = [Listener(chat) for chat in (one, two)]
    one._talk.send("Go.")
    two._talk.send("Go.")
    one.stop()
    assert ends[0].wait("end")["turn"]["meta"]["finish"] == "cancelled"
    session.gate.set()
    assert ends[1].wait("end")["turn"]["meta"]["finish"] == "stop"
    assert two.dialogue["2"].text == "one two"


def test_a_stop_before_the_models_turn_comes_never_reaches_the_engine() -> None:
    session = Session([Piece(text="x"), Piece(finish_reason="stop")])
    session.gate.clear()
    model = model_of(session)
    one, two = Chat(model), Chat(model)
    listener = Listener(two)
    one._talk.send("Go.")
    two._talk.send("Me too.")
    while not (waiting := [b for b in listener.of("busy") if b["note"]]):
        time.sleep(0.01)
    assert "busy with somebody else" in waiting[0]["note"]
    two.stop()
    assert listener.wait("end")["turn"]["meta"]["finish"] == "cancelled"
    session.gate.set()
    one._talk.answer.join(30) if one._talk.answer else None
    assert len(session.asked) == 1


def test_a_fault_in_drawing_keeps_the_answer() -> None:
    model = scripted("one two three")
    ended = threading.Event()

    def take(pieces: Sequence[Piece]) -> None:
        raise RuntimeError("cannot draw")

    made = Generation(
        model,
        lambda: model.stream("Go."),
        take=take,
        waits=lambda waiting: None,
        end=lambda made: ended.set(),
    )
    made.run()
    assert made.join(30)
    assert ended.is_set()
    assert "cannot draw" in str(made.error)
    assert made.reply(prompt_tokens=lambda: None).finish_reason == "error"


# Going on


def test_a_cut_off_answer_goes_on_from_its_own_tokens() -> None:
    asked: list[Sequence[Message]] = []

    def script(messages: Sequence[Message]) -> str:
        asked.append(messages)
        return "日本の" if len(asked) == 1 else "本の猫です。"

    model = wb.load("scripted", engine="scripted", script=script)
    chat = wb.chat(model)
    first = chat.ask("Go.", max_tokens=4)  # the cut goes through the second character
    assert (first.text, first.finish_reason) == ("日\ufffd", "length")
    whole = chat.go_on()
    assert whole.text == "日本の猫です。"
    assert whole.finish_reason == "stop"
    assert asked[1][0].content == "user: Go.\nassistant: 日"
    assert bytes(whole.token_ids[:-1]).decode() == whole.text
    assert whole.usage.completion_tokens == 4 + len("本の猫です。".encode()) + 1
    assert len(chat.dialogue) == 2
    with pytest.raises(InputError, match="came to its end"):
        chat.go_on()


class Thinker(Session):
    """One id a character, but one for each mark, which a raw completion does not show."""

    template = "{% if tools %}{% endif %}<think>{{ x }}</think>"
    marks = {"<think>": 1, "</think>": 2}

    def __init__(self, pieces: Sequence[Piece], rest: str) -> None:
        super().__init__(pieces, Power.COMPLETE, Power.RENDER, Power.TOKENIZE, Power.THINKING)
        self.rest, self.given = rest, []

    def tokenize(self, text: str) -> list[int]:
        return [self.marks[text]] if text in self.marks else [ord(each) for each in text]

    def detokenize(self, ids: Sequence[int]) -> bytes:
        return "".join(chr(each) for each in ids).encode()

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return [ord("?")]

    def complete(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[Piece]:
        self.given.append(list(prompt))
        for each in self.rest:
            token = 2 if each == "|" else ord(each)
            yield Piece(text="" if token == 2 else each, token_id=token)
        yield Piece(finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=9))


def test_thinking_that_was_cut_off_goes_on_as_thinking() -> None:
    usage = Usage(prompt_tokens=1, completion_tokens=3)
    cut = [Piece(token_id=1), Piece(thinking="h", token_id=ord("h"))]
    cut.append(Piece(thinking="m", token_id=ord("m"), finish_reason="length", usage=usage))
    session = Thinker(cut, "m.|Yes.")
    chat = Chat(model_of(session))
    listener = Listener(chat)
    assert chat.ask("Go.").thinking == "hm"
    reply = chat.go_on()
    assert session.given == [[ord("?"), 1, ord("h"), ord("m")]]
    assert (reply.thinking, reply.text) == ("hmm.", "Yes.")
    parts = {delta["part"] for delta in listener.of("delta")}
    assert parts == {"thinking", "answer"}
    assert reply.usage.completion_tokens == 12


def test_an_answer_whose_prompt_is_not_known_exactly_is_not_continued() -> None:
    usage = Usage(prompt_tokens=7, completion_tokens=1)
    session = Thinker([Piece(text="a", token_id=97, finish_reason="length", usage=usage)], "b")
    chat = Chat(model_of(session))
    chat.ask("Go.")
    with pytest.raises(UnsupportedError, match="7 prompt tokens, this rendering has 1"):
        chat.go_on()


def test_an_engine_that_cannot_go_on_says_what_to_do() -> None:
    session = Session([Piece(text="half", finish_reason="length")])
    chat = Chat(model_of(session))
    chat.ask("Go.")
    with pytest.raises(UnsupportedError, match="Raise max_tokens"):
        chat.go_on()
    assert chat.dialogue["2"].text == "half"


# Settings


def test_the_cards_sampling_gives_the_defaults_and_reset_goes_back() -> None:
    model = scripted("x")
    said = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
    card = type(model.card)(id="said", sampling=said)
    model.plan = dataclasses.replace(model.plan, card=card)
    chat = wb.chat(model, sampling={"top_k": 5})
    assert [chat.settings[name] for name in said] == [0.7, 0.8, 5]
    listener = Listener(chat)
    chat.settings.update(temperature=0, seed=7)
    assert listener.of("settings")[-1]["settings"]["seed"] == 7
    assert chat._talk.sampling().seed == 7
    with pytest.raises(InputError, match="top_p must be in"):
        chat.settings.update(top_k=1, top_p=2)
    assert chat.settings["top_k"] == 5
    with pytest.raises(InputError, match="temperature"):
        chat.settings.update(temprature=1)
    chat.settings.reset()
    assert chat.settings["temperature"] == 0.7
    assert chat.settings["seed"] is None
    whole = wb.chat(model, sampling=Sampling(temperature=0.1, stop=("END",)))
    assert whole.settings["temperature"] == 0.1
    assert whole._talk.sampling().stop == ("END",)


def test_probabilities_that_the_engine_tells_are_kept() -> None:
    top = (
        Likelihood(token_id=5, text="a", logprob=-0.1),
        Likelihood(token_id=6, text="b", logprob=-2.5),
    )
    pieces = [Piece(text="b", token_id=6, logprob=-2.5, top=top, finish_reason="stop")]
    session = Session(pieces, Power.LOGPROBS)
    chat = Chat(model_of(session))
    chat.settings.update(probabilities=True)
    chat.ask("Go.")
    assert session.asked[0][1].top_logprobs == 5
    (token,) = chat.probabilities().tokens
    assert (token.text, token.token_id, token.logprob) == ("b", 6, -2.5)
    assert [each.text for each in token.top] == ["a", "b"]


# Beside a notebook


def test_a_terminal_sees_the_answer_as_it_grows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = wb.chat(scripted("one two three"))
    chat.ask("Go.")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    chat.ask("Go.")
    assert capsys.readouterr().out == "one two three\n"


def test_a_live_notebook_without_the_packages_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from workbench import notebook
    from workbench.errors import MissingPackageError
    from workbench.widgets import view

    monkeypatch.setattr(notebook, "in_kernel", lambda: True)
    monkeypatch.setattr(notebook, "live", lambda: True)
    monkeypatch.setattr(view, "_PACKAGES", ("anywidget_is_not_here",))
    with pytest.raises(MissingPackageError, match=r"llm-workbench\[lab\]"):
        wb.chat(scripted("x"))
