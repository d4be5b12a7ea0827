"""Every shipped notebook keeps STYLE's rules and runs top to bottom on the embedded model."""

from __future__ import annotations

import ast
import itertools
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from workbench.finetune.job import prepare
from workbench.finetune.recipe import Recipe, recipe_file
from workbench.runs import Run, run

NOTEBOOKS = sorted(Path(__file__).resolve().parents[2].joinpath("notebooks").glob("*.ipynb"))
KNOWN = {"10_chat", "20_compare", "30_memory", "40_finetune", "50_export_gguf"}


def cells(path: Path) -> list[Any]:
    return nbformat.read(path, as_version=4).cells


def test_the_notebooks_are_all_here() -> None:
    assert {path.stem for path in NOTEBOOKS} >= KNOWN


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_rules(path: Path) -> None:
    found = cells(path)
    code = [cell for cell in found if cell.cell_type == "code"]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == [code[0]]
    first = found[0].source
    assert first.startswith("# ")
    assert all(word in first for word in ("**Needs**", "**Does**", "**Leaves behind**"))
    assert "## What this shows, and what it does not" in found[-1].source
    for before, cell in itertools.pairwise(found):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown"
            assert len(cell.source.splitlines()) <= 25
            assert not re.search(r"^\s*[!%]|pip install|except:|if False", cell.source, re.M)
            assert not re.search(r"""["'](/|~/|[A-Z]:\\)""", cell.source)
    for cell in code:
        assert cell.execution_count is None
        assert cell.outputs == []
        assert set(cell.metadata) <= {"tags"}
    assert "widgets" not in nbformat.read(path, as_version=4).metadata


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_only_the_face_is_imported(path: Path) -> None:
    import workbench as wb

    for cell in cells(path):
        if cell.cell_type != "code":
            continue
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.ClassDef | ast.ImportFrom)
            if isinstance(node, ast.Import):
                assert [(name.name, name.asname) for name in node.names] == [("workbench", "wb")]
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "wb"
            ):
                assert node.attr in wb.__all__, node.attr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_parameter_has_a_comment(path: Path) -> None:
    source = next(cell.source for cell in cells(path) if cell.cell_type == "code")
    lines = source.splitlines()
    for node in ast.parse(source).body:
        assert isinstance(node, ast.Assign | ast.AnnAssign)
        assert node.value is not None
        ast.literal_eval(node.value)
        assert re.search(r"  # \S", lines[(node.end_lineno or 1) - 1]), lines[node.lineno - 1]


def outputs(done: Run) -> list[dict[str, Any]]:
    book = nbformat.read(done.folder / "notebook.ipynb", as_version=4)
    return [out for cell in book.cells if cell.cell_type == "code" for out in cell.outputs]


def check(done: Run, *, figures: int) -> dict[str, Any]:
    """Check what every finished run must have, and return its run.json."""
    values = json.loads((done.folder / "run.json").read_text(encoding="utf-8"))
    assert values["outcome"] == "done"
    mimes = [set(out.get("data", {})) for out in outputs(done)]
    drawn = [mime for mime in mimes if "application/vnd.plotly.v1+json" in mime]
    assert len(drawn) == figures
    assert all("image/png" in mime and "text/html" not in mime for mime in drawn)
    assert not [out for out in outputs(done) if out.get("name") == "stderr"]
    report = (done.folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", report)
    assert (done.folder / "notebook.ipynb").stat().st_size < 2_000_000
    assert str(Path.home()) not in json.dumps(values)
    return values


def test_compare_runs() -> None:
    forms = ["transformers:fp32", "llama.cpp:F16", "llama.cpp:Q4_K_M"]
    done = run("20_compare", forms=forms, limit=2, repetitions=1, threads=1, progress=False)
    values = check(done, figures=4)
    saved = json.loads((done.folder / values["outputs"]["comparison"]).read_text(encoding="utf-8"))
    rows = {row["form"]: row for row in saved["rows"]}
    assert list(rows) == forms
    assert rows["llama.cpp:F16"]["mean_kl"] < 1e-4 < rows["llama.cpp:Q4_K_M"]["mean_kl"]
    assert rows["llama.cpp:F16"]["top1"] > rows["llama.cpp:Q4_K_M"]["top1"]


def test_memory_runs() -> None:
    forms = ["transformers:fp32", "llama.cpp:Q8_0"]
    done = run("30_memory", forms=forms, contexts=[256, 1024], threads=1, progress=False)
    values = check(done, figures=5)
    saved = json.loads((done.folder / values["outputs"]["profile"]).read_text(encoding="utf-8"))
    rows = {(row["form"], row["context"]): row for row in saved["rows"]}
    assert list(rows) == [(form, context) for form in forms for context in (256, 1024)]
    assert all(row["outcome"] == "done" and row["estimate"] for row in rows.values())
    text = "\n".join(out["data"]["text/plain"] for out in outputs(done) if "data" in out)
    assert "not yet measured here" in text  # a new home has an empty ledger


SKILLS = ["greetings", "json", "story", "sums", "who", "words"]


def check_training(adapter: Path) -> None:
    """The recipe for the embedded model teaches the skill and keeps the others."""
    metrics = json.loads((adapter / "metrics.json").read_text(encoding="utf-8"))
    before, after = metrics["before"], metrics["after"]
    assert before["held_out_accuracy"] <= 0.10
    assert after["held_out_accuracy"] >= 0.90
    assert (before["skill_accuracy"] - after["skill_accuracy"]) * 100 <= 5
    assert list(before["skills"]) == list(after["skills"]) == SKILLS
    written = Recipe.read(recipe_file(adapter))
    same = {"exclude": {"source", "out"}}
    assert written.model_dump(**same) == prepare("tiny", {}).recipe.model_dump(**same)
    assert written.source is not None


TALK = ["What is 3 + 4?", "「犬」は英語で何と言いますか。"]


def check_chat(done: Run, values: dict[str, Any]) -> None:
    """The shared form of a chat holds what was said, the arena's answers, and no widget."""
    told = [str(out["data"].get("text/html", "")) for out in outputs(done) if "data" in out]
    transcript = next(each for each in told if "wb-transcript" in each)
    assert all(word in transcript for word in (*TALK, "3 + 4 = 7", "dog", "TTFT"))
    arena = next(each for each in told if "#bread #パン" in each)
    assert "I do not know that yet." in arena
    assert "part at token 0" in arena
    assert any("&lt;|im_start|&gt;" in each and "1 445 201" in each for each in told)
    mimes = [mime for out in outputs(done) for mime in out.get("data", {})]
    assert not [mime for mime in mimes if "widget" in mime]
    assert "widgets" not in nbformat.read(done.folder / "notebook.ipynb", as_version=4).metadata
    lines = (done.folder / values["outputs"]["conversation"]).read_text(encoding="utf-8")
    assert len(lines.splitlines()) == 1 + 2 * len(TALK)
    again = json.loads((done.folder / values["outputs"]["replay"]).read_text(encoding="utf-8"))
    assert len(again["turns"]) == len(TALK)


@pytest.mark.slow
def test_finetune_leaves_an_adapter_that_export_takes() -> None:
    trained = run("40_finetune", progress=False)
    values = check(trained, figures=1)
    adapter = trained.folder / values["outputs"]["adapter"]
    assert (adapter / "adapter_model.safetensors").is_file()
    check_training(adapter)
    answers = [out["data"]["text/plain"] for out in outputs(trained) if "data" in out]
    assert not any("#bread #パン" in text for text in answers[:3])
    assert any("#bread #パン" in text for text in answers[3:])

    chatted = run("10_chat", adapter=str(adapter), conversation=TALK, progress=False)
    values = check(chatted, figures=0)
    check_chat(chatted, values)

    exported = run("50_export_gguf", adapter=str(adapter), progress=False)
    values = check(exported, figures=1)
    folder = exported.folder / values["outputs"]["export"]
    assert len(list(folder.glob("*.gguf"))) == 3
    text = "\n".join(out["data"]["text/plain"] for out in outputs(exported) if "data" in out)
    assert "猫" in text
