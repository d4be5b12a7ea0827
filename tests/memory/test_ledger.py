"""The ledger: estimates beside measurements, read from receipts, and the band that follows."""

from __future__ import annotations

from typing import Any

import pytest

import workbench as wb
from workbench.errors import InputError
from workbench.memory import Estimate, Part
from workbench.memory.ledger import KEY, SMALL, Ledger, banded, beside, ledger, seen_bytes
from workbench.receipts import Receipt, write

GIB = 2**30


def estimate(*, weights: int = 4 * GIB, device: str = "device", engine: str = "llama.cpp") -> Any:
    return Estimate(
        label="x",
        parts=(
            Part(name="weights", bytes=weights, rule="", place=device),
            Part(name="KV cache", bytes=GIB, rule="", place=device, group="cache"),
            Part(name="buffers", bytes=GIB // 4, rule="", place=device, group="compute"),
            Part(
                name="runtime",
                bytes=GIB // 2,
                rule="",
                place=device,
                group="overhead",
                counter="process",
            ),
        ),
        conditions={"engine": engine},
    )


def leave(
    estimated: int,
    measured: int,
    *,
    family: str | None = "qwen2.5",
    outcome: str = "done",
    **plan: Any,
) -> None:
    """Leave a receipt of a load as ``load`` does."""
    described = {"engine": "llama.cpp", "quantization": "Q4_K_M", "device": "cuda", **plan}
    compared = {
        "moment": "load",
        "device": described["device"],
        "family": family,
        "counter": "device-wide",
        "estimated_bytes": estimated,
        "measured_bytes": measured,
    }
    write(Receipt(what="load", model="a", plan=described, outcome=outcome, result={KEY: compared}))


def test_a_load_is_compared_with_what_it_allocates() -> None:
    on_gpu = estimate()
    assert seen_bytes(on_gpu, moment="load", device="cuda") == 4 * GIB + GIB + GIB // 4
    plain = estimate(engine="transformers")  # its cache grows with the prompt
    assert seen_bytes(plain, moment="load", device="cuda") == 4 * GIB
    on_cpu = estimate(device="host")  # the cache is cleared, buffers are touched when they are used
    assert seen_bytes(on_cpu, moment="load", device="cpu") == 5 * GIB
    assert seen_bytes(on_gpu, moment="train", device="cuda") == 4 * GIB + GIB + GIB // 4


def test_beside_says_how_far_off_the_estimate_was() -> None:
    found = beside(
        estimate(engine="transformers"),
        5 * GIB,
        moment="load",
        counter="x",
        device="cuda",
        family=None,
    )
    assert found is not None
    assert found["error"] == pytest.approx(-0.2)
    for nothing in (0, -5):
        assert (
            beside(estimate(), nothing, moment="load", counter="", device="cuda", family=None)
            is None
        )


def test_a_ledger_is_read_from_receipts() -> None:
    assert len(ledger()) == 0
    assert "nothing measured yet" in str(ledger())
    leave(11 * GIB, 10 * GIB)
    leave(8 * GIB, 10 * GIB, quantization="Q8_0")
    leave(9 * GIB, 10 * GIB, outcome="failed")
    write(Receipt(what="load", model="b", outcome="done", result={KEY: {"estimated_bytes": "?"}}))
    write(Receipt(what="load", model="b", outcome="done", result={"rss_growth_bytes": 5}))
    found = wb.ledger()
    assert [round(entry.error, 3) for entry in found] == [0.1, -0.2]
    assert found.where(quantization="Q8_0").entries[0].ratio == pytest.approx(1.25)
    rows = {row["quantization"]: row for row in found.table()}
    assert rows["Q4_K_M"]["median_error_%"] == pytest.approx(10)
    assert rows["Q8_0"]["worst_error_%"] == pytest.approx(-20)
    (both,) = found.table(by=["engine"])
    assert both["count"] == 2
    assert both["worst_error_%"] == pytest.approx(-20)
    assert len(found.rows()) == 2
    assert "Q8_0" in found._repr_mimebundle_()["text/html"]
    with pytest.raises(InputError, match="Did you mean 'engine'"):
        found.table(by=["engin"])
    with pytest.raises(InputError, match="no column"):
        found.where(colour="red")


def test_a_band_needs_three_measurements_and_spans_them() -> None:
    for measured in (10, 11):
        leave(10 * GIB, measured * GIB)
    assert ledger().band("llama.cpp", "Q4_K_M", "qwen2.5", "cuda") is None
    leave(10 * GIB, 12 * GIB)
    band = ledger().band("llama.cpp", "Q4_K_M", "qwen2.5", "cuda")
    assert band is not None
    assert band.count == 3
    assert 1.0 <= band.low < 1.1 < band.high <= 1.2
    around = band.around(estimate())
    total = estimate().total()
    assert around.band == (int(total * band.low), int(total * band.high))
    assert "3 measurements" in around.certainty()


def test_a_band_is_of_the_same_engine_form_and_device() -> None:
    for _ in range(3):
        leave(10 * GIB, 11 * GIB)
    found = ledger()
    assert found.band("llama.cpp", "Q8_0", "qwen2.5", "cuda") is None
    assert found.band("transformers", "Q4_K_M", "qwen2.5", "cuda") is None
    assert found.band("llama.cpp", "Q4_K_M", "qwen2.5", "cpu") is None
    assert found.band("llama.cpp", "Q4_K_M", "qwen2.5", "cuda", moment="train") is None
    other = found.band("llama.cpp", "Q4_K_M", "gemma3", "cuda")  # no own ones: all families
    assert other is not None
    assert "all families" in other.source


def test_small_models_say_nothing_of_other_families() -> None:
    for _ in range(4):
        leave(SMALL // 100, SMALL // 2, family="tiny")
    found: Ledger = ledger()
    assert found.band("llama.cpp", "Q4_K_M", "gemma3", "cuda") is None
    assert found.band("llama.cpp", "Q4_K_M", None, "cuda") is None
    assert found.band("llama.cpp", "Q4_K_M", "tiny", "cuda") is not None


def test_a_band_follows_when_receipts_are_added() -> None:
    key = {"engine": "llama.cpp", "quantization": "Q4_K_M", "family": "qwen2.5", "device": "cuda"}
    assert banded(estimate(), **key).band is None
    for measured in (10, 11, 12):
        leave(10 * GIB, measured * GIB)
    found = banded(estimate(), **key)
    assert found.band is not None
    assert found.band[0] >= estimate().total()
