"""What a comparison shows, from cells whose content is known."""

from __future__ import annotations

from typing import Any

import pytest

from workbench.compare.comparison import Comparison
from workbench.errors import InputError
from workbench.evaluate.phases import added_by_phase
from workbench.machine.probes import PhaseMemory


def cell(label: str, right: list[bool] | None, **changes: Any) -> dict[str, Any]:
    spread = {"median": 0.02, "low": 0.01, "high": 0.03, "count": 3}
    rate = {"median": 500.0, "low": 400.0, "high": 600.0, "count": 3}
    rows = [
        {
            "id": f"p{index}",
            "skill": "sums" if index % 2 else "words",
            "lang": "en",
            "reply": "x",
            "right": value,
            "why": "equal",
        }
        for index, value in enumerate(right or [])
    ]
    return {
        "label": label,
        "model": "tiny-chat",
        "reference": "full",
        "outcome": "done",
        "plan": {"engine": "transformers", "quantization": "none", "dtype": "fp32"},
        "tasks": {"sampling": {}, "rows": rows} if right else None,
        "agreement": {"top1": 0.98, "mean_kl": 0.0123, "first_divergence": "item 3, token 1"},
        "weights": {"disk_bytes": 9_000_000, "memory_bytes": 18_000_000},
        "added": {"load": 21_000_000, "prefill": 9_000_000, "decode": 0},
        "memory_source": "VmHWM",
        "load_seconds": 0.25,
        "speed": {
            "prefill": [
                {"prompt_tokens": 32, "ttft": spread, "tokens_per_second": rate},
                {"prompt_tokens": 256, "ttft": rate, "tokens_per_second": spread},
            ],
            "decode": rate,
            "output_tokens": 64,
        },
        **changes,
    }


def failure(label: str, reason: str) -> dict[str, Any]:
    return {
        "label": label,
        "model": "tiny-chat",
        "reference": "full",
        "outcome": "failed",
        "reason": reason,
        "plan": {"engine": "llama.cpp", "quantization": "Q2_K"},
    }


@pytest.fixture
def comparison() -> Comparison:
    right = [True] * 40
    half = {"disk_bytes": 4_500_000, "memory_bytes": 4_500_000}
    return Comparison(
        cells=(
            cell("full", right, reference=None, agreement=None),
            cell("same", right, weights=half),
            cell("lossy", [True] * 28 + [False] * 12),
            failure("broken", "The child process 7 was killed by SIGKILL."),
        ),
        conditions={"prompts": {"count": 40}},
    )


def test_rows_hold_plain_numbers_and_verdicts(comparison: Comparison) -> None:
    full, same, lossy, broken = comparison.rows
    assert (full["right"], full["count"], full["accuracy"]) == (40, 40, 1.0)
    assert full["verdict"] == "reference"
    assert same["verdict"] == "no difference measured: all 40 prompts judged alike"
    assert lossy["verdict"].startswith("worse by 30.0 points")
    assert lossy["p_value"] == pytest.approx(2 * 2 / 2**12)  # Holm: the least of two, doubled
    assert lossy["accuracy_difference"] == pytest.approx(-0.3)
    assert (full["ttft_ms"], full["prefill_tps"], full["decode_tps"]) == (20.0, 0.02, 500.0)
    assert (lossy["top1"], lossy["mean_kl"]) == (0.98, 0.0123)
    assert (full["load_bytes"], full["disk_bytes"]) == (21_000_000, 9_000_000)
    assert broken["failed"] == "The child process 7 was killed by SIGKILL."
    assert broken["accuracy"] is None
    assert broken["verdict"] is None


def test_the_table_keeps_the_failure_and_shows_megabytes(comparison: Comparison) -> None:
    text = str(comparison)
    assert "weights on disk (MB)" in text
    assert "40/40" in text
    assert "killed by SIGKILL" in text
    assert "98.00%" in text
    html = comparison._repr_mimebundle_()["text/html"]
    assert 'class="failed"' in html
    assert len(comparison.table()) == 4


def test_large_models_are_shown_in_gigabytes(comparison: Comparison) -> None:
    large = {"disk_bytes": 15_200_000_000, "memory_bytes": 15_000_000_000}
    big = Comparison(
        cells=(cell("full", [True], reference=None, weights=large),), conditions={"prompts": {}}
    )
    assert "weights on disk (GB)" in str(big)
    assert "15.2" in str(big)


def test_verdicts_are_sentences(comparison: Comparison) -> None:
    full, same, lossy, broken = comparison.verdicts()
    assert full == "full is the reference, 100.0% right."
    assert "0.50 times the weight bytes; 1.00 times the decode speed" in same
    assert "top-1 agreement 98.00%, mean KL 0.012 nats" in lossy
    assert broken == "broken failed: The child process 7 was killed by SIGKILL."


def test_figures_show_every_form_and_name_what_is_missing(comparison: Comparison) -> None:
    for figure in (
        comparison.accuracy_figure(),
        comparison.agreement_figure(),
        comparison.divergence_figure(),
        comparison.speed_figure(),
        comparison.ttft_figure(),
        comparison.memory_figure(),
    ):
        assert "No value" in figure.summary, figure.title
        assert "broken" in figure.summary, figure.title
    memory = comparison.memory_figure()
    assert [series.name for series in memory.series] == ["load", "prefill", "decode"]
    assert memory.series[0].y[0] == 21.0
    assert memory.unit == "MB"
    assert comparison.accuracy_figure().series[0].y == (100.0, 100.0, 70.0, None)
    assert comparison.agreement_figure().series[0].y[2] == 98.0
    assert comparison.skill_figure().series[0].y == ("full", "same", "lossy")


def test_skills_frame_and_replies(comparison: Comparison) -> None:
    lines = comparison.skills().rows
    assert lines[-1]["skill"] == "all"
    assert lines[-1]["lossy"] == 0.7
    frame = comparison.frame()
    assert list(frame["form"]) == ["full", "same", "lossy", "broken"]
    assert comparison.tasks("lossy").right == 28
    with pytest.raises(InputError, match="Did you mean 'lossy'"):
        comparison.tasks("losy")


def test_without_its_reference_a_form_is_shown_but_not_judged() -> None:
    lone = Comparison(
        cells=(failure("full", "no memory") | {"reference": None}, cell("lossy", [True, False])),
        conditions={"prompts": {"count": 2}},
    )
    full, lossy = lone.rows
    assert full["verdict"] is None
    assert lossy["verdict"] is None
    assert lossy["accuracy"] == 0.5
    assert "full failed: no memory" in lone.verdicts()[0]
    assert "not compared" in lone.verdicts()[1]


def phase(name: str, source: str, *, place: str = "host", added: int) -> PhaseMemory:
    return PhaseMemory(
        name=name,
        place=place,
        source=source,
        seconds=1.0,
        start_bytes=100,
        peak_bytes=100 + added,
        end_bytes=100,
    )


def test_memory_is_taken_where_the_model_lies() -> None:
    phases = [
        phase("load", "VmHWM", added=7),
        phase("load", "torch.cuda peak", place="cuda:0", added=50),
        phase("load", "torch.cuda peak", place="cuda:1", added=30),
        phase("load", "NVML process tree, sampled", place="cuda:0", added=90),
        phase("decode", "torch.cuda peak", place="cuda:0", added=5),
        phase("tasks", "torch.cuda peak", place="cuda:0", added=500),
    ]
    assert added_by_phase(phases, device="cpu") == (
        {"load": 7, "prefill": 0, "decode": 0},
        "VmHWM",
    )
    assert added_by_phase(phases, device="cuda") == (
        {"load": 80, "prefill": 0, "decode": 5},
        "torch.cuda peak",
    )
    driver = [each for each in phases if "torch" not in each.source]
    assert added_by_phase(driver, device="cuda")[0]["load"] == 90
    assert added_by_phase([], device="mps") == ({}, None)
