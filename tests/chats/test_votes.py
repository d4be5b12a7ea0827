"""Votes count as they should, keep, and tell how sure their rates are."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from workbench.chats.votes import Vote, Votes
from workbench.errors import InputError, NotFoundError
from workbench.evaluate.statistics import wilson


def row(rows: list[dict], name: str, value: str) -> dict:
    return next(each for each in rows if each[name] == value)


def test_a_pair_has_a_win_rate_of_decided_votes_with_wilsons_interval() -> None:
    votes = Votes()
    for best in ["a"] * 7 + ["b"] * 3 + [None] * 5:
        votes.add("q", ["a", "b"], best=best)
    found = row(votes.overall(), "contestant", "a")
    interval = wilson(7, 10)
    assert (found["votes"], found["wins"], found["ties"], found["losses"]) == (15, 7, 5, 3)
    assert (found["win_rate"], found["low"], found["high"]) == (
        0.7,
        interval.low,
        interval.high,
    )
    assert row(votes.overall(), "contestant", "b")["win_rate"] == 0.3
    pair = votes.pairs()[0]
    assert (pair["pair"], pair["wins"], pair["ties"], pair["losses"]) == ("a : b", 7, 5, 3)


def test_only_ties_decide_nothing() -> None:
    votes = Votes()
    votes.add("q", ["a", "b"])
    assert row(votes.overall(), "contestant", "a")["win_rate"] is None
    assert "–" in str(votes)


def test_a_ranking_and_a_best_answer_make_pairwise_wins() -> None:
    votes = Votes()
    votes.add("q", ["c", "a", "b"], ranking=["a", ["b", "c"]])
    votes.add("q", ["a", "b", "c"], best="b")
    by_pair = {each["pair"]: (each["wins"], each["ties"], each["losses"]) for each in votes.pairs()}
    assert by_pair == {"a : b": (1, 0, 1), "a : c": (1, 0, 0), "b : c": (1, 1, 0)}
    assert votes[1].score("a", "c") is None  # "b is best" says nothing of these two
    overall = {each["contestant"]: (each["wins"], each["losses"]) for each in votes.overall()}
    assert overall == {"a": (1, 1), "b": (1, 1), "c": (0, 2)}
    assert "By pair" in str(votes)
    assert "By pair" in votes._repr_mimebundle_()["text/html"]


def test_the_place_shown_and_blindness_are_kept_apart() -> None:
    votes = Votes()
    votes.add("q", ["a", "b"], best="a", blind=True)
    votes.add("q", ["b", "a"], best="b", blind=True)
    votes.add("q", ["b", "a"], best="a")
    place = votes.first_place()
    assert (place["wins"], place["losses"]) == (2, 1)
    assert len(votes.only(blind=True)) == 2
    assert row(votes.only(blind=False).overall(), "contestant", "a")["wins"] == 1
    assert len(votes.only(among=["a", "c"])) == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"choices": ["a"], "best": "a"}, "two or more"),
        ({"choices": ["a", "a"], "best": "a"}, "different"),
        ({"choices": ["llama", "qwen"], "best": "lama"}, "llama"),
        ({"choices": ["a", "b"], "ranking": ["a", "a"]}, "once"),
        ({"choices": ["a", "b"], "ranking": []}, "once"),
        ({"choices": ["a", "b"], "ranking": ["a", []]}, "once"),
        ({"choices": ["a", "b"], "best": "a", "ranking": ["a"]}, "either"),
    ],
)
def test_a_wrong_vote_is_refused_and_not_counted(given: dict, said: str, tmp_path: Path) -> None:
    votes = Votes(path=tmp_path / "votes.jsonl")
    with pytest.raises(InputError, match=said):
        votes.add("q", **given)
    assert len(votes) == 0
    assert not (tmp_path / "votes.jsonl").exists()


def test_votes_load_back_equal_and_each_is_on_disk_at_once(tmp_path: Path) -> None:
    file = tmp_path / "votes.jsonl"
    votes = Votes(path=file)
    votes.add("猫?", ["a", "b"], best="b", blind=True, note="short", details={"seed": 1})
    assert Votes.load(file) == votes
    votes.add("q", ["a", "b", "c"], ranking=[["a", "b"], "c"])
    read = Votes(path=file)
    assert read == votes
    assert read[0].details == {"seed": 1}
    votes.undo()
    assert len(Votes.load(file)) == 1
    assert votes.save(tmp_path / "copy.jsonl").read_bytes() == file.read_bytes()


def test_a_damaged_file_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "votes.jsonl"
    vote = Vote(prompt="q", choices=("a", "b"), ranking=(("a",),))
    file.write_text(json.dumps(vote.as_dict()) + '\n{"prompt"\n')
    with pytest.raises(InputError, match=r"votes\.jsonl, line 2"):
        Votes.load(file)
    file.write_text(json.dumps({**vote.as_dict(), "winner": 1}))
    with pytest.raises(InputError, match="winner"):
        Votes.load(file)
    with pytest.raises(NotFoundError):
        Votes.load(tmp_path / "none.jsonl")


def test_votes_of_several_threads_all_count(tmp_path: Path) -> None:
    votes = Votes(path=tmp_path / "votes.jsonl")
    threads = [
        threading.Thread(target=lambda: [votes.add("q", ["a", "b"], best="a") for _ in range(5)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(votes) == len(Votes.load(tmp_path / "votes.jsonl")) == 20


def test_no_votes_display_too() -> None:
    assert "No votes" in Votes()._repr_mimebundle_()["text/html"]
    assert len(Votes().table()) == len(Votes().pair_table()) == 0
