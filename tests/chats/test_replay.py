"""A replay asks the same things under the same conditions, and tells truly what differs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

import workbench as wb
from workbench.chats import Dialogue, chats
from workbench.chats.asking import heard
from workbench.chats.origin import made_by
from workbench.chats.replayed import Replay, Replayed
from workbench.errors import InputError, NotFoundError
from workbench.messages import Image, Message, Reply, Sampling, ToolCall

SAFE = {"b", "blockquote", "div", "i", "span", "table", "td", "tr"}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


def scripted(script, **options):
    return wb.load("scripted", engine="scripted", script=script, **options)


def held(model, questions: Sequence[str], *, system: str = "", **sampling) -> Dialogue:
    dialogue = Dialogue(system=system, model=model.label, made_by=made_by(model))
    for question in questions:
        asked = dialogue.say(question)
        turn = dialogue.answer(asked.id, sampling=Sampling(**sampling))
        came = heard(model, dialogue.messages(asked.id), Sampling(**sampling))
        dialogue.finish(turn.id, came.reply, error=came.error)
    return dialogue


@pytest.fixture
def old() -> Dialogue:
    with scripted(["One is one.", "Two is two.", "Three is three."]) as model:
        return held(model, ["a", "b", "c"], system="Count.", max_tokens=99)


class Listening:
    """A script that notes the prompts it gets and answers from a list."""

    def __init__(self, answers: Sequence[str | BaseException]) -> None:
        self.answers, self.prompts = list(answers), []

    def __call__(self, messages: Sequence[Message]) -> str:
        self.prompts.append([(each.role, each.content) for each in messages])
        answer = self.answers[len(self.prompts) - 1]
        if isinstance(answer, BaseException):
            raise answer
        return answer


def test_the_same_model_says_the_same(old: Dialogue) -> None:
    with scripted(["One is one.", "Two is two.", "Three is three."]) as model:
        found = wb.replay(old, model)
    assert [turn.outcome for turn in found] == ["same"] * 3
    assert found.same == 3
    assert "3 of 3 answers the same" in found.summary()
    assert all(row["diverges_at_character"] is None for row in found.rows)
    assert [row["differing_share"] for row in found.rows] == [0, 0, 0]


def test_each_question_comes_after_the_old_answers(old: Dialogue) -> None:
    script = Listening(["One is 1.", "Two is two.", "Three!"])
    with scripted(script) as model:
        found = wb.replay(old, model)
    assert script.prompts[2] == [
        ("system", "Count."),
        ("user", "a"),
        ("assistant", "One is one."),
        ("user", "b"),
        ("assistant", "Two is two."),
        ("user", "c"),
    ]
    assert [turn.outcome for turn in found] == ["different", "same", "different"]
    assert [row["diverges_at_character"] for row in found.rows] == [7, None, 5]
    first = found[0].tokens
    assert (first.position, first.old, first.new) == (7, "o", "1")
    assert found.rows[0]["old_tokens"] == 12  # eleven bytes and the end
    branch = found.dialogue
    assert [branch[each].text for each in branch.siblings("2")] == ["One is one.", "One is 1."]
    assert branch.path()[-1].text == "Three!"
    assert branch["2"].made_by["card"] == "scripted"


def test_or_after_its_own(old: Dialogue) -> None:
    script = Listening(["One is 1.", "Two is 2.", "Three is 3."])
    with scripted(script) as model:
        found = wb.replay(old, model, history="own")
    assert script.prompts[2][2::2] == [("assistant", "One is 1."), ("assistant", "Two is 2.")]
    assert [turn.text for turn in found.dialogue.path()][1::2] == script.answers
    assert [turn.old.text for turn in found] == ["One is one.", "Two is two.", "Three is three."]


def test_the_settings_are_those_kept_or_those_given(old: Dialogue) -> None:
    with scripted(["One is one."]) as model:
        assert [turn.sampling["max_tokens"] for turn in wb.replay(old, model)] == [99, 99, 99]
        short = wb.replay(old, model, max_tokens=3)
        assert [turn.new.text for turn in short] == ["One"] * 3
        assert short[0].sampling["max_tokens"] == 3
        given = wb.replay(old, model, sampling=Sampling(max_tokens=4, seed=9))
        assert (given[0].sampling["seed"], given[0].new.text) == (9, "One ")
        with pytest.raises(InputError, match="max_token"):
            wb.replay(old, model, max_token=3)


def test_chance_is_told_of() -> None:
    with scripted("x") as model:
        lucky = held(model, ["a"], temperature=0.7)
        assert "chance" in wb.replay(lucky, model).summary()
        assert "chance" not in wb.replay(lucky, model, seed=1).summary()


def test_a_failing_turn_is_kept_and_the_others_go_on(old: Dialogue) -> None:
    rules = [{"exact": "b", "say": "Two ", "fail": "out of memory"}, "One is one."]
    with scripted(rules) as model:
        found = wb.replay(old, model)
    assert [turn.outcome for turn in found] == ["same", "failed", "different"]
    assert "out of memory" in found[1].error
    assert found[1].new.text == "Two "
    assert "out of memory" in str(found)
    assert "1 failed" in found.summary()
    assert "0 of" not in found.summary()
    assert any(turn.error and "memory" in turn.error for turn in found.dialogue)


def test_an_interrupt_keeps_what_is_done(old: Dialogue, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(Listening(["One is one.", "Two is so long", "never"])) as model:
        stream = model.stream

        def interrupted(messages, sampling):
            for place, piece in enumerate(stream(messages, sampling)):
                if place == 4 and messages[-1].content == "b":
                    raise KeyboardInterrupt
                yield piece

        monkeypatch.setattr(model, "stream", interrupted)
        found = wb.replay(old, model)
        monkeypatch.undo()
        assert model.ask("c", max_tokens=2).text == "ne"  # the model is free again
    assert found.interrupted
    assert [turn.outcome for turn in found] == ["same", "same as far as both go"]
    assert found[1].new.text == "Two "
    assert "interrupted after 2 of 3 turns" in str(found)
    assert Dialogue.load(found.file) == found.dialogue


def test_messages_a_file_and_a_chat_are_conversations(old: Dialogue, tmp_path: Path) -> None:
    class Chat:
        dialogue = old

    with scripted(["One is one.", "Two is two.", "Three is three."]) as model:
        for conversation in (
            Chat(),
            old.save(tmp_path / "a.jsonl"),
            str(old.save(tmp_path / "a.md")),
            old.messages(),
            wb.replay(old, model),
        ):
            found = wb.replay(conversation, model, keep=False)
            assert [turn.new.text for turn in found][-1] == "Three is three."
            assert found.same == len(found)
            assert found.file is None
        with pytest.raises(InputError, match="int"):
            wb.replay(7, model)
        with pytest.raises(NotFoundError):
            wb.replay(tmp_path / "none.jsonl", model)
        with pytest.raises(InputError, match="asks nothing"):
            wb.replay(Dialogue(), model)
        with pytest.raises(InputError, match="own"):
            wb.replay(old, model, history="owm")
        with pytest.raises(InputError, match="loaded model"):
            wb.replay(old, "tiny-chat")


def test_questions_without_answers_become_a_talk() -> None:
    script = Listening(["1", "2"])
    with scripted(script) as model:
        asked = [Message("user", "a"), Message("user", "b")]
        found = wb.replay(asked, model)
    assert script.prompts[1] == [("user", "a"), ("assistant", "1"), ("user", "b")]
    assert [turn.outcome for turn in found] == ["new answer only"] * 2
    assert found[0].row()["differing_share"] is None


def test_a_tools_result_is_asked_again_only_where_the_tool_was_called(old: Dialogue) -> None:
    dialogue = Dialogue()
    asked = dialogue.say("Weather?")
    call = ToolCall(name="weather", id="c1")
    turn = dialogue.answer(asked.id)
    dialogue.finish(turn.id, Reply(text="", tool_calls=(call,), finish_reason="tool_calls"))
    dialogue.add(Message("tool", "rain", tool_call_id="c1"))
    dialogue.finish(dialogue.answer("3").id, Reply(text="It rains."))
    dialogue.finish(dialogue.answer(dialogue.say("Thanks").id).id, Reply(text="Welcome."))
    script = Listening(["Sunny.", "It rains.", "Welcome."])
    with scripted(script) as model:
        found = wb.replay(dialogue, model)
    assert [turn.outcome for turn in found] == ["different", "same", "same"]
    assert script.prompts[1][-1] == ("tool", "rain")
    with scripted(["Sunny.", "Welcome."]) as model:
        own = wb.replay(dialogue, model, history="own")
    assert "called no tool" in own[1].error
    assert [turn.text for turn in own.dialogue.path()] == [
        "Weather?",
        "Sunny.",
        "Thanks",
        "Welcome.",
    ]


def test_what_the_model_cannot_is_a_failed_turn_and_alternatives_are_not_asked_for() -> None:
    dialogue = Dialogue()
    asked = dialogue.say("See?", (Image(PNG),))
    dialogue.finish(dialogue.answer(asked.id).id, Reply(text="Yes."))
    asked = dialogue.say("Why?")
    turn = dialogue.answer(asked.id, sampling=Sampling(top_logprobs=5))
    dialogue.finish(turn.id, Reply(text="So."))
    dialogue.clear()
    asked = dialogue.say("Why?")
    turn = dialogue.answer(asked.id, sampling=Sampling(top_logprobs=5))
    dialogue.finish(turn.id, Reply(text="So."))
    with scripted("So.") as model:
        assert wb.replay(dialogue, model).same == 1
        dialogue.show("1")
        seen = wb.replay(dialogue, model)
    assert "image" in seen[0].error
    assert seen[0].new is None


def test_words_tell_what_is_neither_same_nor_different() -> None:
    stopped = Replayed(
        turn="1",
        question="q",
        old=Reply(text="The cat", finish_reason="cancelled"),
        new=Reply(text="The cat sat."),
    )
    assert (stopped.same, stopped.outcome) == (None, "same as far as both go")
    mused = Replayed(turn="1", question="q", old=Reply(text="x", thinking="a"), new=Reply(text="x"))
    assert mused.outcome == "same, thought otherwise"
    called = Replayed(
        turn="1",
        question="q",
        old=Reply(text="", tool_calls=(ToolCall(name="f", id="1"),)),
        new=Reply(text="", tool_calls=(ToolCall(name="g", id="2"),)),
    )
    assert called.outcome == "different"
    broken = Replayed(turn="1", question="q", old=None, old_error="x", new=Reply(text="y"))
    assert broken.outcome == "new answer only"


def test_it_displays_itself_safely_and_loads_back(old: Dialogue, tmp_path: Path) -> None:
    with scripted(["One <b>is</b> <img src=x onerror=y>.", "Two is two.", "Three\nis three."]) as m:
        found = wb.replay(old, m)
    shown = found._repr_mimebundle_()
    assert "<img src=x onerror=y>+}" in shown["text/plain"]
    assert "Three[- -]{+\n+}is three." in shown["text/plain"]
    assert set(re.findall(r"</?([a-z]+)", shown["text/html"])) <= SAFE
    assert "onerror" in shown["text/html"]  # as text
    assert "Turn 3" not in shown["text/plain"]  # the second question, which has the same answer
    file = found.save(tmp_path / "replay.json")
    read = Replay.load(file)
    assert read.turns == found.turns
    assert read.dialogue == found.dialogue
    assert str(read) == str(found)
    file.write_text(json.dumps({"kind": "replay"}))
    with pytest.raises(InputError, match="no replay"):
        Replay.load(file)
    assert chats()[found.dialogue.id] == found.dialogue


@pytest.mark.slow
def test_two_engines_of_the_embedded_model_are_compared_by_token() -> None:
    questions, limit = ["What is 3 + 4?", "Tell me a story about a cat."], {"max_tokens": 48}
    with wb.load("tiny-chat", engine="transformers", dtype="fp32") as model:
        dialogue = held(model, questions, **limit)
        onward = held(model, questions[1:], ignore_end=True, **limit)  # past what it knows
        again = wb.replay(dialogue, model)
    assert [turn.outcome for turn in again] == ["same"] * 2
    assert dialogue.made_by["engine"] == "transformers"
    with wb.load("tiny-chat", engine="llama.cpp", quantization="Q4_K_M", threads=1) as model:
        known = wb.replay(dialogue, model)
        found = wb.replay(onward, model)
        assert [turn.new.text for turn in known] == [
            model.ask(dialogue.messages(turn.turn), **limit).text for turn in known
        ]
    for turn in [*known, *found]:
        assert turn.error == ""
        assert (turn.tokens is None) == (turn.old.token_ids == turn.new.token_ids)
    assert found[0].outcome == "different", "Q4_K_M goes on otherwise where nothing was learnt"
    at = found[0].tokens.position
    old, new = found[0].old.token_ids, found[0].new.token_ids
    assert old[:at] == new[:at]
    assert old[at] != new[at]
    assert all(row["new_tokens_per_second"] for row in found.rows)
    assert found.dialogue.made_by["quantization"] == "Q4_K_M"
