"""What cannot be planned: one clear error each, with the nearest name and a way out."""

from __future__ import annotations

from typing import Any

import pytest

import workbench as wb
from workbench.catalog import Architecture, Card
from workbench.errors import InputError, MissingPackageError, UnsupportedError, WorkbenchError
from workbench.machine import Machine
from workbench.planning import forms, refused


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"policy": "fits"}, InputError, "no policy 'fits'. Did you mean 'fit'"),
        ({"policy": "size"}, InputError, "no policy 'size'. Did you mean 'by-size'"),
        ({"task": "finetuning"}, InputError, "no task 'finetuning'. Did you mean 'finetune'"),
        ({"batch": 0}, InputError, "batch must be 1 or more, not 0"),
        ({"batch": True}, InputError, "batch must be 1 or more"),
        ({"context": 32769}, InputError, "more than qwen2.5-7b-instruct was made for (32768)"),
        ({"context": -1}, InputError, "context must be 1 or more"),
        ({"cache_type": "q8"}, InputError, "no cache type 'q8'. Did you mean 'q8_0'"),
        ({"margin": 1.0}, InputError, "margin=1.0 is no share"),
        ({"margin": -0.1}, InputError, "no share"),
        ({"machine": "24GB-cude"}, InputError, "24GB-cude"),
        ({"machine": "big"}, InputError, "cannot be read"),
        ({"machine": "missing.yaml"}, InputError, "missing.yaml does not exist"),
        ({"machine": {"ram_bites": 5}}, InputError, "ram_bytes"),
        ({"device": "tpu"}, UnsupportedError, "does not run on 'tpu'"),
        ({"machine": "cpu-32GB", "device": "cuda"}, UnsupportedError, "has no cuda"),
        ({"engine": "vlm"}, InputError, "Did you mean 'vllm'"),
        ({"quantization": "Q4_K_N", "engine": "llama.cpp"}, InputError, "Did you mean 'Q4_K_"),
        ({"quantization": "nf4", "engine": "llama.cpp"}, UnsupportedError, "transformers can"),
        ({"dtype": "fp8", "engine": "transformers"}, InputError, "no dtype 'fp8'"),
    ],
    ids=str,
)
def test_bad_input_gets_one_clear_error(
    given: dict[str, Any], error: type[WorkbenchError], words: str
) -> None:
    with pytest.raises(error) as caught:
        wb.plan("qwen2.5-7b-instruct", **{"machine": "24GB-cuda", **given})
    assert words in str(caught.value)


def test_a_machine_without_free_memory_fits_nothing() -> None:
    empty = {
        "ram_bytes": 0,
        "devices": [{"kind": "cuda", "name": "x", "total_bytes": 0, "free_bytes": 0}],
        "described": "nothing",
    }
    found = wb.plan("qwen2.5-7b-instruct", machine=empty)
    assert found.fits is False
    assert found.needs
    assert all(need.usable_bytes == 0 for need in found.needs)
    assert found.changes  # more memory, of the least size that is sold


def test_a_device_whose_free_memory_no_driver_tells_counts_whole() -> None:
    silent = Machine.of(
        {
            "ram_bytes": "64GB",
            "devices": [{"kind": "cuda", "name": "x", "total_bytes": "24GB"}],
            "described": "no NVML",
        }
    )
    found = wb.plan("qwen2.5-7b-instruct", machine=silent)
    assert found.fits
    assert (found.device, found.dtype) == ("cuda", "bf16")


def test_an_unknown_architecture_is_estimated_with_its_uncertainty() -> None:
    unknown = Card(
        id="strange",
        repository="x/strange",
        context_length=4096,
        dtype="bf16",
        architecture=Architecture(model_type="nobody_knows", parameters=7_000_000_000),
    )
    found = wb.plan(unknown, machine="24GB-cuda")
    assert found.fits
    assert found.estimate is not None
    assert found.estimate.uncertain
    assert "uncertain" in str(found)
    assert 13e9 < found.estimate.weights < 15e9


def test_a_card_without_facts_is_planned_and_says_that_its_memory_is_not_known() -> None:
    found = wb.plan(Card(id="bare", repository="x/bare"), machine="24GB-cuda")
    assert found.fits is None
    assert found.estimate is None
    assert any("not known" in said for said in found.reasons)
    with pytest.raises(InputError, match="not known"):
        wb.estimate(Card(id="bare", repository="x/bare"), machine="24GB-cuda")


def test_a_card_without_files_and_one_at_a_service_are_no_plans() -> None:
    with pytest.raises(WorkbenchError, match="bare"):
        wb.plan(Card(id="bare"), machine="24GB-cuda")
    with pytest.raises(WorkbenchError, match="gemini"):
        wb.plan("gemini-2.0-flash", machine="24GB-cuda", engine="llama.cpp")


def test_packed_weights_without_their_package_say_what_is_missing() -> None:
    for given in ({}, {"engine": "transformers"}):
        with pytest.raises(MissingPackageError, match=r"awq weights.*gptqmodel") as caught:
            wb.plan("qwen2.5-32b-instruct-awq", device="cpu", **given)
        assert "pip install gptqmodel" in str(caught.value)


def test_a_form_without_its_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (forms, refused):
        monkeypatch.setattr(room, "is_installed", lambda module: module != "bitsandbytes")
    for name in ("nf4", "fp4-double"):
        with pytest.raises(MissingPackageError, match=f"form {name}.*pip install bitsandbytes"):
            wb.plan("tiny-chat", engine="transformers", quantization=name)
    assert wb.plan("tiny-chat", engine="transformers").quantization == "none"
