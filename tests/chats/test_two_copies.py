"""Two copies of one conversation go on: every turn of both is kept, and a warning says where."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import workbench as wb
from workbench.chats import Dialogue, chats, chats_folder, keep, keep_always, keeping, kept_file
from workbench.messages import Reply, Usage


def begun() -> tuple[Dialogue, Path]:
    """Return a kept conversation of two turns, and its file."""
    dialogue = Dialogue(made_by={"card": "tiny"})
    file = keep_always(dialogue)
    turn = dialogue.answer(dialogue.say("What is 1 + 1?").id)
    usage = Usage(prompt_tokens=9, completion_tokens=1)
    dialogue.finish(turn.id, Reply(text="2", token_ids=(5,), usage=usage))
    return dialogue, file


def said(dialogue: Dialogue) -> list[str]:
    return [turn.text for turn in dialogue]


def texts() -> list[list[str]]:
    """Return what the kept conversations say."""
    return sorted(said(shelf) for shelf in map(chats().__getitem__, range(len(chats()))))


def test_the_later_one_goes_on_under_an_id_of_its_own(home: Path) -> None:
    one, file = begun()
    two = Dialogue.load(file)
    assert keep_always(two) == file
    two.say("second")
    with pytest.warns(UserWarning, match="Both are kept") as told:
        one.say("first")
    assert len(told) == 1
    other = kept_file(one)
    assert other is not None
    assert other != file == kept_file(two)
    assert one.id.startswith(f"{two.id}-")
    assert one.id in other.name
    for words in (file.name, other.name, one.id, "wb.chats()"):
        assert words in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is told once
        one.say("and more of the first")
        two.say("and more of the second")
    assert Dialogue.load(other) == one
    assert Dialogue.load(file) == two
    assert texts() == sorted([said(one), said(two)])
    assert chats()[two.id] == two  # an id that others begin with still names its own
    assert chats()[one.id] == one
    assert {path.name for path in file.parent.iterdir()} == {file.name, other.name}


def test_two_chats_of_one_file_keep_all_answers(home: Path) -> None:
    model = wb.load("scripted", engine="scripted", script=lambda turns: f"<{turns[-1].content}>")
    first = wb.chat(model)
    first.ask("a")
    second = wb.chat(model, dialogue=first.kept)
    second.ask("b")
    shown: list[tuple[str, dict]] = []
    first._surface.tell = lambda kind, **values: shown.append((kind, values))
    before = first.kept
    with pytest.warns(UserWarning, match="Both are kept"):
        first.ask("c")
    assert (before, first.kept != before) == (second.kept, True)
    assert texts() == [["a", "<a>", "b", "<b>"], ["a", "<a>", "c", "<c>"]]
    (error,) = [values for kind, values in shown if kind == "error"]
    assert first.kept.name in error["message"]


def test_saving_from_the_front_end_overwrites_no_other_copy(home: Path) -> None:
    model = wb.load("scripted", engine="scripted", script="x")
    first = wb.chat(model)
    first.ask("a")
    second = wb.chat(model, dialogue=first.kept)
    second.ask("b")
    first.dialogue.changed = None  # nothing is written until it is saved
    first.ask("c")
    told: list[str] = []
    first._surface.tell = lambda kind, **values: told.append(values.get("path", ""))
    with pytest.warns(UserWarning, match="Both are kept"):
        first._surface._handlers["save"]({"kind": "jsonl"})
    assert told[-1] == str(first.kept)
    assert texts() == [["a", "x", "b", "x"], ["a", "x", "c", "x"]]


def test_an_older_copy_does_not_replace_what_is_kept(home: Path, tmp_path: Path) -> None:
    one, file = begun()
    copies = [Dialogue.load(one.save(tmp_path / name)) for name in ("a.jsonl", "a.md")]
    one.say("later")
    keep_always(copies[0])  # it has nothing new: nothing is written, nothing is told
    assert len(chats()) == 1
    with pytest.warns(UserWarning, match="older copy"):
        copies[0].say("otherwise")
    with pytest.warns(UserWarning, match="Both are kept"):
        keep(copies[1])  # a page lacks token ids and figures
    assert Dialogue.load(file) == one
    assert Dialogue.load(file)["2"].reply.token_ids == (5,)
    assert texts() == sorted([said(one), said(copies[0]), said(copies[1])])


def test_a_copy_that_only_looked_takes_nothing_from_the_other(home: Path) -> None:
    one, file = begun()
    one.edit("1", "What is 2 + 2?")
    two = Dialogue.load(file)
    keep_always(two)
    two.show("2")  # another branch on view is no turn
    one.say("first")
    assert Dialogue.load(file) == one
    os.utime(file)  # nor is a file that was touched, or copied back
    one.say("second")
    file.unlink()
    one.say("third")
    assert [each.name for each in chats_folder().iterdir()] == [file.name]
    assert Dialogue.load(file) == one


def test_what_is_damaged_or_somebody_elses_is_left_as_it_is(home: Path) -> None:
    one, file = begun()
    for strange in (b"", b"{\n", b"my notes\n"):
        file.write_bytes(strange)
        with pytest.warns(UserWarning, match="Both are kept"):
            one.say("on")
        assert file.read_bytes() == strange
        file = kept_file(one)
        assert Dialogue.load(file) == one


def test_a_full_disk_while_they_part_changes_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, file = begun()
    two = Dialogue.load(file)
    keep_always(two)
    two.say("second")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(keeping, "atomic_file", full)
        with pytest.warns(UserWarning, match="No space left"):
            one.say("first")
    assert (one.id, kept_file(one)) == (two.id, file)
    with pytest.warns(UserWarning, match="Both are kept"):
        one.say("first again")
    assert texts() == sorted([said(one), said(two)])


def test_a_file_that_somebody_holds_for_ever_is_not_waited_for(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, file = begun()
    monkeypatch.setattr(keeping, "_PATIENCE", 0.05)
    with file.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.warns(UserWarning, match="Both are kept"):
            one.say("on")
    assert Dialogue.load(kept_file(one)) == one


WRITER = """
import sys, warnings
from workbench.chats import Dialogue, keep_always
warnings.simplefilter("ignore")
dialogue = Dialogue.load(sys.argv[1])
keep_always(dialogue)
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    dialogue.say(f"{sys.argv[2]} {number}")
print("done", flush=True)
sys.stdin.readline()
"""


def writer(file: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(file), name, str(count)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    process.stdin.write("go\n")
    process.stdin.flush()


def test_processes_that_write_at_once_lose_no_turn(home: Path) -> None:
    """Three kernels, each as fast as it can."""
    _, file = begun()
    names = ("a", "b", "c")
    processes = [writer(file, name, 30) for name in names]
    for process in processes:
        go(process)
    for process in processes:
        assert process.stdout.readline() == "done\n"
        process.communicate("end\n", timeout=60)
        assert process.returncode == 0
    assert texts() == [
        ["What is 1 + 1?", "2", *(f"{name} {number}" for number in range(30))] for name in names
    ]
    assert file.exists()
    assert len(list(chats_folder().iterdir())) == 3  # and no lock, and nothing half-written


def test_a_writer_that_is_killed_leaves_no_lock(home: Path) -> None:
    _, file = begun()
    process = writer(file, "a", 100_000)
    go(process)
    while len(Dialogue.load(file)) < 8:
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    left = [path for path in chats_folder().iterdir() if not path.name.startswith(".partial-")]
    assert left == [file]
    two = Dialogue.load(file)
    assert said(two)[:4] == ["What is 1 + 1?", "2", "a 0", "a 1"]
    keep_always(two)
    two.say("on")  # at once, and no warning
    assert Dialogue.load(file) == two
