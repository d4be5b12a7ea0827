"""A chat without any notebook: what is said, kept, refused, and what a front end is told."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from chat_parts import Listener, Session, model_of, scripted

import workbench as wb
from workbench.chats.dialogue import Dialogue
from workbench.chats.markdown_stream import apply_patch
from workbench.engines.base import Power
from workbench.errors import (
    ChildDiedError,
    ContextLengthError,
    EngineError,
    InputError,
    UnsupportedError,
)
from workbench.messages import Image, Message, Piece, ToolCall, Usage
from workbench.widgets.chat import Chat

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


# Turns and branches


def test_ask_returns_the_reply_and_the_conversation_is_data(home: Path) -> None:
    model = scripted(["Hello.", "Fine."])
    chat = wb.chat(model, system="Be kind.", title="Greetings")
    reply = chat.ask("Hi!", max_tokens=50)
    assert (reply.text, reply.finish_reason, reply.model) == ("Hello.", "stop", model.label)
    chat.ask("How are you?")
    assert [(m.role, m.content) for m in chat.messages] == [
        ("system", "Be kind."),
        ("user", "Hi!"),
        ("assistant", "Hello."),
        ("user", "How are you?"),
        ("assistant", "Fine."),
    ]
    kept = Dialogue.load(chat.kept)
    assert kept == chat.dialogue
    assert kept.title == "Greetings"
    assert chat.kept.parent == home / "outputs" / "chats"
    turn = kept["2"]
    assert turn.sampling["max_tokens"] == 50
    assert kept.made_by["engine"] == "scripted"
    assert kept["4"].sampling["max_tokens"] == chat.settings["max_tokens"]
    again = wb.chat(model, dialogue=chat.save(home / "mine.jsonl"))
    assert again.messages == chat.messages


def test_edit_and_regenerate_make_branches_that_can_be_shown() -> None:
    chat = wb.chat(scripted(lambda messages: f"<{messages[-1].content} {len(messages)}>"))
    chat.ask("a")
    chat.ask("b")
    assert chat.edit("1", "c").text == "<c 1>"
    assert [m.content for m in chat.messages] == ["c", "<c 1>"]
    assert chat.regenerate().text == "<c 1>"
    assert chat.dialogue.siblings("6") == ["6", "7"]
    chat.show("4")
    assert [m.content for m in chat.messages] == ["a", "<a 1>", "b", "<b 3>"]
    chat.clear()
    assert chat.messages == []
    assert chat.ask("d").text == "<d 1>"
    assert len(chat.dialogue) == 9


def test_another_branch_brings_its_own_meter_and_an_empty_one_the_way_back() -> None:
    chat = wb.chat(scripted("one two three", context=100))
    listener = Listener(chat)
    chat.ask("a")
    chat.ask("b c d e f")
    full = listener.of("meter")[-1]["used"]
    assert chat._surface._state()["earlier"] is None
    chat.clear()
    assert listener.of("meter")[-1]["used"] == 0
    state = chat._surface._state()
    assert (state["earlier"], state["kept"]) == ("1", str(chat.kept))
    chat.show(state["earlier"])
    assert listener.of("meter")[-1]["used"] == full > 0
    assert len(listener.of("path")[-1]["ids"]) == 4


def test_a_changed_system_prompt_holds_from_the_next_answer_on() -> None:
    chat = wb.chat(scripted(lambda messages: messages[0].content), system="old")
    assert chat.ask("a").text == "old"
    chat.system = "new"
    assert chat.ask("b").text == "new"
    assert chat.prompt("2").text.startswith("system: old")
    assert chat.prompt("4").text.startswith("system: new")


def test_a_tool_result_is_answered() -> None:
    call = ToolCall(name="clock", id="c1")
    session = Session([Piece(tool_call=call), Piece(finish_reason="tool_calls")], Power.TOOLS)
    tool = {"type": "function", "function": {"name": "clock", "parameters": {}}}
    chat = Chat(model_of(session), tools=[tool])
    listener = Listener(chat)
    assert chat.ask("What time is it?").tool_calls == (call,)
    assert listener.of("tool")[0]["call"]["name"] == "clock"
    assert listener.of("end")[0]["turn"]["tools"][0]["id"] == "c1"
    session.pieces = [Piece(text="Noon.", finish_reason="stop")]
    assert chat.ask(Message("tool", "12:00", tool_call_id="c1")).text == "Noon."
    sent, sampling = session.asked[-1]
    assert [message.role for message in sent] == ["user", "assistant", "tool"]
    assert sampling.tools == (tool,)


def test_what_the_model_cannot_do_is_refused_before_anything_is_said() -> None:
    chat = wb.chat(scripted("x"))
    with pytest.raises(UnsupportedError, match="see images"):
        chat.ask("What is this?", images=[PIXEL])
    with pytest.raises(UnsupportedError, match="JSON schema"):
        wb.chat(scripted("x"), schema={"type": "object"})
    with pytest.raises(InputError, match="not a sampling setting"):
        chat.ask("x", temprature=1)
    with pytest.raises(InputError, match=r"wb\.load"):
        wb.chat("tiny-chat")
    with pytest.raises(InputError, match="no turn"):
        chat.edit("5", "x")
    with pytest.raises(InputError, match="Nothing has been said"):
        chat.regenerate()
    assert len(chat.dialogue) == 0


def test_an_image_reaches_a_model_that_sees(tmp_path: Path) -> None:
    session = Session([Piece(text="A dot.", finish_reason="stop")], Power.IMAGES)
    chat = Chat(model_of(session))
    file = tmp_path / "dot.png"
    file.write_bytes(PIXEL)
    chat.ask("What is this?", images=[file])
    assert session.asked[0][0][0].images == (Image(PIXEL),)
    Listener(chat)
    assert chat._talk.state()["turns"][0]["images"][0]["url"].startswith("data:image/png;base64,")


# What goes wrong


def test_an_error_is_the_turns_and_the_chat_lives_on() -> None:
    rules = [{"exact": "bad", "say": "So far", "fail": "It broke."}, "Good."]
    chat = wb.chat(scripted(rules))
    listener = Listener(chat)
    with pytest.raises(EngineError, match="It broke"):
        chat.ask("bad")
    turn = chat.dialogue["2"]
    assert (turn.text, turn.reply.finish_reason) == ("So far", "error")
    assert "It broke." in turn.error
    assert listener.of("end")[0]["turn"]["meta"]["finish"] == "error"
    assert chat.ask("good").text == "Good."


def test_a_full_context_is_told_and_warned_of_before() -> None:
    model = wb.load("scripted", engine="scripted", script="x" * 30, context=100)
    chat = wb.chat(model)
    listener = Listener(chat)
    chat.ask("y" * 40)
    assert listener.of("meter")[-1]["warning"].startswith("89 of 100 tokens")
    with pytest.raises(ContextLengthError, match="the context holds 100"):
        chat.ask("z" * 90)
    assert "the context holds 100" in chat.dialogue["4"].error
    chat.clear()
    chat.ask("short")
    assert listener.of("meter")[-1] == {"used": 54, "context": 100, "warning": None}


def test_a_dead_child_is_the_turns_error_and_another_model_goes_on() -> None:
    rules = [{"exact": "die", "say": "Last words", "die": "SIGKILL"}]
    model = scripted(rules, isolate=True)
    chat = wb.chat(model)
    with pytest.raises(ChildDiedError):
        chat.ask("die")
    assert "SIGKILL" in chat.dialogue["2"].error
    assert chat.dialogue["2"].text == "Last words"
    model.close()
    with pytest.raises(EngineError, match="is closed"):
        chat.ask("still there?")
    chat.use(scripted("Back."))
    assert chat.ask("still there?").text == "Back."


def test_text_that_is_no_unicode_is_kept_as_far_as_it_is() -> None:
    chat = wb.chat(scripted(None))
    assert chat.ask("a\ud83d b 日本").text == "a\ufffd b 日本"
    assert Dialogue.load(chat.kept) == chat.dialogue


# What a front end is told


def test_deltas_make_the_whole_answer_with_thinking_apart() -> None:
    pieces = [Piece(thinking=f"t{n} ", token_id=n) for n in range(40)]
    pieces += [Piece(text=f"- *w{n}*\n", token_id=n) for n in range(200)]
    usage = Usage(prompt_tokens=3, completion_tokens=240)
    pieces += [Piece(finish_reason="stop", usage=usage)]
    chat = Chat(model_of(Session(pieces, Power.THINKING)))
    listener = Listener(chat)
    reply = chat.ask("Go.")
    trees: dict[str, list[Any]] = {"answer": [], "thinking": []}
    for delta in listener.of("delta"):
        trees[delta["part"]] = apply_patch(trees[delta["part"]], delta["patch"])
    end = listener.of("end")[0]["turn"]
    assert trees == {"answer": end["blocks"], "thinking": end["thinking"]}
    assert end["text"] == reply.text == "".join(f"- *w{n}*\n" for n in range(200))
    assert [kind for kind, _ in listener.told][:4] == ["turn", "turn", "path", "busy"]
    assert listener.of("busy")[-1]["id"] is None
    assert len(listener.of("delta")) < 100  # gathered by the clock, not one a token


def test_a_state_in_the_middle_holds_what_came_so_far() -> None:
    session = Session([Piece(text="one "), Piece(text="two"), Piece(finish_reason="stop")])
    chat = Chat(model_of(session))
    listener = Listener(chat)
    session.gate.clear()
    chat._talk.send("Go.")
    state = chat._talk.state()
    assert state["busy"] == "2"
    assert state["turns"][1]["text"] == ""
    assert state["turns"][1]["meta"] is None
    session.gate.set()
    listener.wait("end")
    state = chat._talk.state()
    assert state["busy"] is None
    assert state["turns"][1]["text"] == "one two"
    assert state["turns"][1]["meta"]["finish"] == "stop"


def test_one_answer_at_a_time() -> None:
    session = Session([Piece(text="x", finish_reason="stop")])
    session.gate.clear()
    chat = Chat(model_of(session))
    listener = Listener(chat)
    chat._talk.send("Go.")
    for refused in (
        lambda: chat._talk.send("More."),
        chat._talk.regenerate,
        chat.clear,
        lambda: chat.show("1"),
        lambda: chat.use(scripted("y")),
    ):
        with pytest.raises(EngineError, match="in progress"):
            refused()
    session.gate.set()
    listener.wait("end")
    assert len(chat.dialogue) == 2


def test_an_answer_that_a_kill_cut_off_is_shown_as_such() -> None:
    dialogue = Dialogue()
    dialogue.answer(dialogue.say("Go.").id)
    chat = wb.chat(scripted("x"), dialogue=Dialogue.from_dict(dialogue.as_dict()))
    Listener(chat)
    assert chat._talk.state()["turns"][1]["meta"]["error"] == "This answer was never finished."
