"""Comparisons with real child processes: scripted forms for what can go wrong, real ones once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from workbench.compare import Comparison, compare
from workbench.errors import InputError, NotFoundError
from workbench.paths import shipped
from workbench.receipts import receipts

QUICK: dict[str, Any] = {
    "repetitions": 1,
    "output_tokens": 4,
    "prompt_lengths": [8],
    "agreement_texts": 2,
    "threads": 1,
    "progress": False,
}
ANSWERS = {f"{n} + {n}?": str(2 * n) for n in range(6)}


def prompt_file(folder: Path) -> Path:
    path = folder / "doubles.jsonl"
    lines = [
        {
            "id": question,
            "skill": "sums",
            "lang": "en",
            "messages": [{"role": "user", "content": question}],
            "scorer": {"type": "exact", "answer": answer},
        }
        for question, answer in ANSWERS.items()
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def scripted(label: str, *, wrong: int = 0, speed: float | None = None) -> dict[str, Any]:
    """Return a form that answers all but the first ``wrong`` questions right."""
    rules: list[Any] = [
        {"exact": question, "say": answer if index >= wrong else "?"}
        for index, (question, answer) in enumerate(ANSWERS.items())
    ]
    options: dict[str, Any] = {"script": [*rules, "Some other words."]}
    if speed is not None:
        options["tokens_per_second"] = speed
    return {"label": label, "engine": "scripted", "options": options}


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def wait_for(condition: Any, *, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def test_scripted_forms_are_judged_and_leave_receipts(tmp_path: Path, home: Path) -> None:
    before = children()
    result = compare(
        forms=[scripted("good"), scripted("bad", wrong=5), "transformers:Q4_K_M"],
        prompts=prompt_file(tmp_path),
        **QUICK,
    )
    good, bad, impossible = result.rows
    assert (good["right"], bad["right"]) == (6, 1)
    assert good["verdict"] == "reference"
    assert "p = 0.062" in bad["verdict"]
    assert "cannot do the quantization 'Q4_K_M'" in impossible["failed"]
    assert good["decode_tps"] is not None
    assert result.cells[1]["agreement_note"] == "the engine scripted gives no log-probabilities"
    assert [row["name"] for row in result.cells[0]["memory"]][:3] == [
        "warm-up",
        "load",
        "first reply",
    ]
    left = sorted(receipts(what="compare", where="here"), key=lambda receipt: receipt.time)
    assert [receipt.outcome for receipt in left] == ["done", "done", "failed"]
    assert left[1].result["right"] == 1
    assert left[1].parameters["prompts"]["count"] == 6
    assert "Q4_K_M" in str(left[2].reason)
    assert not list((home / "outputs" / "compare").iterdir())
    assert children() == before


def test_a_cell_whose_process_is_killed_stays_and_the_others_go_on(tmp_path: Path) -> None:
    before = children()

    def kill_the_slow_one() -> None:
        # The quick cell runs first; the slow one is the child that has spoken for a while.
        wait_for(lambda: list(tmp_path.glob("out/*.json")))
        wait_for(lambda: children() - before)
        time.sleep(0.5)
        for pid in children() - before:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_the_slow_one)
    killer.start()
    result = compare(
        forms=[scripted("quick"), scripted("slow", speed=0.05), scripted("last", wrong=1)],
        prompts=prompt_file(tmp_path),
        out=tmp_path / "out",
        **QUICK,
    )
    killer.join()
    quick, slow, last = result.rows
    assert "was killed by SIGKILL" in slow["failed"]
    assert (quick["right"], last["right"]) == (6, 5)
    assert "was killed by SIGKILL" in str(result)
    assert children() == before


def test_a_cell_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    before = children()
    result = compare(
        forms=[scripted("endless", speed=0.01)],
        prompts=prompt_file(tmp_path),
        timeout=1.0,
        **QUICK,
    )
    assert "did not finish within 1 seconds" in result.rows[0]["failed"]
    assert children() == before


def test_each_model_has_a_reference_of_its_own(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "model.safetensors"):
        (other / name).symlink_to(shipped("data", "tiny-chat", name))
    result = compare(
        ["tiny-chat", other],
        forms=[scripted("bad", wrong=6), scripted("good")],
        reference="good",
        prompts=prompt_file(tmp_path),
        **QUICK,
    )
    assert [(row["form"], row["reference"]) for row in result.rows] == [
        ("tiny-chat · bad", "tiny-chat · good"),
        ("tiny-chat · good", None),
        ("other · bad", "other · good"),
        ("other · good", None),
    ]
    assert [row["right"] for row in result.rows] == [0, 6, 0, 6]
    # Six of six lost is p = 1/32; two such questions at once make it 1/16.
    assert "p = 0.062" in result.rows[0]["verdict"]


@pytest.mark.slow
def test_a_model_that_is_replaced_meanwhile_gives_no_result(tmp_path: Path) -> None:
    model = tmp_path / "changing"
    shutil.copytree(
        shipped("data", "tiny-chat"), model, ignore=shutil.ignore_patterns("builder", ".*")
    )
    out = tmp_path / "out"

    def replace_when_the_second_cell_runs() -> None:
        wait_for(lambda: list(out.glob("[0-9a-f]*.json")))
        (model / "generation_config.json").write_text('{"eos_token_id": 2}', encoding="utf-8")

    changer = threading.Thread(target=replace_when_the_second_cell_runs)
    changer.start()
    result = compare(
        model,
        forms=[scripted("before"), "transformers:fp32"],
        prompts=prompt_file(tmp_path),
        out=out,
        **QUICK,
    )
    changer.join()
    assert result.rows[0]["right"] == 6
    assert "were changed while they were compared" in result.rows[1]["failed"]


PROGRAM = """
import json, sys
sys.path[:0] = json.loads(sys.argv[2])
from test_compare import QUICK, compare, scripted
forms = [scripted("one"), scripted("two", wrong=1), scripted("three", wrong=2, speed=8)]
compare(forms=forms, prompts=sys.argv[1], **QUICK)
"""


def test_a_comparison_killed_in_the_middle_goes_on_where_it_was(tmp_path: Path, home: Path) -> None:
    prompts = prompt_file(tmp_path)
    paths = json.dumps([str(Path(__file__).parent), *sys.path])
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, str(prompts), paths])
    folder = home / "outputs" / "compare"
    wait_for(lambda: len(list(folder.glob("*/[0-9a-f]*.json"))) == 2)
    wait_for(lambda: psutil.Process(program.pid).children())
    family = psutil.Process(program.pid).children(recursive=True)
    program.kill()
    program.wait()
    psutil.wait_procs(family, timeout=20)
    assert not [member for member in family if member.is_running() and member.status() != "zombie"]

    forms = [scripted("one"), scripted("two", wrong=1), scripted("three", wrong=2, speed=8)]
    result = compare(forms=forms, prompts=prompts, **QUICK)
    assert [row["reused"] for row in result.rows] == [True, True, False]
    assert [row["right"] for row in result.rows] == [6, 5, 4]
    assert not list(folder.iterdir())
    assert len(receipts(what="compare", where="here")) == 3


def test_a_folder_of_ones_own_is_kept_and_used_again(tmp_path: Path) -> None:
    prompts, out = prompt_file(tmp_path), tmp_path / "cells"
    forms = [scripted("one"), scripted("two", wrong=1)]
    first = compare(forms=forms, prompts=prompts, out=out, **QUICK)
    assert first.folder == out
    assert len(list(out.glob("*.json"))) == 2
    (broken := sorted(out.glob("*.json"))[0]).write_text('{"half', encoding="utf-8")
    again = compare(forms=[*forms, scripted("three", wrong=3)], prompts=prompts, out=out, **QUICK)
    assert sorted(row["reused"] for row in again.rows) == [False, False, True]
    assert [row["right"] for row in again.rows] == [6, 5, 3]
    assert json.loads(broken.read_text(encoding="utf-8"))["outcome"] == "done"
    anew = compare(forms=forms[:1], prompts=prompts, out=out, resume=False, **QUICK)
    assert not anew.rows[0]["reused"]
    other = compare(forms=forms[:1], prompts=prompts, out=out, **{**QUICK, "output_tokens": 5})
    assert not other.rows[0]["reused"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"forms": ["transformers:fp23"]}, InputError, "Did you mean 'fp32'"),
        ({"forms": ["scripted"], "reference": "scriptd"}, InputError, "Did you mean 'scripted'"),
        ({"forms": ["scripted"], "repetition": 1}, InputError, "Did you mean 'repetitions'"),
        ({"forms": ["scripted"], "repetitions": 0}, InputError, "repetitions = 0"),
        ({"forms": ["scripted"], "prompts": "summs"}, NotFoundError, "Did you mean 'sums'"),
        ({"models": "tiny-chatt", "forms": ["scripted"]}, NotFoundError, "tiny-chat"),
        ({"models": "missing/folder", "forms": ["scripted"]}, NotFoundError, "does not exist"),
        ({"models": [], "forms": ["scripted"]}, InputError, "no model"),
        ({"models": ["tiny-chat", "tiny-chat"], "forms": ["scripted"]}, InputError, "named twice"),
        (
            {"forms": [{"engine": "transformers", "adapter": "nowhere"}]},
            InputError,
            "not a LoRA adapter",
        ),
        ({"forms": [{"engine": "scripted", "context": 10**9}]}, InputError, "more than tiny-chat"),
    ],
)
def test_a_wrong_argument_is_told_before_anything_runs(
    arguments: dict[str, Any], error: type[InputError], message: str, home: Path
) -> None:
    with pytest.raises(error, match=message):
        compare(**{"limit": 2, "progress": False, **arguments})
    assert not list(home.glob("outputs/compare/*"))


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        compare(forms=["scripted"], limit=2, out=tmp_path / "file" / "out", progress=False)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Compare the embedded model's real forms once for the tests below."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("real")))
        return compare(
            forms=["transformers:fp32", "transformers:nf4", "llama.cpp:F16", "llama.cpp:Q4_K_M"],
            limit=24,
            **{**QUICK, "agreement_texts": 6, "prompt_lengths": [16, 128], "repetitions": 2},
        )


@pytest.mark.slow
def test_real_forms_agree_as_far_as_their_bits_allow(real: Comparison) -> None:
    full, nf4, f16, q4 = real.rows
    assert not real.failed
    assert full["accuracy"] > 0.8
    assert full["top1"] is None
    assert f16["top1"] > 0.99
    assert f16["mean_kl"] < 1e-4 < q4["mean_kl"] < 2
    assert 1e-4 < nf4["mean_kl"] < 2
    assert f16["verdict"].startswith("no difference measured")


@pytest.mark.slow
def test_real_forms_have_the_bytes_that_their_formats_say(real: Comparison) -> None:
    full, nf4, f16, q4 = real.rows
    assert full["memory_bytes"] == pytest.approx(2 * full["disk_bytes"], rel=0.05)  # fp16 on disk
    assert f16["disk_bytes"] == pytest.approx(full["disk_bytes"], rel=0.05)
    assert q4["disk_bytes"] < 0.5 * f16["disk_bytes"]
    assert nf4["memory_bytes"] < 0.5 * full["memory_bytes"]
    # Importing the libraries takes hundreds of megabytes; loading the weights does not.
    assert full["memory_bytes"] < full["load_bytes"] < full["memory_bytes"] + 40_000_000
    assert nf4["load_bytes"] < 40_000_000
    assert q4["load_bytes"] < f16["load_bytes"]
    assert {row["memory_source"] for row in real.rows} == {"VmHWM"}


@pytest.mark.slow
def test_real_forms_are_timed_and_shown(real: Comparison) -> None:
    for row in real.rows:
        assert row["decode_tps"] > 0
        assert row["ttft_ms"] > 0
        assert row["prefill_tps"] > 0
        assert row["load_seconds"] > 0
    assert [cell["plan"]["quantization"] for cell in real.cells] == ["none", "nf4", "F16", "Q4_K_M"]
    assert real.folder is None
    assert len(real.verdicts()) == 4
    assert str(real).count("tiny-chat") == 1
