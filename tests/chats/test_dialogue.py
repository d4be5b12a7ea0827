"""A dialogue loses nothing: branches, what is sent, plain data, several threads."""

from __future__ import annotations

import json
import threading

import pytest

from workbench.chats import Dialogue
from workbench.chats.turn import plain_sampling, sampling_of
from workbench.errors import InputError
from workbench.messages import (
    Image,
    Likelihood,
    Message,
    Reply,
    Sampling,
    Timings,
    ToolCall,
    Usage,
)

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


def exchange(dialogue: Dialogue, question: str, answer: str) -> tuple[str, str]:
    asked = dialogue.say(question)
    turn = dialogue.answer(asked.id)
    dialogue.finish(turn.id, Reply(text=answer))
    return asked.id, turn.id


def texts(dialogue: Dialogue) -> list[str]:
    return [turn.text for turn in dialogue.path()]


def whole_reply() -> Reply:
    likely = Likelihood(token_id=7, text="猫", logprob=float("-inf"))
    usage = Usage(prompt_tokens=12, completion_tokens=3)
    return Reply(
        text="猫\u2028です\x00",
        thinking="hm",
        token_ids=(7, 8, 9),
        tool_calls=(ToolCall(name="look", arguments='{"a": 1}', id="c1"),),
        logprobs=((-0.25, (likely,)), (float("-inf"), ())),
        finish_reason="tool_calls",
        usage=usage,
        timings=Timings.measured(ttft=0.1, total=0.4, usage=usage),
        model="m",
        fallback_from=("big",),
    )


def test_an_edit_and_a_second_answer_are_siblings_and_each_fork_remembers_its_branch() -> None:
    dialogue = Dialogue()
    first, answer = exchange(dialogue, "one", "1")
    second, _ = exchange(dialogue, "two", "2")
    edited = dialogue.edit(second, "deux")
    assert texts(dialogue) == ["one", "1", "deux"]
    again = dialogue.answer(first)
    dialogue.finish(again.id, Reply(text="I"))
    assert texts(dialogue) == ["one", "I"]
    assert dialogue.siblings(again.id) == [answer, again.id]
    dialogue.show(answer)  # comes back as it was seen last: at the edited question
    assert texts(dialogue) == ["one", "1", "deux"]
    dialogue.show(second)
    assert texts(dialogue) == ["one", "1", "two", "2"]
    assert dialogue.siblings(second) == [second, edited.id]
    assert len(dialogue) == 6


def test_clearing_keeps_the_old_branches() -> None:
    dialogue = Dialogue(system="s")
    first, _ = exchange(dialogue, "one", "1")
    dialogue.clear()
    assert dialogue.path() == []
    assert dialogue.messages() == [Message("system", "s")]
    fresh = dialogue.say("new")
    assert dialogue.siblings(fresh.id) == [first, fresh.id]
    assert Dialogue.from_dict(dialogue.as_dict()).path() == dialogue.path()
    dialogue.show(first)
    assert texts(dialogue) == ["one", "1"]


def test_what_is_sent_ends_where_asked_and_never_holds_two_user_turns_in_a_row() -> None:
    dialogue = Dialogue(system="s")
    exchange(dialogue, "one", "1")
    asked = dialogue.say("lost")
    failed = dialogue.answer(asked.id)
    sent = [("system", "s"), ("user", "one"), ("assistant", "1"), ("user", "lost")]
    assert [(m.role, m.content) for m in dialogue.messages(failed.id)] == sent  # still to come
    dialogue.finish(failed.id, error="out of memory")
    stopped = dialogue.answer(dialogue.say("stopped at once").id)
    dialogue.finish(stopped.id, Reply(text="", finish_reason="cancelled"))
    last = dialogue.say("two")
    found = [(m.role, m.content) for m in dialogue.messages()]
    assert found == [*sent[:3], ("user", "two")]
    assert dialogue.messages(asked.id)[-1].content == "lost"
    assert dialogue.messages(last.id, system="") == dialogue.messages()[1:]


def test_a_model_that_truly_says_nothing_has_answered() -> None:
    dialogue = Dialogue()
    exchange(dialogue, "one", "")
    dialogue.say("two")
    assert [m.role for m in dialogue.messages()] == ["user", "assistant", "user"]


def test_plain_data_loads_back_equal() -> None:
    dialogue = Dialogue(system="s", title="t", model="m", made_by={"card": "c", "x": (1, 2)})
    asked = dialogue.say("look", (Image(PNG),))
    turn = dialogue.answer(asked.id, sampling=Sampling(temperature=0.5, stop=("a", "b"), seed=3))
    dialogue.finish(turn.id, whole_reply())
    dialogue.add(Message("tool", "42", tool_call_id="c1"))
    dialogue.answer("3", sampling={"temperature": 1}, made_by={"card": "other"})
    dialogue.edit(asked.id, "look again")
    read = Dialogue.from_dict(json.loads(json.dumps(dialogue.as_dict())))
    assert read == dialogue
    assert read.turns == dialogue.turns
    assert read["2"].reply == whole_reply()
    assert read.path() == dialogue.path()
    assert read["5"].message.images == (Image(PNG),)


def test_sampling_survives_as_plain_data() -> None:
    given = Sampling(temperature=0.3, stop="x", seed=1, schema={"type": "object"}, think=False)
    assert sampling_of(json.loads(json.dumps(plain_sampling(given)))) == given
    assert sampling_of({"temperature": 0.3, "of_a_later_version": 1}).temperature == 0.3


def test_messages_make_a_dialogue() -> None:
    listed = [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v")]
    dialogue = Dialogue.of([{"role": role, "content": text} for role, text in listed])
    assert [(m.role, m.content) for m in dialogue.messages()] == listed
    assert dialogue["2"].system == "s"
    assert dialogue["2"].reply == Reply(text="a")
    with pytest.raises(InputError, match="system"):
        Dialogue.of([{"role": "user", "content": "u"}, {"role": "system", "content": "s"}])


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda d: d.edit("2", "x"), "assistant"),
        (lambda d: d.answer("2"), "answer"),
        (lambda d: d.finish("1", Reply(text="x")), "user"),
        (lambda d: d["9"], "'9'"),
        (lambda d: d.show("9"), "'9'"),
        (lambda d: d.messages("9"), "'9'"),
    ],
)
def test_a_wrong_turn_is_named_and_nothing_changes(broken, said: str) -> None:
    dialogue = Dialogue()
    exchange(dialogue, "one", "1")
    before = dialogue.as_dict()
    with pytest.raises(InputError, match=said):
        broken(dialogue)
    assert dialogue.as_dict() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "replay"}, "no dialogue"),
        ({"schema_version": 99}, "99"),
        ({"shown": {"": "2"}}, "branch on view"),
        ({"shown": {"": "77"}}, "77"),
        ({"turns": [{"id": "2", "parent": None, "role": "user", "content": "x"}]}, "Turn 2"),
        ({"turns": [{"id": "1", "parent": "8", "role": "user", "content": "x"}]}, "follows 8"),
        ({"turns": [{"id": "1", "parent": None, "role": "robot", "content": "x"}]}, "robot"),
        ({"turns": [7]}, "no turn"),
    ],
)
def test_data_that_is_no_dialogue_is_refused(change: dict, said: str) -> None:
    dialogue = Dialogue()
    exchange(dialogue, "one", "1")
    with pytest.raises(InputError, match=said):
        Dialogue.from_dict({**dialogue.as_dict(), **change})


def test_a_cell_reads_while_a_worker_writes() -> None:
    dialogue, wrong = Dialogue(), []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            path = dialogue.path()
            roles = [turn.role for turn in path]
            if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2):
                wrong.append(roles)
            Dialogue.from_dict(dialogue.as_dict())
            list(dialogue)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(40):
        exchange(dialogue, f"q{number}", f"a{number}")
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert len(dialogue.path()) == 80


def test_every_change_is_told() -> None:
    dialogue, states = Dialogue(), []
    dialogue.changed = lambda: states.append(len(dialogue.path()))
    asked, turn = exchange(dialogue, "one", "1")
    dialogue.edit(asked, "eins")
    dialogue.show(turn)
    dialogue.system = "s"
    dialogue.clear()
    assert states == [1, 2, 2, 1, 2, 2, 0]


def test_it_displays_the_branch_on_view() -> None:
    dialogue = Dialogue()
    asked, _ = exchange(dialogue, "one", "**uno** <script>")
    exchange(dialogue, "two", "dos")
    dialogue.edit(asked, "eins")
    dialogue.show("2")
    shown = dialogue._repr_mimebundle_()
    assert "one" in shown["text/plain"]
    assert "dos" in shown["text/html"]
    assert "<script>" not in shown["text/html"]
    assert "eins" not in shown["text/plain"]
