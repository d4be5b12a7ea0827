"""An arena without any notebook: who answers when, what is kept, shown, voted on and refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from arena_parts import described, pair, scripted

import workbench as wb
from workbench.chats.dialogue import Dialogue
from workbench.engines.model import Model
from workbench.errors import EngineError, InputError, MemoryShortError, NotFoundError
from workbench.messages import Sampling
from workbench.widgets.arena import Arena
from workbench.widgets.arena_contestants import Source, contestants_of
from workbench.widgets.arena_round import Round


class Hall:
    """Counts who is inside at once; ``say`` is a script that stays for a while."""

    def __init__(self, together: int) -> None:
        self.most, self.inside, self.order = 0, 0, list[str]()
        self._wanted, self._changed = together, threading.Condition()

    def script(self, name: str) -> Callable[[Any], str]:
        def say(messages: Any) -> str:
            with self._changed:
                self.order.append(name)
                self.inside += 1
                self.most = max(self.most, self.inside)
                self._changed.notify_all()
                patience = 20 if self._wanted > 1 else 0.2
                self._changed.wait_for(lambda: self.most >= self._wanted, patience)
                if self._wanted == 1:
                    self._changed.wait(0.1)
                self.inside -= 1
            return name

        return say


# Rounds


def test_all_are_asked_the_same_and_each_prompt_begins_a_branch(home: Path) -> None:
    arena = pair(lambda m: f"<{m[-1].content} {len(m)}>", "No.", system="Be kind.", title="Pets")
    round = arena.ask("a", max_tokens=50)
    assert {name: reply.text for name, reply in round.replies.items()} == {
        "one": "<a 2>",
        "two": "No.",
    }
    assert arena.ask("b").replies["one"].text == "<b 2>"
    assert arena.ask("c", follow=True).replies["one"].text == "<c 4>"
    dialogue = arena.dialogues["one"]
    assert [m.content for m in dialogue.messages()] == ["Be kind.", "b", "<b 2>", "c", "<c 4>"]
    assert len(dialogue) == 6
    (kept,) = (home / "outputs" / "chats").glob(f"*{dialogue.id}.jsonl")
    assert Dialogue.load(kept) == dialogue
    assert dialogue["2"].sampling["max_tokens"] == 50
    assert dialogue.title == "Pets"
    assert len(wb.chats()) == 2  # the votes are no conversation


def test_prompts_of_a_list_are_asked_one_after_another() -> None:
    arena = pair("x", "y", prompts=["first", "second"])
    assert arena.next().prompt == "first"
    assert arena.prompts == ["second"]
    assert arena.next(max_tokens=1).replies["one"].usage.completion_tokens == 1
    with pytest.raises(InputError, match="No prompt is left"):
        arena.next()
    shipped = wb.arena([scripted("x"), scripted("y")], prompts="sums.en")
    assert shipped.prompts
    assert all(isinstance(each, str) for each in shipped.prompts)


def test_answers_are_made_at_once_where_nothing_speaks_against_it() -> None:
    hall = Hall(3)
    arena = wb.arena([scripted(hall.script(name)) for name in "abc"])
    round = arena.ask("Go.")
    assert hall.most == 3
    assert [entry.state for entry in round.entries] == ["done"] * 3


def test_one_after_the_other_where_wanted_or_where_one_model_serves_both() -> None:
    hall = Hall(1)
    wb.arena([scripted(hall.script("a")), scripted(hall.script("b"))], together=False).ask("Go.")
    assert (hall.most, hall.order) == (1, ["a", "b"])
    hall = Hall(1)
    model = scripted(hall.script("a"))
    arena = wb.arena([(model, {"temperature": 0.7}), (model, {"temperature": 1.3}), model])
    round = arena.ask("Go.")
    assert hall.most == 1
    label = model.label
    assert list(round.replies) == [
        f"{label} · temperature 0.7",
        f"{label} · temperature 1.3",
        label,
    ]
    kept = [turn.sampling["temperature"] for turn in (e.turn for e in round.entries) if turn]
    assert kept == [0.7, 1.3, 0]


def test_what_does_not_fit_beside_the_others_is_loaded_in_their_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened: list[str] = []
    load, unload = Source.load, Source.unload

    def counted(self: Source, tell: Any = None) -> Model:
        happened.append(f"load {self.plan.options['script']}")
        assert len(open_now()) < 2, "it was loaded beside the other"
        return load(self, tell)

    def dropped(self: Source) -> None:
        happened.append(f"unload {self.plan.options['script']}")
        unload(self)

    def open_now() -> list[Any]:
        return [source for source in sources if source.open]

    monkeypatch.setattr(Source, "load", counted)
    monkeypatch.setattr(Source, "unload", dropped)
    monkeypatch.setattr(Source, "fits", lambda self: not any(s.open for s in sources))
    arena = pair("a", "b")
    sources = [each.source for each in arena._play.contestants]
    first = arena.ask("Go.")
    assert {name: reply.text for name, reply in first.replies.items()} == {"one": "a", "two": "b"}
    assert happened == ["load a", "unload a", "load b"]
    arena.ask("Again.")
    # What is in memory answers first.
    assert happened[3:] == ["unload b", "load a"]
    arena.close()
    assert open_now() == []
    monkeypatch.setattr(Source, "fits", lambda self: True)
    monkeypatch.setattr(Source, "load", load)
    with pair("a", "b") as roomy:
        roomy.ask("Go.")
        assert all(each.source.open for each in roomy._play.contestants)


def test_the_plan_says_whether_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.widgets import arena_contestants

    source = Source(plan=wb.plan("tiny-chat", context=512))
    assert source.fits()

    def short(plan: Any) -> None:
        raise MemoryShortError("Too much.")

    monkeypatch.setattr(arena_contestants, "require_memory", short)
    assert not source.fits()
    monkeypatch.undo()
    room_of = arena_contestants.room_of
    # It would fit, but not with the margin that a plan keeps free.
    full = lambda machine, **given: room_of("cpu-1GB", rules=given["rules"], margin=0.9999)  # noqa: E731
    monkeypatch.setattr(arena_contestants, "room_of", full)
    assert not source.fits()


def test_one_that_fails_does_not_end_the_others() -> None:
    arena = wb.arena(
        [
            described([{"regex": "", "say": "half", "fail": "The card fell off."}], "broken"),
            described("x", "never", fails="No such luck."),
            described("Fine.", "good"),
        ]
    )
    round = arena.ask("Go.")
    assert [entry.state for entry in round.entries] == ["failed", "failed", "done"]
    assert round.errors["never"] == "No such luck."
    assert "The card fell off." in arena.dialogues["broken"]["2"].error
    assert "No such luck." in arena.dialogues["never"]["2"].error
    assert round.replies["good"].text == "Fine."
    assert "The card fell off." in arena.transcript().text
    with pytest.raises(InputError, match="fewer than two answers"):
        arena.vote("c")
    # The next round tries again, and what failed does not stand in the talk.
    again = arena.ask("And now?", follow=True)
    assert again.replies["good"].text == "Fine."
    lost = pair([{"regex": "", "fail": "Gone."}], [{"regex": "", "fail": "Lost."}])
    with pytest.raises(EngineError, match="Gone"):
        lost.ask("Go.")


def test_a_closed_model_is_a_column_that_failed() -> None:
    models = [scripted("a"), scripted("b")]
    models[0].close()
    round = wb.arena(models).ask("Go.")
    assert [entry.state for entry in round.entries] == ["failed", "done"]


SLOW = {"script": " ".join(["word"] * 3000), "tokens": "words", "tokens_per_second": 100}


def started(arena: Arena, text: str = "Go.") -> Any:
    from workbench.messages import Message

    return arena._play.ask(Message("user", text))


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_stop_ends_one_answer_or_all_and_what_waits_does_not_begin() -> None:
    slow = scripted(**SLOW, context=8000)
    arena = wb.arena([(slow, {"max_tokens": 2900}), scripted("b"), (slow, {"seed": 1})])
    round = started(arena)
    until(lambda: round.entries[0].answer and round.entries[0].answer.text)
    arena.stop("c")
    until(lambda: round.entries[2].state == "stopped")
    assert round.entries[0].state == "answering"
    with pytest.raises(EngineError, match="in progress"):
        started(arena)
    with pytest.raises(InputError, match="goes on"):
        arena.vote("a")
    arena.stop("a")
    until(lambda: not arena.busy)
    assert [entry.state for entry in round.entries] == ["stopped", "done", "stopped"]
    assert round.entries[0].reply.finish_reason == "cancelled"
    assert round.entries[0].text.startswith("word")
    assert round.entries[2].turn is None
    second = started(arena)
    until(lambda: second.entries[0].answer and second.entries[0].answer.text)
    arena.stop()
    until(lambda: not arena.busy)
    assert second.entries[0].state == second.entries[2].state == "stopped"


def test_ctrl_c_ends_all_and_keeps_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = wb.arena([scripted(**SLOW, context=8000), scripted(**SLOW, context=8000)])

    def interrupted(self: Round, seconds: float) -> bool:
        until(lambda: all(entry.answer and entry.answer.text for entry in self.entries))
        raise KeyboardInterrupt

    monkeypatch.setattr(Round, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        arena.ask("Go.")
    assert not arena.busy
    assert [entry.state for entry in arena.rounds[0].entries] == ["stopped", "stopped"]
    assert all(entry.text for entry in arena.rounds[0].entries)


# What is seen in the answers


def test_where_two_greedy_answers_part_is_told_in_tokens_and_characters() -> None:
    arena = pair("The cat sat.", "The dog sat.")  # a token is a byte
    round = arena.ask("Go.")
    parting = round.parting(0, 1)
    assert (parting.character, parting.token, parting.first, parting.second) == (4, 4, "c", "d")
    assert parting.greedy
    assert "part at token 4 ('c' / 'd'), character 4" in round.caption()
    assert [(s.kind, s.text) for s in round.differences()][1] == ("removed", "cat")
    same = pair("x", "x").ask("Go.")
    assert same.parting(0, 1).character is None
    shorter = pair("The", "The cat").ask("Go.").parting(0, 1)
    assert (shorter.character, shorter.token, shorter.second) == (3, 3, " ")
    warm = pair("a", "b", sampling={"temperature": 1}).ask("Go.")
    assert not warm.parting(0, 1).greedy
    assert "chance" in warm.caption()


def test_ids_of_two_vocabularies_are_not_compared() -> None:
    # Words get their ids as they are seen: the same ids stand for other words.
    arena = pair("The cat sat.", "The dog sat down.")
    words = [described(text, name, tokens="words") for text, name in
             (("one The cat sat.", "a"), ("one A dog sat down.", "b"))]  # fmt: skip
    parting = wb.arena(words).ask("Go.").parting(0, 1)
    assert (parting.character, parting.token) == (4, None)
    assert arena.ask("Go.").parting(0, 1).token == 4


def test_the_fastest_is_marked_among_whole_answers() -> None:
    fast = described("a " * 40, "fast", tokens="words", tokens_per_second=400)
    slow = described("a " * 40, "slow", tokens="words", tokens_per_second=40)
    arena = wb.arena([slow, fast])
    round = arena.ask("Go.")
    assert "rate" in round.best()[1]
    assert "rate" not in round.best().get(0, [])
    rows = {row["name"]: row for row in round.rows()}
    assert rows["fast"]["tokens_per_second"] > rows["slow"]["tokens_per_second"]
    assert "2 answering at once" in round.caption()
    alone = wb.arena([slow, fast], together=False).ask("Go.", max_tokens=3)
    assert "at once" not in alone.caption()


# Who may take part


def test_what_is_no_arena_is_refused_with_what_to_do(tmp_path: Path) -> None:
    model = scripted("x")
    for wrong in (None, [], [model], model, "tiny-chat", [model, 7], [model, (model, 3)]):
        with pytest.raises(InputError) as refused:
            wb.arena(wrong)
        assert refused.value.hint
    with pytest.raises(InputError, match="names no model"):
        wb.arena([model, {"engine": "scripted"}])
    with pytest.raises(InputError, match="temperature"):
        wb.arena([model, scripted("y")], sampling={"temprature": 1})
    with pytest.raises(NotFoundError, match="no adapter"):
        wb.arena(model, adapter="/nowhere")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(InputError, match="does not name its base"):
        wb.arena(adapter=tmp_path)
    with pytest.raises(InputError, match="forms"):
        wb.arena("tiny-chat", forms=["llama.cpp:F16", "transformers:fp32"], adapter="x")
    with pytest.raises(InputError, match="of one model"):
        wb.arena([model], forms=["llama.cpp:F16", "llama.cpp:Q8_0"])
    arena = wb.arena([model, scripted("y")])
    with pytest.raises(InputError, match="temperature"):
        arena.ask("Go.", temprature=1)
    with pytest.raises(InputError, match="Nothing has been asked"):
        arena.ask("Go.", follow=True)
    with pytest.raises(InputError, match="Nothing has been asked"):
        arena.vote("a")
    assert not arena.busy


def test_forms_are_written_as_compare_writes_them() -> None:
    found = contestants_of("tiny-chat", forms=["llama.cpp:Q8_0", "transformers:fp32"])
    assert [each.name for each in found] == ["llama.cpp:Q8_0", "transformers:fp32"]
    assert [each.source.plan.engine for each in found] == ["llama.cpp", "transformers"]
    assert found[0].source.plan.quantization == "Q8_0"
    assert all(each.source.owned and not each.source.open for each in found)


def test_names_differ_and_settings_go_over_those_of_the_arena() -> None:
    model, plan = scripted("x"), wb.plan("scripted", engine="scripted")
    found = contestants_of(
        [model, plan, (plan, {"temperature": 1.0})], sampling={"temperature": 0.5, "max_tokens": 9}
    )
    assert len({each.name for each in found}) == 3
    assert found[2].sampling == {"temperature": 1.0, "max_tokens": 9}
    assert found[1].source is found[2].source
    whole = contestants_of([model, (model, {"seed": 4})], sampling=Sampling(top_k=5))
    assert whole[1].sampling == Sampling(top_k=5, seed=4)


def test_a_pair_of_ones_own_models_is_neither_closed_nor_changed() -> None:
    models = [scripted("a"), scripted("b")]
    with wb.arena(models) as arena:
        arena.ask("Go.")
    assert not any(model.closed for model in models)
