"""A run that is interrupted or killed leaves no process, nothing half-written, and says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from small_notebooks import processes_of_runs, wait_until

from workbench.errors import RunError
from workbench.runs import Run, report, run, runs

LONG = """import subprocess, time
from pathlib import Path
import workbench as wb
wb.number("steps", 7)
child = subprocess.Popen(["sleep", "600"])
Path("began").touch()
try:
    time.sleep(600)
finally:
    Path("tidied").touch()"""


def start(path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "workbench.cli", "run", str(path)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)


def begun(home: Path) -> Run:
    wait_until(lambda: list(home.glob("outputs/runs/*/began")), what="the cell began")
    (found,) = runs()
    assert found.outcome == "running"
    assert len(processes_of_runs(home)) == 4  # worker, guard, kernel, and the kernel's child
    return found


def worker_of(found: Run) -> int:
    return int(found.data["process"]["pid"])


def whole(found: Run) -> Run:
    """Check that only whole files are there under final names."""
    names = {path.name for path in found.folder.iterdir()}
    assert {"run.json", "notebook.ipynb", "report.html", "run.log"} <= names
    assert not [name for name in names if name.startswith(".")]
    json.loads((found.folder / "notebook.ipynb").read_text(encoding="utf-8"))
    assert (found.folder / "report.html").read_text(encoding="utf-8").endswith("</html>\n")
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whoever_started_it_is_stopped(
    notebook: Callable[..., Path], home: Path, number: signal.Signals
) -> None:
    process = start(notebook([LONG, "open('after', 'w')"]))
    folder = begun(home).folder
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    wait_until(lambda: not processes_of_runs(home), what="no process is left")

    (found,) = runs()
    assert found.outcome == "interrupted"
    assert found.data["error"]["name"] == "Interrupted"
    assert found.numbers == {"steps": 7}
    assert (folder / "tidied").exists()  # the cell was interrupted as by Ctrl-C, not killed
    assert not (folder / "after").exists()
    whole(found)
    if number is signal.SIGINT:
        assert process.returncode == 130
        assert b"Traceback" not in err
    if number is signal.SIGKILL:  # which tidies up least
        assert run(notebook(["print(word)"], name="next"), progress=False).outcome == "done"


def test_the_worker_is_killed(notebook: Callable[..., Path], home: Path) -> None:
    process = start(notebook([LONG]))
    os.kill(worker_of(begun(home)), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert b"ended without a word in code cell 2 of 2" in err
    wait_until(lambda: not processes_of_runs(home), what="no process is left")
    (found,) = runs()
    assert found.outcome == found.data["outcome"] == "lost"
    assert found.numbers == {"steps": 7}
    whole(found)


def test_everything_is_killed_at_once(notebook: Callable[..., Path], home: Path) -> None:
    process = start(notebook([LONG]))
    found = begun(home)
    for pid in (process.pid, worker_of(found)):
        os.kill(pid, signal.SIGKILL)
    process.wait(timeout=120)
    wait_until(lambda: not processes_of_runs(home), what="no process is left")
    (found,) = runs()
    assert found.data["outcome"] == "running"  # nobody was left to write it down
    assert found.outcome == "lost"
    assert "lost" in str(runs())
    report(found)
    (found,) = runs()
    assert found.data["outcome"] == "lost"
    whole(found)


def test_the_guard_is_killed(notebook: Callable[..., Path], home: Path) -> None:
    process = start(notebook([LONG.replace('child = subprocess.Popen(["sleep", "600"])\n', "")]))
    wait_until(lambda: list(home.glob("outputs/runs/*/began")), what="the cell began")
    guard = int(next(home.glob("outputs/runs/*/.kernel")).read_text(encoding="ascii"))
    assert psutil.Process(guard).cmdline()[2] == "workbench.runs.kernel"
    os.kill(guard, signal.SIGKILL)
    process.communicate(timeout=120)
    wait_until(lambda: not processes_of_runs(home), what="no process is left")
    assert runs()[0].outcome == "failed"
    assert runs()[0].data["error"]["name"] == "KernelDied"


def test_a_run_seen_from_elsewhere_lives_by_its_heartbeat(
    notebook: Callable[..., Path], home: Path
) -> None:
    done = run(notebook(["print(word)"]), progress=False)
    data = json.loads((done.folder / "run.json").read_text(encoding="utf-8"))
    data |= {"outcome": "running", "process": {**data["process"], "place": "another machine"}}
    (done.folder / "run.json").write_text(json.dumps(data), encoding="utf-8")
    beat = done.folder / ".alive"
    beat.touch()
    assert runs()[0].outcome == "running"
    os.utime(beat, (1, 1))
    assert runs()[0].outcome == "lost"


def test_ctrl_c_in_ask_many_interrupts_the_run_of_its_notebook(
    notebook: Callable[..., Path],
) -> None:
    cell = "from workbench.engines.base import Interrupted\nraise Interrupted([])"
    with pytest.raises(RunError):
        run(notebook([cell]), progress=False)
    assert [each.outcome for each in runs()] == ["interrupted"]
