"""LoRA adapters on the engine mlx: PEFT folders equal to PEFT itself, mlx-lm's own, and misfits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import open_model

from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.errors import FormatError, InputError, UnsupportedError
from workbench.paths import shipped

pytest.importorskip("mlx.core")
pytest.importorskip("peft")
STORY = "Tell me a story."


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a PEFT adapter with random weights: ``make(**LoraConfig arguments)``."""

    def made(**settings: Any) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(shipped("data", "tiny-chat"), dtype="float32")
        given = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings}
        adapted = get_peft_model(base, LoraConfig(**given))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter) * 0.03)
        folder = tmp_path_factory.mktemp("adapters") / "lora"
        adapted.save_pretrained(folder)
        return folder

    return made


@pytest.fixture(scope="module")
def plain(make: Callable[..., Path]) -> Path:
    return make(lora_alpha=64)  # strong enough to change what is said


@pytest.fixture(scope="module")
def mlx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("home")))
        with open_model("mlx") as model:
            yield model


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as ``mlx_lm.lora`` saves it."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    folder = tmp_path_factory.mktemp("own")
    settings = {"rank": 4, "scale": 3.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    model, _ = load_model(shipped("data", "tiny-chat"))
    model.freeze()
    linear_to_lora_layers(model, 2, settings)
    mx.random.seed(0)
    weights = {
        name: mx.random.normal(weight.shape) * 0.4
        for name, weight in tree_flatten(model.trainable_parameters())
    }
    assert len(weights) == 4
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"r": 9, "lora_alpha": 4, "use_rslora": True},
        {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 6},
         "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 400}},
    ],
    ids=["alpha/r", "rslora", "patterns"],
)  # fmt: skip
def test_a_peft_adapter_is_what_peft_makes_of_it(
    settings: dict[str, Any], make: Callable[..., Path], mlx: Model, shows: Callable[..., None]
) -> None:
    folder = make(**settings)
    base = mlx.score(ids := mlx.prompt_ids(STORY))
    with open_model("transformers", adapter=folder) as exact:
        expected = exact.score(ids)
        mlx.use_adapter(folder)
        try:
            found = mlx.score(ids)
            assert np.abs(expected - base).max() > 0.05
            np.testing.assert_allclose(found, expected, atol=3e-3)
            one = mlx.ask(STORY, max_tokens=16).token_ids
            assert one == exact.ask(STORY, max_tokens=16).token_ids
        finally:
            mlx.use_adapter(None)
    np.testing.assert_array_equal(mlx.score(ids), base)
    shows(mlx, Power.ADAPTERS)


def test_switching_forgets_what_the_other_had_read(mlx: Model, plain: Path, own: Path) -> None:
    found = {}
    for adapter in (None, plain, own, None, own, plain):
        mlx.use_adapter(adapter)
        assert mlx.plan.adapter == adapter
        reply = mlx.ask(STORY, max_tokens=12).token_ids
        assert found.setdefault(adapter, reply) == reply
    mlx.use_adapter(None)
    assert len(set(found.values())) == 3


def test_mlx_lms_own_folder_loads_as_mlx_lm_loads_it(own: Path) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load

    with open_model("mlx", adapter=own) as model:
        assert "own" in model.label
        ids = model.prompt_ids(STORY)
        raw, _ = load(str(shipped("data", "tiny-chat")), adapter_path=str(own))
        raw.set_dtype(mx.float32)
        row = raw(mx.array([ids]))[0, -1]
        expected = np.array(row - mx.logsumexp(row))
        np.testing.assert_allclose(model.log_probabilities([*ids, 0])[-1], expected, atol=2e-3)


def test_an_adapter_on_a_quantized_model(plain: Path) -> None:
    with open_model("mlx", quantization="8bit", dtype="bf16") as model:
        ids = model.prompt_ids(STORY)
        base = model.score(ids)
        model.use_adapter(plain)
        assert np.abs(model.score(ids) - base).max() > 0.05
        model.use_adapter(None)
        np.testing.assert_array_equal(model.score(ids), base)


def test_misfits_are_refused_and_the_adapter_before_stays(
    mlx: Model, plain: Path, own: Path, make: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(plain / "adapter_model.safetensors")

    def changed(name: str, tensors: dict[str, Any], **config: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        text = json.loads((plain / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**text, **config}))
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    first = next(key for key in tensors if "lora_A" in key)
    elsewhere = changed("other", {key.replace("layers.0", "layers.70"): value
                                  for key, value in tensors.items()})  # fmt: skip
    narrow = changed("narrow", {**tensors, first: tensors[first][:, :7].copy()})
    lone = changed("lone", {key: value for key, value in tensors.items() if key != first})
    whole = changed("whole", tensors, modules_to_save=["lm_head"])
    broken = changed("broken", tensors)
    (broken / "adapter_model.safetensors").write_bytes(b"no tensors")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    config = json.loads((own / "adapter_config.json").read_text())
    config["lora_parameters"]["rank"] = 5
    (foreign / "adapter_config.json").write_text(json.dumps(config))
    (foreign / "adapters.safetensors").write_bytes((own / "adapters.safetensors").read_bytes())
    mlx.use_adapter(plain)
    reply = mlx.ask(STORY, max_tokens=6).token_ids
    for folder, error, words in (
        (elsewhere, InputError, r"layers\.70"),
        (narrow, InputError, "takes matrices of"),
        (lone, FormatError, "one of the two matrices"),
        (whole, UnsupportedError, "whole modules"),
        (make(use_dora=True), UnsupportedError, "DoRA"),
        (broken, FormatError, "cannot be read"),
        (foreign, InputError, "another model"),
        (tmp_path / "nowhere", InputError, "no adapter"),
    ):
        with pytest.raises(error, match=words):
            mlx.use_adapter(folder)
        assert mlx.ask(STORY, max_tokens=6).token_ids == reply
    mlx.use_adapter(None)
    assert mlx.ask(STORY, max_tokens=6).token_ids != reply
