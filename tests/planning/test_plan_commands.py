"""The commands plan, estimate and ledger print what the functions say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import workbench as wb
from workbench.cli import main
from workbench.planning import Plan


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
        raise SystemExit(0)
    assert ended.value.code in (0, None), capsys.readouterr().err
    return capsys.readouterr().out


def test_plan_prints_and_writes_the_plan(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "plan.json"
    text = run(
        capsys, "plan", "qwen2.5-32b-instruct", "--machine", "24GB-cuda", "--out", str(out)
    )  # fmt: skip
    made = wb.plan("qwen2.5-32b-instruct", machine="24GB-cuda")
    assert str(made.table()) in text
    assert Plan.read(out) == made
    assert json.loads(out.read_text())["engine"] == made.engine


def test_every_option_reaches_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(
        capsys, "plan", "qwen2.5-7b-instruct", "--machine", "16GB-cuda", "--context", "4096",
        "--batch", "2", "--engine", "llama.cpp", "--quantization", "Q5_K_M", "--gpu-layers", "20",
        "--cache-type", "q8_0", "--margin", "0.2",
    )  # fmt: skip
    for words in ("4096", "Q5_K_M", "q8_0", "20% of a GPU", "20 layers on cuda"):
        assert words in text
    tuned = run(
        capsys, "plan", "qwen2.5-7b-instruct", "--machine", "80GB-cuda", "--task", "finetune",
        "--policy", "by-size",
    )  # fmt: skip
    assert "method=qlora" in tuned
    assert "int8" in tuned


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "tiny-chat", "--machine", "24GB-quda"])
    assert ended.value.code == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert "24GB-quda" in said
    assert "\n" not in said


def test_estimate_prints_parts_and_rules(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "estimate", "qwen2.5-7b-instruct", "--machine", "24GB-cuda")
    found = wb.estimate("qwen2.5-7b-instruct", machine="24GB-cuda")
    assert str(found.table()) in text
    assert found.weights == pytest.approx(15.2e9, rel=0.01)


def test_ledger_prints_the_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing measured yet" in run(capsys, "ledger")
    with wb.load("tiny-chat", engine="llama.cpp", threads=1, context=256):
        pass
    if len(wb.ledger()):
        assert "llama.cpp" in run(capsys, "ledger")
        assert "resident set" in run(capsys, "ledger", "--each")
