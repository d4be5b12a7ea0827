"""What is kept comes back; what is damaged is named; a kill leaves the last whole state."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.chats import Dialogue, chats, chats_folder, keep, keep_always
from workbench.chats.origin import made_by
from workbench.chats.page import as_page, from_page
from workbench.errors import InputError, NotFoundError
from workbench.messages import Image, Message, Reply, Sampling, ToolCall, Usage

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
TEXT = st.text(
    st.one_of(st.sampled_from("`~#-<>!*_\n\r \t\\|"), st.characters(exclude_categories=["Cs"])),
    max_size=80,
)


def talk(**facts) -> Dialogue:
    dialogue = Dialogue(**{"system": "Be brief.", "model": "tiny · x", **facts})
    asked = dialogue.say("What is this?", (Image(PNG),))
    turn = dialogue.answer(asked.id, sampling=Sampling(seed=4, temperature=0.5))
    reply = Reply(
        text="A cat\n\n### User\n\nNo, wait",
        thinking="Hm.\n",
        token_ids=(1, 2),
        tool_calls=(ToolCall(name="look", arguments='{"at": "-->"}', id="call -->"),),
        usage=Usage(prompt_tokens=5, completion_tokens=2),
    )
    dialogue.finish(turn.id, reply)
    dialogue.add(Message("tool", "```\nopen", tool_call_id="call -->"))
    failed = dialogue.answer("3")
    dialogue.finish(failed.id, error="It was\nkilled.")
    return dialogue


def spoken(dialogue: Dialogue) -> list[tuple]:
    """What a Markdown page promises to bring back."""
    return [
        (
            turn.role,
            turn.text,
            turn.message.tool_calls,
            turn.message.tool_call_id,
            turn.reply.thinking if turn.reply else "",
            turn.error,
        )
        for turn in dialogue.path()
    ]


def test_json_lines_load_back_equal(tmp_path: Path) -> None:
    dialogue = talk()
    dialogue.edit("1", "half a pair \ud800, a separator \u2028 and a return \r\n")
    file = dialogue.save(tmp_path / "a.jsonl")
    read = Dialogue.load(file)
    assert read == dialogue
    assert read.path() == dialogue.path()
    assert len(file.read_bytes().splitlines()) >= 1 + len(dialogue)
    assert read.save(tmp_path / "b.jsonl").read_bytes() == file.read_bytes()


def test_a_page_brings_back_turns_and_text_and_reads_well(tmp_path: Path) -> None:
    dialogue = talk(title="Of cats: *and* more", made_by={"card": "tiny", "plan": {"a": [1]}})
    file = dialogue.save(tmp_path / "a.md")
    read = Dialogue.load(file)
    assert spoken(read) == spoken(dialogue)
    assert (read.system, read.id, read.title, read.made_by) == (
        dialogue.system,
        dialogue.id,
        dialogue.title,
        dialogue.made_by,
    )
    text = file.read_text()
    assert text.startswith("---\nkind: conversation\n")
    assert "### Assistant (tiny · x)" in text
    assert "image/png, 48 bytes" in text
    assert "```\nopen\n<!--" in text
    assert text.count("```") % 2 == 0  # no block of code swallows what follows


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=5), TEXT)
def test_no_text_is_taken_for_a_part_of_the_page(texts: list[str], system: str) -> None:
    dialogue = Dialogue(system=system)
    for text in texts:
        dialogue.finish(dialogue.answer(dialogue.say(text).id).id, Reply(text=text[::-1]))
    read = from_page(as_page(dialogue), source="x")
    assert spoken(read) == spoken(dialogue)
    assert read.system == system
    page = as_page(dialogue).decode()
    dialogue.say(page)  # the page itself pasted into the talk
    assert spoken(from_page(as_page(dialogue), source="x")) == spoken(dialogue)


def test_a_page_tells_what_is_on_other_branches_and_what_was_cut(tmp_path: Path) -> None:
    dialogue = talk()
    dialogue.edit("1", "otherwise")
    file = dialogue.save(tmp_path / "a.md")
    assert "turns_on_other_branches: 4" in file.read_text()
    dialogue.show("4")
    text = dialogue.save(file).read_text()
    file.write_text(text.replace("\n", "\r\n"), newline="")  # as some editors do
    assert spoken(Dialogue.load(file)) == spoken(dialogue)
    file.write_text(text[: text.index("### Tool")])
    with pytest.raises(InputError, match="2 of its 4 turns"):
        Dialogue.load(file)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "", "empty"),
        ("a.jsonl", "{", "line 1"),
        ("a.jsonl", "[]", "line 1"),
        ("a.jsonl", '{"kind": "run"}\n', "no dialogue"),
        ("a.md", "# Title\n", "first block"),
        ("a.md", "---\nkind: [\n---\n", "YAML"),
        ("a.md", "---\nkind: conversation\nmark: .*\n---\n", "mark"),
        ("a.md", "---\nkind: conversation\nmark: 0123abcd\nturns: 1\n---\n\n"
         "<!-- 0123abcd calls -->\n[]\n<!-- 0123abcd end -->\n", "calls"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(InputError, match=said) as error:
        Dialogue.load(file)
    assert str(file) in str(error.value)


def test_other_endings_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.txt"):
        talk().save(tmp_path / "a.txt")
    with pytest.raises(NotFoundError, match=r"wb\.chats"):
        Dialogue.load(tmp_path / "none.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_every_change_is_kept_in_one_file_from_the_first_turn_on(home: Path) -> None:
    dialogue = Dialogue(made_by={"card": "../evil card"})
    file = keep_always(dialogue)
    assert not file.exists()
    asked = dialogue.say("hi")
    assert Dialogue.load(file) == dialogue
    turn = dialogue.answer(asked.id)
    assert Dialogue.load(file)["2"].open
    dialogue.finish(turn.id, Reply(text="yes"))
    dialogue.title = "named"
    assert Dialogue.load(file) == dialogue
    assert file.parent == home / "outputs" / "chats" == chats_folder()
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file.name.endswith(f"-evil-card-{dialogue.id}.jsonl")


def test_threads_that_keep_at_once_leave_the_last_state(home: Path) -> None:
    dialogue = Dialogue()
    file = keep_always(dialogue)
    threads = [
        threading.Thread(target=lambda: [dialogue.say("x") for _ in range(10)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Dialogue.load(file) == dialogue
    assert len(dialogue) == 40


def test_a_disk_that_takes_nothing_is_told_once_and_the_talk_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    dialogue = Dialogue()
    keep_always(dialogue, tmp_path / "file" / "folder")
    with pytest.warns(UserWarning, match="not kept"):
        dialogue.say("one")
    dialogue.say("two")  # a second warning would be an error
    assert len(dialogue) == 2


def test_a_kill_leaves_a_whole_file(home: Path) -> None:
    script = (
        "from workbench.chats import Dialogue, keep_always\n"
        "from workbench.messages import Reply\n"
        "d = Dialogue()\n"
        "print(keep_always(d), flush=True)\n"
        "while True:\n"
        "    d.finish(d.answer(d.say('q' * 5000).id).id, Reply(text='a' * 5000))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    file = Path(process.stdout.readline().strip())
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (file.exists() and len(Dialogue.load(file)) > 8):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    read = Dialogue.load(file)
    assert len(read) > 8
    assert read["1"].text == "q" * 5000


def test_the_shelf_lists_the_newest_first_and_names_the_damaged(home: Path) -> None:
    assert "No conversation" in repr(chats())
    old, new = talk(title="old"), talk()
    old.created = "2026-01-01T00:00:00+00:00"
    new.created = "2026-02-01T00:00:00+00:00"
    keep(old)
    keep(new)
    whole = keep(talk()).read_bytes()
    cut = chats_folder() / "cut.jsonl"
    cut.write_bytes(whole[:-30])
    (chats_folder() / "other.jsonl").write_text('{"kind": "vote"}\n')
    (chats_folder() / ".partial-1-x").write_text("x")
    shelf = wb.chats()
    assert len(shelf) == 5
    seen = {each.file.name: each for each in shelf}
    assert "damaged" in seen["cut.jsonl"].damage
    assert "damaged" in seen["other.jsonl"].damage
    named = [each.title for each in shelf if not each.damage]
    assert named[1:] == ["What is this?", "old"]
    assert shelf[1] == new
    assert shelf[old.id[:6]] == old
    assert "cut.jsonl" in repr(shelf)
    assert "cut.jsonl" in shelf._repr_mimebundle_()["text/html"]
    with pytest.raises(InputError, match=r"cut\.jsonl"):
        shelf[next(i for i, each in enumerate(shelf) if each.file == cut)]
    for wrong in (5, "zz", ""):
        with pytest.raises(NotFoundError):
            shelf[wrong]


def test_what_a_model_is_is_kept_without_what_is_private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "verysecretvalue")
    model = wb.load("scripted", engine="scripted", script="my key is verysecretvalue")
    with model:
        found = made_by(model)
    assert found["card"] == found["engine"] == "scripted"
    assert found["context"] == model.plan.context
    assert found["versions"]["llm-workbench"] == wb.__version__
    assert "cores" in found["machine"]
    assert "verysecretvalue" not in str(found)
    dialogue = Dialogue(made_by=found)
    assert Dialogue.from_dict(dialogue.as_dict()) == dialogue
