"""Plans of fine-tunings: settings that the recipe takes, by what fits."""

from __future__ import annotations

from typing import Any

import pytest

import workbench as wb
from workbench.errors import InputError, UnsupportedError
from workbench.finetune.recipe import Recipe
from workbench.paths import shipped
from workbench.planning import Plan


def planned(model: str, machine: str, **given: Any) -> Plan:
    found = wb.plan(model, machine=machine, task="finetune", **given)
    Recipe.of(found.training)  # every setting is one of wb.finetune
    assert shipped("configs", "accelerate", f"{found.training['parallel']}.yaml").is_file()
    assert found.fits == all(not need.short_bytes for need in found.needs)
    return found


def rows(found: Plan) -> int:
    names = ("batch_size", "gradient_accumulation", "processes")
    batch, accumulation, processes = (found.training[name] for name in names)
    return batch * accumulation * processes


def test_a_larger_gpu_trains_a_more_exact_base() -> None:
    methods = {}
    for machine in ("12GB-cuda", "24GB-cuda", "80GB-cuda"):
        found = planned("qwen2.5-7b-instruct", machine)
        assert found.fits
        methods[machine] = (found.training["method"], found.training["gradient_checkpointing"])
        assert rows(found) >= 8
    assert methods["12GB-cuda"][0] == "qlora"
    assert methods["24GB-cuda"] == ("lora", True)
    assert methods["80GB-cuda"][0] == "lora"


def test_a_base_that_no_gpu_holds_is_cut_over_several() -> None:
    found = planned("llama-3.3-70b-instruct", "4x80GB-cuda")
    assert found.fits
    assert (found.training["parallel"], found.training["processes"]) == ("fsdp", 4)
    small = planned("llama-3.2-3b-instruct", "4x80GB-cuda")
    assert (small.training["parallel"], small.training["processes"]) == ("ddp", 4)


def test_rows_get_shorter_only_where_no_base_fits() -> None:
    wide = planned("qwen2.5-7b-instruct", "24GB-cuda")
    assert wide.context == wide.training["max_length"] == 2048
    kept = planned("qwen2.5-7b-instruct", "24GB-cuda", context=300)
    assert kept.training["max_length"] == 300
    assert kept.training["batch_size"] >= wide.training["batch_size"]


def test_what_does_not_fit_names_what_would() -> None:
    found = planned("llama-3.3-70b-instruct", "24GB-cuda")
    assert found.fits is False
    assert len(found.changes) == 3
    assert any("GPU of" in said or "GPUs" in said for said in found.changes)
    larger = next(said for said in found.changes if said.startswith("a GPU of"))
    size = int(larger.split()[3])
    assert planned("llama-3.3-70b-instruct", f"{size}GB-cuda", quantization="nf4").fits


def test_what_is_given_is_kept() -> None:
    found = planned("qwen2.5-7b-instruct", "80GB-cuda", quantization="nf4", batch=2, context=512)
    assert found.training["method"] == "qlora"
    assert found.training["batch_size"] == found.batch == 2
    assert found.training["max_length"] == found.context == 512


def test_by_size() -> None:
    large = planned("qwen2.5-32b-instruct", "80GB-cuda", policy="by-size")
    assert large.training["quantization"] == "nf4"
    middle = planned("calm3-22b-chat", "80GB-cuda", policy="by-size")
    assert middle.training["quantization"] == "int8"
    assert middle.offload == ("optimizer", "gradients")  # 22.5 GB of weights
    assert any("zero3.yaml" in said for said in middle.reasons)
    plain = planned("llama-3.2-3b-instruct", "80GB-cuda", policy="by-size")
    assert plain.training["quantization"] == "none"
    assert plain.offload == ()


def test_a_gpu_without_bf16_trains_in_fp16() -> None:
    assert planned("llama-3.2-3b-instruct", "24GB-cuda-turing").dtype == "fp16"


def test_what_is_not_trained_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="awq weights"):
        planned("qwen2.5-32b-instruct-awq", "80GB-cuda")
    with pytest.raises(InputError, match="not trained in 'Q4_K_M'"):
        planned("qwen2.5-7b-instruct", "80GB-cuda", quantization="Q4_K_M")
    with pytest.raises(InputError, match="more than"):
        planned("qwen2.5-7b-instruct", "80GB-cuda", context=10**6)
    with pytest.raises(InputError, match="8 or more"):
        planned("qwen2.5-7b-instruct", "80GB-cuda", context=2)
