"""Long work shows one line, whoever watches: a terminal, a log, a notebook, nobody."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from workbench import progress as module
from workbench.progress import clock, duration, progress, track

LOOP = """
from workbench.progress import progress
with progress("Training", total=500, unit="steps") as bar:
    for step in range(500):
        bar.advance(note=f"loss {1 / (step + 1):.3f}")
"""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(module.time, "monotonic", fake.monotonic)
    monkeypatch.delenv("WORKBENCH_QUIET", raising=False)
    return fake


def test_a_log_gets_a_line_for_each_tenth(watch: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("Converting", total=200, unit="tensors") as bar:
        for _ in range(200):
            watch.now += 0.5
            bar.advance(note="f16")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert 9 <= len(lines) <= 11
    assert "10%" in lines[0]
    assert "20/200 tensors" in lines[0]
    assert lines[-1] == "Converting: 200 tensors, 1 min 40 s, f16"


def test_a_log_gets_a_line_each_half_minute_without_a_total(
    watch: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("Waiting", unit="polls") as bar:
        for _ in range(90):
            watch.now += 1
            bar.advance()
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_short_work_leaves_no_line(watch: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([1, 2, 3], "Counting")) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_trouble_is_named(watch: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with progress("Loading", total=4, unit="files") as bar:
            bar.advance()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        work()
    assert capsys.readouterr().err.startswith("Loading: failed after 1/4 files")


def test_quiet(
    watch: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        for _ in track(range(100), "Loud"):
            watch.now += 10

    monkeypatch.setenv("WORKBENCH_QUIET", "1")
    work()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("WORKBENCH_QUIET", "0")
    work()
    assert "Loud" in capsys.readouterr().err


def test_nested_work_leaves_one_summary(watch: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("Comparing", total=2, unit="forms") as outer:
        for _ in range(2):
            for _ in track(range(3), "Scoring"):
                watch.now += 0.1
            watch.now += 20
            outer.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("Comparing: 2 forms")
    assert not any(line.startswith("Scoring") for line in lines)


def test_track_takes_what_has_no_length() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)

    assert list(track(items(), "Reading")) == [1, 2]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.34, "340 ms"), (4.2, "4.2 s"), (59.94, "59.9 s"), (192, "3 min 12 s"), (3720, "1 h 2 min")],
)
def test_duration(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_clock() -> None:
    assert [clock(7), clock(750), clock(3723)] == ["0:07", "12:30", "1:02:03"]


def test_a_terminal_gets_one_line() -> None:
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "60", "WORKBENCH_QUIET": ""}
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP], stderr=child, stdout=subprocess.PIPE, env=environment
    )
    out, _ = process.communicate(timeout=60)
    os.close(child)
    text = b""
    while chunk := _read(parent):
        text += chunk
    os.close(parent)
    shown = text.decode()
    assert out == b""
    assert shown.count("\n") == 1
    assert shown.rstrip().split("\r")[-1].endswith("loss 0.002")
    assert "\x1b[2K" in shown


def _read(handle: int) -> bytes:
    try:
        return os.read(handle, 65536)
    except OSError:  # Linux says so when the other end is closed
        return b""


def execute(source: str, folder: Path, *, live: bool) -> list[Any]:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    environment = {**os.environ, "WORKBENCH_RUN_FOLDER": str(folder), "WORKBENCH_QUIET": ""}
    environment.pop("WORKBENCH_FRONT_END", None)
    client = NotebookClient(notebook, kernel_name="python3", store_widget_state=False)
    with client.setup_kernel(env=environment):
        client.kc.allow_stdin = live
        client.execute_cell(notebook.cells[0], 0)
    return list(notebook.cells[0].outputs)


@pytest.mark.parametrize("live", [False, True])
def test_a_notebook_gets_one_output(tmp_path: Path, live: bool) -> None:
    source = f"""from workbench import notebook
{LOOP}
    said = (notebook.run_folder() / ".progress").read_text()
assert said.startswith("Training "), said
assert notebook.live() is {live}"""
    outputs = execute(source, tmp_path, live=live)
    assert [output.output_type for output in outputs] == ["display_data"]
    data = outputs[0]["data"]
    assert data["text/plain"].startswith("Training: 500 steps, ")
    assert data["text/plain"].endswith("loss 0.002")
    assert "<script" not in data["text/html"]
    assert "style=" not in data["text/html"]
    assert not list(tmp_path.glob(".*"))  # the line for whoever waits is gone with the work


def test_a_display_is_not_opened_outside_a_kernel() -> None:
    from workbench import notebook

    assert not notebook.in_kernel()
    assert not notebook.live()
    notebook.Display().show({"text/plain": "x"})


def test_references_are_released(tmp_path: Path) -> None:
    cells = (
        """
import gc, weakref
class Big: pass
big = Big(); ref = weakref.ref(big)
def fail(value): raise MemoryError("full")
""",
        "big",
        "fail(big)",
        """
from workbench.notebook import release_references
del big; gc.collect(); held = ref() is not None
release_references(); gc.collect(); print(held, ref() is None)
""",
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    NotebookClient(notebook, kernel_name="python3", allow_errors=True).execute()
    assert notebook.cells[2].outputs[-1].ename == "MemoryError"
    assert notebook.cells[3].outputs[0].text == "True True\n"


def test_notes_go_to_the_run_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench import notebook

    monkeypatch.delenv(notebook.RUN_FOLDER, raising=False)
    notebook.note("number", name="x", value=1)
    monkeypatch.setenv(notebook.RUN_FOLDER, str(tmp_path))
    notebook.note("number", name="猫", value=1)
    assert (tmp_path / notebook.NOTES).read_text("utf-8") == (
        '{"kind": "number", "name": "猫", "value": 1}\n'
    )


def test_patient_work_that_is_short_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = """
from workbench.progress import progress
with progress("Loading", patience=60) as bar:
    bar.update(note="soon")
    with progress("weights", total=3) as inner:
        inner.advance()
try:
    with progress("Loading", patience=60):
        raise ValueError
except ValueError:
    pass
"""
    assert execute(source, tmp_path, live=True) == []
    with pytest.raises(ValueError, match="no"), progress("Loading", patience=60):
        raise ValueError("no")
    assert capsys.readouterr().err == ""


def test_patient_work_that_cannot_say_how_far_it_is_shows_its_clock(tmp_path: Path) -> None:
    source = """
import time
from workbench import notebook
from workbench.progress import progress
with progress("Loading", patience=0.05):
    until = time.monotonic() + 20
    while not (notebook.run_folder() / ".progress").exists() and time.monotonic() < until:
        time.sleep(0.01)
"""
    (output,) = execute(source, tmp_path, live=True)
    assert output["data"]["text/plain"].startswith("Loading: ")


def test_the_bars_of_others_are_silent_within_a_block_and_as_before_after_it() -> None:
    source = """
import threading
import datasets.utils, transformers.utils.logging as models
import huggingface_hub.utils as hub
from workbench.progress import others_silent
def state():
    return (models.is_progress_bar_enabled(), not datasets.utils.are_progress_bars_disabled(),
            not hub.are_progress_bars_disabled(), not hub.are_progress_bars_disabled("mine"))
hub.disable_progress_bars("mine")
assert state() == (True, True, True, False), state()
inside, leave = threading.Event(), threading.Event()
def other():
    with others_silent():
        inside.set(); leave.wait(20)
thread = threading.Thread(target=other)
with others_silent():
    assert state() == (False, False, False, False), state()
    thread.start(); inside.wait(20)
assert state() == (False, False, False, False), "the other thread is still at work"
leave.set(); thread.join()
assert state() == (True, True, True, False), state()
models.disable_progress_bar()
with others_silent(): pass
assert state()[0] is False
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr
