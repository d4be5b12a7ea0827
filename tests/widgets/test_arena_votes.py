"""Votes on an arena's rounds: hidden names, what is kept, what a front end may send and sees."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from arena_parts import described, pair, scripted

import workbench as wb
from workbench.chats.votes import Votes
from workbench.engines.model import Model
from workbench.errors import InputError
from workbench.widgets.arena import Arena
from workbench.widgets.arena_contestants import Source

# Blind, and votes


def told(arena: Arena) -> str:
    with arena._play.lock:
        return json.dumps({**arena._play.state(), "contestants": None, "votes": None})


def test_blind_names_stay_hidden_until_the_vote() -> None:
    arena = wb.arena([scripted("a"), described("b", "Bernd")], blind=True, seed=3)
    names = arena.contestants
    round = arena.ask("Go.")
    for hidden in (told(arena), arena.transcript().html, repr(round), arena.transcript().text):
        assert "Bernd" not in hidden.replace("Arena: " + ", ".join(names), "")
        assert names[0] not in hidden.replace("Arena: " + ", ".join(names), "")
    column = json.loads(told(arena))["rounds"][0]["columns"][0]
    assert column["name"] is column["turn"]["meta"]["rate"] is None
    assert column["turn"]["meta"]["completion_tokens"]
    with pytest.raises(InputError, match="none of the answers"):
        arena.vote("Bernd")
    shown = [entry.contestant.name for entry in round.entries]
    vote = arena.vote("b")
    assert vote.blind
    assert vote.choices == tuple(shown)
    assert vote.best == shown[1]
    assert "Bernd" in told(arena)
    assert json.loads(told(arena))["rounds"][0]["columns"][0]["turn"]["meta"]["rate"]
    with pytest.raises(InputError, match="was voted on"):
        arena.vote("a")
    # Who goes on after a reveal is known; the next prompt hides the names again.
    assert not arena.ask("On.", follow=True).hidden
    assert arena.ask("New.").hidden
    arena.reveal()
    assert not arena.vote("a").blind


def test_a_blind_error_names_nobody() -> None:
    failing = described([{"regex": "", "fail": "scripted broke: secret-name"}], "secret-name")
    arena = wb.arena([failing, described("b", "other")], blind=True, seed=1)
    round = arena.ask("Go.")
    assert "secret-name" in "".join(round.errors.values())
    assert "secret-name" not in told(arena)


def test_the_order_is_drawn_anew_for_each_prompt_and_the_same_for_a_seed() -> None:
    def orders(seed: int) -> list[tuple[str, ...]]:
        arena = wb.arena([described(n, n) for n in "abc"], blind=True, seed=seed)
        rounds = [arena.ask("Go.") for _ in range(5)]
        return [tuple(e.contestant.name for e in round.entries) for round in rounds]

    assert orders(1) == orders(1)
    assert orders(1) != orders(2)
    assert len(set(orders(1))) > 1


def test_votes_are_data_and_kept() -> None:
    arena = pair("a", "b")
    for choice in ("a", "one", "TIE", "bad", "b"):
        arena.ask("Go.")
        arena.vote(choice)
    rows = {row["contestant"]: row for row in arena.votes.overall()}
    assert (rows["one"]["wins"], rows["one"]["ties"], rows["one"]["losses"]) == (2, 2, 1)
    assert rows["one"]["low"] < rows["one"]["win_rate"] < rows["one"]["high"]
    assert [vote.note for vote in arena.votes] == ["", "", "tie", "both bad", ""]
    assert arena.votes.path.parent.parent.name == "chats"
    assert Votes.load(arena.votes.path) == arena.votes
    arena.vote("a")  # the last vote can be changed
    assert [vote.best for vote in arena.votes][-1] == "one"
    assert len(arena.votes) == 5
    with pytest.raises(InputError, match="Only the last"):
        arena.vote("b", round=1)
    with pytest.raises(InputError, match="Vote A, B, tie or bad"):
        arena.vote("c")
    answers = arena.votes[0].details["answers"]
    assert answers["one"]["dialogue"] == arena.dialogues["one"].id
    assert arena.dialogues["one"][answers["one"]["turn"]].text == "a"
    three = wb.arena([described(n, n) for n in "abc"])
    three.ask("Go.")
    assert three.vote("bad").note == "all bad"


# What a front end may send


def test_wrong_messages_are_refused() -> None:
    from workbench.widgets.arena_requests import handlers_of

    arena = pair("a", "b")
    arena.ask("Go.")
    handlers = handlers_of(arena._play)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("ask", {}),
        ("ask", {"text": 3}),
        ("ask", {"text": " "}),
        ("stop", {"place": "x"}),
        ("stop", {"place": -1}),
        ("vote", {"round": 0, "choice": 0}),
        ("vote", {"choice": [1]}),
        ("vote", {"choice": True}),
        ("vote", {"choice": 9}),
        ("vote", {"round": 99, "choice": 0}),
        ("differences", {"round": 1, "base": 9}),
        ("reveal", {"round": "one"}),
        ("next", {}),
    ]
    for kind, said in wrong:
        with pytest.raises(InputError):
            handlers[kind](said)
    assert len(arena.votes) == 0
    assert len(arena.rounds) == 1


# The static copy


def test_the_transcript_survives_the_sanitiser_and_tells_all() -> None:
    from nbconvert.filters.strings import clean_html

    hostile = "<script>alert(1)</script> [x](javascript:1) \u202egpj.exe **bold**"
    arena = wb.arena([described(hostile, "<b>one</b>"), described("Plain.", "two")], title="<i>T")
    arena.ask("What is <b>this</b>?")
    arena.vote("b")
    source = arena.transcript().html
    inside = source[source.index(">") + 1 :]
    assert str(clean_html(source)).endswith(inside)
    for words in ("&lt;script&gt;", "<strong>bold</strong>", "Plain.", "tokens/s", "Votes", "100%"):
        assert words in source
    assert "<script" not in source
    assert "href" not in source
    assert "\u202e" not in source + arena.transcript().text
    assert "{+" in source
    assert 'data-chat="' not in source


def test_a_column_tells_what_its_loading_does() -> None:
    from workbench.progress import progress

    arena = pair("a", "b")
    columns: list[dict[str, Any]] = []

    class Seen:
        seen = True

        def tell(self, kind: str, **values: Any) -> None:
            if kind == "column":
                columns.append(values["column"])

        def update(self) -> None:
            pass

    arena._play.listener = Seen()
    load = Source.load

    def slow(self: Source, tell: Any = None) -> Model:
        with progress("Converting", total=4, unit="tensors", tell=tell) as bar:
            bar.advance(3)
            time.sleep(0.25)
            bar.advance(1)
        return load(self, tell)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Source, "load", slow)
        arena.ask("Go.")
    loading = [column for column in columns if column["state"] == "loading"]
    assert any(column["share"] for column in loading)
    assert any("Converting" in column["note"] and "tensors" in column["note"] for column in loading)
    assert columns[-1]["note"] == ""
