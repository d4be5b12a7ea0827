"""Checkpoints that come quantized, placement, and memory that runs out."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import open_model
from random_models import FAMILIES, SMALL, tiny_chat, tokenizer

import workbench as wb
from workbench.engines import transformers as engine_module
from workbench.engines.transformers import TransformersEngine
from workbench.engines.transformers_packed import packed_by
from workbench.errors import (
    EngineError,
    FormatError,
    MemoryShortError,
    MissingPackageError,
    UnsupportedError,
)

SUM = "What is 3 + 4?"
FOUR_BITS = ("nf4", "nf4-double", "fp4", "fp4-double")


def renamed(folder: Path, quantization: Any) -> Path:
    """Copy the embedded model and claim in its config that it is quantized so."""
    shutil.copytree(tiny_chat(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return folder


def plan_of(folder: Path) -> wb.Plan:
    """A plan that planning itself would not make, since it refuses earlier."""
    plain = wb.plan("tiny-chat", engine="transformers", dtype="fp32", context=512)
    assert plain.files is not None
    return dataclasses.replace(plain, files=dataclasses.replace(plain.files, path=folder))


@pytest.mark.parametrize(
    ("method", "package", "apart"),
    [
        ({"quant_method": "awq", "bits": 4}, "gptqmodel", True),
        ({"quant_method": "gptq", "bits": 4}, "gptqmodel optimum", True),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors", True),
        ({"quant_method": "hqq"}, "hqq", False),
    ],
)
def test_a_missing_package_is_named_with_its_command(
    tmp_path: Path, method: dict[str, Any], package: str, apart: bool
) -> None:
    folder = renamed(tmp_path / "gptq-in-the-name-says-nothing", method)
    with pytest.raises(MissingPackageError, match=f"pip install {package}") as caught:
        TransformersEngine().open(plan_of(folder))
    assert ("another interpreter" in str(caught.value)) == apart
    assert method["quant_method"] in str(caught.value)


@pytest.mark.parametrize(
    ("method", "command"),
    [
        ({"quant_method": "awq", "bits": 4}, "pip install gptqmodel"),
        ({"quant_method": "gptq", "bits": 4}, "pip install gptqmodel optimum"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {}},
            "pip install compressed-tensors",
        ),
    ],
)
def test_loading_names_the_package_before_anything_is_read(
    tmp_path: Path, method: dict[str, Any], command: str
) -> None:
    folder = renamed(tmp_path / "plain-in-the-name-says-nothing", method)
    with pytest.raises(MissingPackageError, match=f"{method['quant_method']} weights") as caught:
        wb.load(folder, engine="transformers")
    assert str(caught.value).endswith(command)


def test_a_method_that_no_plan_knows_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="pressed-flat weights"):
        wb.load(renamed(tmp_path / "flat", {"quant_method": "pressed-flat"}))


def test_a_name_says_nothing_about_the_weights(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-chat-AWQ-GPTQ-4bit"
    shutil.copytree(tiny_chat(), folder)
    assert packed_by(folder) is None
    with wb.load(folder, engine="transformers", dtype="fp32", threads=1) as model:
        assert "7" in model.ask(SUM, max_tokens=20).text


def test_unknown_and_broken_methods_are_refused(tmp_path: Path) -> None:
    unknown = renamed(tmp_path / "unknown", {"quant_method": "pressed-flat"})
    with pytest.raises(UnsupportedError, match="pressed-flat, which transformers does not read"):
        TransformersEngine().open(plan_of(unknown))
    with pytest.raises(FormatError, match="names no quant_method"):
        TransformersEngine().open(plan_of(renamed(tmp_path / "broken", {"bits": 4})))


@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_a_model_saved_by_bitsandbytes_loads_as_it_was(tmp_path: Path, form: str) -> None:
    with open_model("transformers", quantization=form, dtype="fp32") as made:
        ids = made.prompt_ids(SUM)
        expected, scores = made.ask(SUM, max_tokens=16).token_ids, made.score(ids)
        made.raw.save_pretrained(str(tmp_path / "packed"))
        made._session.tokenizer.save_pretrained(str(tmp_path / "packed"))
    size = (tmp_path / "packed" / "model.safetensors").stat().st_size
    assert size < 0.8 * (tiny_chat() / "model.safetensors").stat().st_size
    with wb.load(tmp_path / "packed", engine="transformers", dtype="fp32", threads=1) as model:
        assert model.ask(SUM, max_tokens=16).token_ids == expected
        np.testing.assert_allclose(model.score(ids), scores, atol=1e-4)
        kinds = {type(module).__name__ for module in model.raw.modules()}
        assert ("Linear4bit" if form == "nf4" else "Linear8bitLt") in kinds
    with pytest.raises(UnsupportedError, match="already"):
        again = dataclasses.replace(plan_of(tmp_path / "packed"), quantization="nf4")
        TransformersEngine().open(again)


def test_four_bits_take_what_the_estimate_says_and_cost_what_their_type_costs() -> None:
    ids = None
    diverged: dict[str, float] = {}
    sizes: dict[str, int] = {}
    with open_model("transformers") as model:
        ids = model.prompt_ids(SUM) + list(model.ask(SUM, max_tokens=12).token_ids)
        exact = model.log_probabilities(ids)
    for name in FOUR_BITS:
        with open_model("transformers", quantization=name, dtype="fp32") as model:
            kinds = {getattr(each, "quant_type", None) for each in model.raw.parameters()}
            assert name[:3] in kinds
            sizes[name] = held_bytes(model.raw)
            assert model.plan.estimate is not None
            assert sizes[name] == pytest.approx(model.plan.estimate.weights, rel=0.001)
            mine = model.log_probabilities(ids)
        diverged[name] = float((np.exp(exact) * (exact - mine)).sum(-1).mean())
    assert sizes["nf4-double"] < sizes["nf4"] == sizes["fp4"]
    assert sizes["fp4-double"] == sizes["nf4-double"]
    assert 0 < diverged["nf4"] < 0.005, diverged
    assert diverged["nf4"] < diverged["fp4"] < 0.01, diverged
    assert abs(diverged["nf4-double"] - diverged["nf4"]) < 0.5 * diverged["nf4"], diverged


def held_bytes(raw: Any) -> int:
    """The bytes of a model's weights with what bitsandbytes keeps beside each."""
    total = 0
    for each in raw.parameters():
        total += each.numel() * each.element_size()
        state = getattr(each, "quant_state", None)
        while state is not None:
            total += sum(t.numel() * t.element_size() for t in (state.absmax, state.code))
            total += 0 if state.offset is None else state.offset.numel() * 4
            state = state.state2
    return total


def test_no_plan_takes_four_bits_of_another_kind_by_itself() -> None:
    found = wb.plan("qwen2.5-32b-instruct", machine="24GB-cuda", engine="transformers")
    assert found.quantization == "nf4"
    asked = wb.plan("qwen2.5-32b-instruct", machine="24GB-cuda", quantization="nf4-double")
    assert (asked.engine, asked.quantization) == ("transformers", "nf4-double")
    assert asked.estimate is not None
    assert found.estimate is not None
    saved = found.estimate.weights - asked.estimate.weights
    assert saved == pytest.approx(0.373 / 8 * 31.2e9, rel=0.02), "0.373 bit a weight, QLoRA 3"


def test_block_fp8_is_unpacked_where_the_device_has_no_kernels(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    block = 64
    folder = renamed(
        tmp_path / "fp8",
        {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [block, block],
            "modules_to_not_convert": ["lm_head"],
        },
    )
    exact = tmp_path / "unpacked"
    shutil.copytree(tiny_chat(), exact)
    file = folder / "model.safetensors"
    packed, plain = {}, {}
    for name, tensor in load_file(file).items():
        if tensor.dim() != 2 or "proj" not in name:
            packed[name] = plain[name] = tensor
            continue
        rows, columns = tensor.shape
        assert rows % block == columns % block == 0
        blocks = tensor.float().reshape(rows // block, block, columns // block, block)
        scale = blocks.abs().amax((1, 3), keepdim=True) / 448
        small = (blocks / scale).to(torch.float8_e4m3fn)
        packed[name] = small.reshape(rows, columns)
        packed[f"{name}_scale_inv"] = scale[:, 0, :, 0].contiguous()
        plain[name] = (small.float() * scale).reshape(rows, columns)
    save_file(packed, file, metadata={"format": "pt"})
    save_file(plain, exact / "model.safetensors", metadata={"format": "pt"})
    with wb.load(exact, engine="transformers", dtype="bf16", threads=1) as model:
        ids = model.prompt_ids(SUM)
        expected = model.score(ids)
    with wb.load(folder, engine="transformers", threads=1) as model:
        assert any("unpacked to 16 bit" in reason for reason in model.plan.reasons)
        np.testing.assert_allclose(model.score(ids), expected, atol=0.1)


def test_layers_on_the_disk_are_refused(tmp_path: Path) -> None:
    plan = plan_of(tiny_chat())
    for more in (
        {"options": {"device_map": {"model": "cpu", "lm_head": "disk"}}},
        {"max_memory": {"cpu": 4_000_000}},
    ):
        with pytest.raises((UnsupportedError, ValueError), match="disk"):
            TransformersEngine().open(dataclasses.replace(plan, **more))


def test_layers_are_placed_within_the_memory_given() -> None:
    plan = dataclasses.replace(plan_of(tiny_chat()), max_memory={"cpu": 400_000_000})
    session = TransformersEngine().open(plan)
    assert {str(weights.device) for weights in session.raw.parameters()} == {"cpu"}
    assert session.score([5, 6, 7]).shape == (2,)
    session.close()


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")],
)
def test_a_load_that_runs_out_of_memory_frees_everything(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    models: list[weakref.ref[Any]] = []

    class Failing:
        def __init__(self, model: Any, *_: Any) -> None:
            models.append(weakref.ref(model))
            raise error

    monkeypatch.setattr(engine_module, "TransformersSession", Failing)
    plan = dataclasses.replace(plan_of(tiny_chat()), changes=("Take a context of 7.",))
    with pytest.raises(MemoryShortError, match=r"ran out of memory.*Take a context of 7") as caught:
        TransformersEngine().open(plan)
    assert caught.value.changes == ("Take a context of 7.",)
    error.__traceback__ = None
    gc.collect()
    assert models[0]() is None


def test_a_reply_that_runs_out_of_memory_says_so_and_the_model_lives_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    with open_model("transformers") as model:
        expected = model.ask(SUM, max_tokens=8).token_ids
        session = model._session
        forward = session._forward.forward

        def short(*args: Any, past_key_values: Any = None, **more: Any) -> Any:
            if past_key_values is not None and past_key_values.get_seq_length() > 20:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
            return forward(*args, past_key_values=past_key_values, **more)

        with monkeypatch.context() as patch:
            patch.setattr(session._forward, "forward", short)
            with pytest.raises(EngineError, match=r"out of memory on cpu at .* tokens") as caught:
                model.ask(SUM + " And 5?", max_tokens=40)
        assert "nf4" in str(caught.value)
        assert session.prefix.tokens == 0
        assert model.ask(SUM, max_tokens=8).token_ids == expected


def test_mxfp4_is_unpacked_where_there_are_no_kernels(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**SMALL, **FAMILIES["gpt_oss"], "hidden_size": 64, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_oss", **settings))
    exact, packed = tmp_path / "exact", tmp_path / "packed"
    tokenizer().save_pretrained(str(exact))
    model.to(torch.bfloat16).save_pretrained(str(exact))
    shutil.copytree(exact, packed)
    plain = load_file(exact / "model.safetensors")
    small = dict(plain)
    steps = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    values = torch.cat([steps, -steps])  # the table of E2M1, OCP Microscaling Formats 1.0
    for name in [key for key in plain if key.endswith(("gate_up_proj", "down_proj"))]:
        experts, inner, outer = plain[name].shape
        codes = torch.randint(0, 16, (experts, outer, inner // 32, 32))
        powers = torch.randint(122, 127, (experts, outer, inner // 32))
        whole = values[codes] * torch.exp2(powers[..., None] - 127.0)
        plain[name] = whole.reshape(experts, outer, inner).mT.contiguous().to(torch.bfloat16)
        del small[name]
        small[f"{name}_blocks"] = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
        small[f"{name}_scales"] = powers.to(torch.uint8)
    save_file(plain, exact / "model.safetensors", metadata={"format": "pt"})
    save_file(small, packed / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (packed / "config.json").write_text(json.dumps(config))
    ids = [5, 300, 41, 77, 1200, 9, 2000, 64, 31, 8]
    with wb.load(exact, engine="transformers", quantization="none", dtype="bf16") as model:
        expected = model.score(ids)
    with wb.load(packed, engine="transformers", threads=1) as model:
        assert any("mxfp4 weights are unpacked to 16 bit" in said for said in model.plan.reasons)
        assert model.raw.dtype == torch.bfloat16
        np.testing.assert_allclose(model.score(ids), expected, atol=0.02)
