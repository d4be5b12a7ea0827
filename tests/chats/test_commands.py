"""The command line keeps what is said, lists it, and asks it again."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench.catalog import Card
from workbench.chats import Dialogue, Turn, asking, chats
from workbench.chats.turn import sampling_of
from workbench.cli import main
from workbench.messages import Reply, Sampling

SCRIPTED = ["scripted", "--engine", "scripted"]


@dataclasses.dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def workbench(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Done]:
    """Run a command in this process."""

    def run(*arguments: str, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        said = capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)

    return run


def test_an_answer_is_kept_while_it_grows(
    workbench: Callable[..., Done], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Turn] = []
    original = Dialogue.so_far

    def so_far(self: Dialogue, turn: Turn, reply: Reply) -> None:
        original(self, turn, reply)
        seen.append(chats()[0][turn.id])

    monkeypatch.setattr(asking, "KEEP", 0.0)
    monkeypatch.setattr(Dialogue, "so_far", so_far)
    assert workbench("chat", *SCRIPTED, stdin="a cat\n").returncode == 0
    texts = [turn.text for turn in seen]
    assert texts[:5] == ["a", "a ", "a c", "a ca", "a cat"]
    assert {turn.reply.finish_reason for turn in seen if turn.reply} == {"interrupted"}
    assert not any(turn.open for turn in seen)
    whole = chats()[0]["2"]
    assert (whole.text, whole.reply.finish_reason) == ("a cat", "stop")


def test_a_chat_is_kept_listed_shown_and_asked_again(
    workbench: Callable[..., Done], home: Path
) -> None:
    said = workbench(
        "chat", *SCRIPTED, "--system", "Echo.", "--max-tokens", "9", stdin="one\ntwo\n"
    )
    assert said.returncode == 0, said.stderr
    kept = chats()[0]
    assert [turn.text for turn in kept.path()] == ["one", "one", "two", "two"]
    assert kept.system == "Echo."
    assert sampling_of(kept["2"].sampling) == Sampling(max_tokens=9)
    assert kept.made_by["card"] == "scripted"
    assert chats().file(0).name in said.stdout

    listed = workbench("chats")
    assert kept.id in listed.stdout
    shown = workbench("chats", "0").stdout
    assert "System prompt:\nEcho." in shown
    assert shown.count("two") == 2

    out = home / "replay.json"
    again = workbench("replay", kept.id, *SCRIPTED, "--out", str(out))
    assert again.returncode == 0, again.stderr
    assert "2 of 2 answers the same" in again.stdout
    assert json.loads(out.read_text())["kind"] == "replay"
    assert len(chats()) == 2


def test_nothing_is_kept_where_that_is_wanted_and_wrong_names_are_one_line(
    workbench: Callable[..., Done], home: Path
) -> None:
    said = workbench("chat", *SCRIPTED, "--no-keep", stdin="on\x1b[2Je\n")
    assert said.returncode == 0, said.stderr
    assert "␛[2J" in said.stdout  # shown, not obeyed
    assert not (home / "outputs" / "chats").exists()
    for words in (
        ["replay", "none.jsonl", *SCRIPTED],
        ["replay", "abcd", *SCRIPTED],
        ["chats", "7"],
    ):
        done = workbench(*words)
        assert done.returncode == 1
        assert len(done.stderr.strip().splitlines()) == 1
        assert "Traceback" not in done.stderr


def test_an_answer_that_fails_is_told_and_the_chat_goes_on(
    workbench: Callable[..., Done], home: Path
) -> None:
    long = "word " * 5000  # more than the context of the scripted engine
    said = workbench("chat", *SCRIPTED, stdin=f"{long}\nshort\n")
    assert said.returncode == 0, said.stderr
    assert "error:" in said.stderr
    kept = chats()[0]
    assert kept["2"].error
    assert kept["4"].text == "short"
    assert [message.content for message in kept.messages()] == ["short", "short"]
    assert Dialogue.load(chats().file(0)) == kept


def test_sampling_is_greedy_unless_the_recommended_or_a_given_one_is_wanted(
    workbench: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    recommended = Sampling(temperature=0.7, top_p=0.9)
    monkeypatch.setattr(Card, "recommended_sampling", lambda _: recommended)
    for given, expected in (
        (["--recommended"], recommended),
        (["--recommended", "--temperature", "0", "--seed", "4"], Sampling(top_p=0.9, seed=4)),
    ):
        assert workbench("chat", *SCRIPTED, *given, stdin="one\n").returncode == 0
        assert [sampling_of(chats()[0]["2"].sampling)] == [expected]
