"""What the engine mlx loads, quantizes and refuses, and what it reads in configs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import open_model
from tiny_copy import tiny_copy

import workbench as wb
from workbench.engines.mlx_config import with_old_names
from workbench.engines.model import Model
from workbench.errors import FormatError, InputError, UnsupportedError
from workbench.paths import shipped

mx = pytest.importorskip("mlx.core")
STORY = "Tell me a story."


# Forms


@pytest.mark.parametrize(("name", "bits", "share"), [("4bit", 4, 0.3), ("8bit", 8, 0.01)])
def test_quantized_on_load_it_stays_close_and_is_small(
    name: str, bits: int, share: float, opened: Callable[..., Model]
) -> None:
    exact = opened("transformers", False)
    ids = exact.prompt_ids(STORY) + exact.tokenize("A happy cat lived in a house.")
    expected = exact.log_probabilities(ids).astype(np.float64)
    with open_model("mlx", quantization=name, dtype="bf16") as model:
        assert _packing(model) == (bits, 64, "affine")
        found = model.log_probabilities(ids)
        assert (np.exp(expected) * (expected - found)).sum(-1).mean() < share
        assert model.ask("What is 3 + 4?", max_tokens=8).text.startswith("3 + 4 = 7")
        held = sum(array.nbytes for _, array in _flat(model.raw.parameters()))
        assert held == _weights(model.plan)


def test_mxfp4_on_load(opened: Callable[..., Model]) -> None:
    with open_model("mlx", quantization="mxfp4", dtype="bf16") as model:
        assert _packing(model) == (4, 32, "mxfp4")
        assert model.ask("What is 3 + 4?", max_tokens=8).token_ids
        held = sum(array.nbytes for _, array in _flat(model.raw.parameters()))
        assert held == _weights(model.plan)


def _packing(model: Model) -> tuple[int, int, str]:
    layer = model.raw.model.layers[0].self_attn.q_proj
    return layer.bits, layer.group_size, layer.mode


def _flat(tree: Any) -> list[tuple[str, Any]]:
    from mlx.utils import tree_flatten

    return list(tree_flatten(tree))


def _weights(plan: Any) -> int:
    return sum(part.bytes for part in plan.estimate.parts if part.group == "weights")


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision(dtype: str) -> None:
    with open_model("mlx", dtype=dtype) as model:
        wanted = {"bf16": mx.bfloat16, "fp16": mx.float16}[dtype]
        assert {array.dtype for _, array in _flat(model.raw.parameters())} == {wanted}
        assert model.ask("What is 3 + 4?", max_tokens=8).text == "3 + 4 = 7"


def test_a_folder_that_mlx_quantized_is_found_by_its_config(tmp_path: Path) -> None:
    from mlx_lm.utils import load, quantize_model, save

    source = shipped("data", "tiny-chat")
    model, tokenizer, config = load(str(source), return_config=True)
    model, config = quantize_model(model, config, 64, 8)
    folder = tmp_path / "no-hint-in-this-name"
    save(folder, str(source), model, tokenizer, config)
    with wb.load(folder, engine="mlx") as packed, open_model("mlx", quantization="8bit") as made:
        assert packed.raw.model.layers[0].self_attn.q_proj.bits == 8
        ids = made.prompt_ids(STORY)
        assert packed.prompt_ids(STORY) == ids
        np.testing.assert_allclose(packed.score(ids), made.score(ids), atol=0.6)
        assert packed.ask("What is 3 + 4?", max_tokens=8).text == "3 + 4 = 7"
    with pytest.raises((InputError, UnsupportedError), match=r"mlx|already"):
        wb.load(folder, engine="mlx", quantization="4bit")


def test_layers_that_the_group_does_not_divide_are_told(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    def made(name: str, hidden: int, wide: int) -> Path:
        folder = tmp_path / name
        shutil.copytree(shipped("data", "tiny-chat"), folder, ignore=lambda *_: ["builder"])
        config = LlamaConfig(
            hidden_size=hidden, intermediate_size=wide, num_hidden_layers=1, vocab_size=2816,
            num_attention_heads=2, num_key_value_heads=2, head_dim=48,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
        return folder

    odd = made("odd", 96, 128)
    with pytest.warns(UserWarning, match=r"8 of 9 layers of odd .* 64 does not divide"):
        model = wb.load(odd, engine="mlx", quantization="4bit")
    with model:
        assert model.raw.model.layers[0].mlp.down_proj.bits == 4
        assert not hasattr(model.raw.model.layers[0].mlp.up_proj, "bits")
    with pytest.raises(UnsupportedError, match=r"No layer of none .* 64 does not divide"):
        wb.load(made("none", 96, 96), engine="mlx", quantization="4bit")


# What it refuses


def test_an_architecture_that_mlx_lm_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="does not know the architecture 'nonesuch'"):
        wb.load(tiny_copy(tmp_path, model_type="nonesuch"), engine="mlx", force=True)


def test_code_of_the_models_own_is_not_run(tmp_path: Path) -> None:
    folder = tiny_copy(tmp_path, model_file="own.py")
    (folder / "own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UnsupportedError, match=r"own\.py.*trust_remote_code"):
        wb.load(folder, engine="mlx")


def test_damaged_and_missing_weights_are_format_errors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tiny_copy(tmp_path, "short")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(FormatError, match=r"model\.norm\.weight"):
        wb.load(folder, engine="mlx")


@pytest.mark.slow
def test_the_import_leaves_the_limit_of_open_files() -> None:
    import subprocess
    import sys

    script = (
        "import resource; before = resource.getrlimit(resource.RLIMIT_NOFILE);"
        "from workbench.engines.registry import engine; engine('mlx');"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == before;"
        "assert resource.setrlimit.__module__ == 'resource'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


# Configs


def test_rotary_settings_of_transformers_5_are_found() -> None:
    llama = {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0}
    assert with_old_names({"rope_parameters": llama}) == {
        "rope_theta": 5e5,
        "rope_scaling": {**llama, "type": "llama3"},
    }
    assert with_old_names({"rope_parameters": {"rope_theta": 7.0}, "rope_theta": 9.0}) == {}
    layered = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    found = with_old_names({"text_config": {"rope_parameters": layered, "model_type": "g"}})
    assert found["text_config"]["rope_theta"] == 1e6
    assert found["text_config"]["rope_local_base_freq"] == 1e4
    assert found["text_config"]["rope_scaling"]["factor"] == 8.0
    assert found["text_config"]["model_type"] == "g"


def test_another_base_of_rotation_is_honoured(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 777.0}
    folder = tiny_copy(tmp_path, rope_theta=None, rope_parameters=rope)
    with (
        wb.load(folder, engine="mlx", dtype="fp32") as one,
        wb.load(folder, engine="transformers", dtype="fp32", threads=1) as two,
    ):
        ids = one.prompt_ids(STORY) + one.tokenize("A happy cat lived in a house by the sea.")
        np.testing.assert_allclose(one.score(ids), two.score(ids), atol=2e-3)
