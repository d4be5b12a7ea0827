"""A run leaves a folder that says all: what was asked, what came of it, where it stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from small_notebooks import processes_of_runs

from workbench.errors import InputError, NotFoundError, RunError
from workbench.progress import Bar
from workbench.runs import conclude, leave, number, run, runs
from workbench.runs.execute import _look

GOOD = [
    "# Say it\n\nAs often as asked.",
    "import os, sys\nimport workbench as wb\nprint(' '.join([word] * times))",
    "print(sys.executable); print(os.getcwd())",
    """from pathlib import Path
Path("said.txt").write_text(word)
wb.leave("said", "said.txt")
print(Path.home())
from workbench.receipts import Receipt, write
write(Receipt(what="load", model="tiny-chat", outcome="done", id="abc123"))
wb.number("words", times)
wb.number("words", times + 1, unit="words", good=True)""",
]


def texts(folder: Path) -> str:
    book = nbformat.read(folder / "notebook.ipynb", as_version=4)
    outputs = [out for cell in book.cells if cell.cell_type == "code" for out in cell.outputs]
    return "".join(out.get("text", "") for out in outputs)


def test_a_good_run(
    notebook: Callable[..., Path], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(notebook(GOOD), {"times": 3}, word="猫")

    told = capsys.readouterr().err
    assert "3/4 cells" in told
    assert "small: 4 cells" in told
    assert done.outcome == "done"
    assert done.folder.parent == home / "outputs" / "runs"
    assert sorted(path.name for path in done.folder.iterdir()) == [
        *("notebook.ipynb", "report.html", "run.json", "run.log", "said.txt")
    ]
    said = texts(done.folder)
    assert said.startswith("猫 猫 猫\n")
    assert sys.executable in said  # this interpreter, whatever "python" means on the PATH
    assert str(done.folder) in said
    assert "~\n" in said  # the home folder is not told
    assert done.numbers == {"words": 4}
    assert done.outputs == {"said": done.folder / "said.txt"}
    assert done.parameters == {"word": "猫", "times": 3}
    log = (done.folder / "run.log").read_text()
    assert not any(word in log for word in ("WARNING", "Warning", "Traceback", "encryption"))

    data = json.loads((done.folder / "run.json").read_text(encoding="utf-8"))
    assert data["parameters"]["times"] == {
        "value": 3,
        "source": "argument",
        "about": "how often, 1 or more",
    }
    assert data["command"].endswith("-p word '猫' -p times 3")
    assert data["cells"] == {"total": 4, "reached": 4}
    assert data["title"] == "Say it"
    assert data["machine"]["python"] == sys.version.split()[0]
    assert set(data["git"]) == {"commit", "dirty"}
    assert data["error"] is None
    assert data["receipts"] == ["abc123"]
    assert "cat" not in json.dumps(data["parameters"], ensure_ascii=False)

    listed = runs()
    assert [each.id for each in listed] == [done.id]
    assert "small" in str(listed)
    index = (home / "outputs" / "runs" / "index.html").read_text(encoding="utf-8")
    assert f'href="{done.folder.name}/report.html"' in index
    assert processes_of_runs(home) == []


def test_a_failing_cell_stops_the_run(notebook: Callable[..., Path], home: Path) -> None:
    cells = ["print('before')", "def fail():\n    raise ValueError('no <b>such</b> form')\nfail()"]
    with pytest.raises(RunError) as caught:
        run(notebook([*cells, "open('after', 'w')"]), progress=False)
    (failed,) = runs()
    assert "code cell 3 of 4. ValueError: no <b>such</b> form." in str(caught.value)
    assert str(failed.report) in str(caught.value)
    assert failed.outcome == "failed"
    assert not (failed.folder / "after").exists()
    error = failed.data["error"]
    assert (error["name"], error["message"]) == ("ValueError", "no <b>such</b> form")
    assert any("fail()" in line for line in error["traceback"])
    assert not any("\x1b" in line for line in error["traceback"])
    assert failed.data["cells"] == {"total": 4, "reached": 3}
    book = nbformat.read(failed.folder / "notebook.ipynb", as_version=4)
    assert not any("papermill" in str(cell.metadata.get("tags")) for cell in book.cells)
    report = failed.report
    assert report is not None
    assert "no &lt;b&gt;such&lt;/b&gt; form" in report.read_text(encoding="utf-8")
    assert processes_of_runs(home) == []


def test_a_dying_kernel_is_a_failed_run(notebook: Callable[..., Path], home: Path) -> None:
    cell = "import subprocess; subprocess.Popen(['sleep', '600'])\nimport os; os._exit(9)"
    with pytest.raises(RunError, match="KernelDied"):
        run(notebook([cell]), progress=False)
    assert runs()[0].outcome == "failed"
    assert runs()[0].data["cells"]["reached"] == 2
    assert processes_of_runs(home) == []  # nor what the kernel started


def test_a_run_that_takes_too_long(notebook: Callable[..., Path], home: Path) -> None:
    with pytest.raises(RunError, match=r"Timeout: The run took longer than its 6 s\."):
        run(notebook(["import time; time.sleep(600)"]), timeout=6, progress=False)
    assert runs()[0].outcome == "failed"
    assert processes_of_runs(home) == []


@pytest.mark.parametrize("wrong", [{"wrod": "x"}, {"times": "x"}])
def test_a_wrong_parameter_leaves_nothing(
    notebook: Callable[..., Path], home: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=r"wrod|times"):
        run(notebook(GOOD), wrong)
    assert not (home / "outputs").exists()


def test_a_notebook_without_the_tag_leaves_nothing(
    notebook: Callable[..., Path], home: Path
) -> None:
    with pytest.raises(InputError, match="no cell tagged"):
        run(notebook(GOOD, parameters=None))
    assert not (home / "outputs").exists()


def test_whoever_waits_sees_what_the_cell_does(tmp_path: Path) -> None:
    bar = Bar("small", total=5, unit="cells")
    _look(tmp_path, bar)
    assert (bar.done, bar.note) == (0, "")
    (tmp_path / ".cell").write_text("3 4")
    (tmp_path / ".progress").write_text("Baking 2/4 cakes")
    _look(tmp_path, bar)
    assert (bar.done, bar.note) == (2, "Baking 2/4 cakes")
    (tmp_path / ".cell").unlink()  # the run is over and tidied
    _look(tmp_path, bar)
    assert bar.done == 2


def test_outside_a_run_nothing_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKBENCH_RUN_FOLDER", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("x.txt").touch()
    assert leave("x", "x.txt") == tmp_path / "x.txt"
    assert str(number("speed", 12.3456, unit="tokens/s")) == "speed: 12.3 tokens/s"
    assert conclude("It works.") == "It works."
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["x.txt"]
    with pytest.raises(NotFoundError, match="does not exist"):
        leave("y", "y.txt")
    with pytest.raises(InputError, match="cannot name"):
        leave("a b", "x.txt")
    with pytest.raises(InputError, match="is a dict"):
        number("speed", {})
