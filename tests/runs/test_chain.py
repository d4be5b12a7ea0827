"""A run file hands on what its steps leave, and stops at the first that fails."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_notebooks import write_notebook

from workbench.errors import InputError, NotFoundError, RunError
from workbench.paths import shipped
from workbench.runs import run_all, run_command, runs
from workbench.runs.chain import find_run_file, read_run_file

WRITES = """from pathlib import Path
import workbench as wb
Path("letter.txt").write_text(word * times)
wb.leave("letter", "letter.txt")
wb.number("letters", len(word) * times)"""
READS = "from pathlib import Path\nprint(Path(letter).read_text())"


@pytest.fixture
def files(tmp_path: Path) -> Callable[[str], Path]:
    write_notebook(tmp_path / "write.ipynb", [WRITES])
    write_notebook(tmp_path / "read.ipynb", [READS], parameters='letter = ""  # path\n')

    def make(steps: str) -> Path:
        path = tmp_path / "pair.yaml"
        path.write_text(f"# workbench run pair.yaml\nsteps:\n{steps}", encoding="utf-8")
        return path

    return make


PAIR = """
  - {name: first, notebook: write.ipynb, parameters: {word: ab}}
  - name: second
    notebook: read.ipynb
    parameters: {letter: "${first.letter}"}
"""


def test_a_step_takes_what_an_earlier_one_left(files: Callable[[str], Path]) -> None:
    chain = run_all(files(PAIR), texts={"first.times": "3"}, quiet=True)
    assert [run.outcome for run in chain] == ["done", "done"]
    text = (chain["second"].folder / "notebook.ipynb").read_text(encoding="utf-8")
    assert "ababab" in text
    given = chain["second"].data["parameters"]["letter"]
    assert given["value"] == str(chain["first"].folder / "letter.txt")
    assert given["source"] == "run file pair.yaml"
    assert chain["first"].data["parameters"]["times"]["source"] == "command line"
    assert chain["second"].data["chain"] == {"file": "pair", "step": "second", "index": 2, "of": 2}
    shown = str(chain)
    assert "pair: 2 of 2 steps in" in shown
    assert "letters: 6" in shown
    assert str(chain["second"].report) in shown


def test_the_first_failure_ends_it(files: Callable[[str], Path]) -> None:
    path = files(PAIR.replace("first.letter", "first.lettre"))
    done = subprocess.run(
        [sys.executable, "-m", "workbench.cli", "run", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "'second' needs ${first.lettre}, but 'first' left no 'lettre'" in done.stderr
    assert "Did you mean 'letter'" in done.stderr
    assert "1/2 first" in done.stderr  # the progress of the step that ran
    assert "Traceback" not in done.stderr
    assert [run.notebook for run in runs()] == ["write"]


def test_a_failing_step_names_its_report(files: Callable[[str], Path], tmp_path: Path) -> None:
    write_notebook(tmp_path / "read.ipynb", ["1 / 0"], parameters='letter = ""  # path\n')
    with pytest.raises(RunError) as caught:
        run_all(files(PAIR + "  - {name: third, notebook: write.ipynb}\n"), quiet=True)
    failed, first = runs()
    assert "Step 2 of 3, 'second': Failed in code cell 2 of 2. ZeroDivisionError" in str(
        caught.value
    )
    assert str(failed.report) in str(caught.value)
    assert first.outcome == "done"
    assert len(runs()) == 2


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ("  - {name: a, notebook: read.ipynb, parameters: {letter: '${b.x}'}}", "no earlier step"),
        (PAIR.replace("{first.", "{frist."), "Did you mean 'first'"),
        (PAIR.replace("${first.letter}", "${first}"), "not of the form"),
        (PAIR.replace("name: second", "name: first"), "two steps named 'first'"),
        (PAIR.replace("word: ab", "wrod: ab"), "Did you mean 'word'"),
        (PAIR.replace("word: ab", "times: ab"), "is int, not str"),
        (PAIR.replace("notebook: read", "notebok: read"), "unknown key"),
        (PAIR.replace("read.ipynb", "reed.ipynb"), "does not exist"),
        ("", "steps"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    files: Callable[[str], Path], steps: str, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        run_all(files(steps), quiet=True)
    assert words in str(caught.value)
    assert len(runs()) == 0


def test_parameters_of_a_run_file_name_their_step(files: Callable[[str], Path]) -> None:
    path = files(PAIR)
    for texts, words in (
        ({"times": "3"}, "STEP.NAME"),
        ({"frist.times": "3"}, "Did you mean 'first'"),
        ({"first.tims": "3"}, "Did you mean 'times'"),
    ):
        with pytest.raises(InputError, match=words):
            run_all(path, texts=texts)
    with pytest.raises(InputError, match="takes no file"):
        run_command(str(path), file=path)
    with pytest.raises(NotFoundError, match="no run file"):
        run_command("nothing.yaml")


def test_every_run_file_that_ships_is_sound() -> None:
    paths = sorted(shipped("configs", "runs").glob("*.yaml"))
    assert "tour" in [path.stem for path in paths]
    for path in paths:
        assert path.read_text(encoding="utf-8").startswith(f"# workbench run {path.stem}\n")
        assert read_run_file(path).steps
    assert find_run_file("tour") == shipped("configs", "runs", "tour.yaml")
    assert find_run_file("20_compare") is None
