"""LoRA adapters in llama.cpp: converted, switched, equal to PEFT; what has no form is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import open_model
from random_models import tiny_chat

from workbench.catalog import Card
from workbench.engines import llama_cpp_adapter
from workbench.engines.base import Power
from workbench.engines.llama_cpp_adapter import lora_file
from workbench.engines.model import Model
from workbench.errors import FormatError, InputError, UnsupportedError

STORY = "Tell me a story about a cat."
PLAIN: dict[str, Any] = {"r": 4, "lora_alpha": 24}
RANKED: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 16,
    "use_rslora": True,
    "rank_pattern": {"q_proj": 8},
    "alpha_pattern": {"layers.1.mlp.down_proj": 40},
}


def write_adapter(folder: Path, **settings: Any) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(str(tiny_chat()))
    wanted = {"target_modules": "all-linear", "init_lora_weights": False, **settings}
    get_peft_model(base, LoraConfig(**wanted)).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "plain": write_adapter(folder / "plain", **PLAIN),
        "ranked": write_adapter(folder / "ranked", **RANKED),
    }


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with open_model("llama.cpp") as found:
        yield found


def table(model: Model) -> Any:
    return model.log_probabilities(model.prompt_ids(STORY))


@pytest.mark.parametrize("name", ["plain", "ranked"])
@pytest.mark.slow
def test_an_adapter_equals_transformers_with_peft(
    name: str, model: Model, adapters: dict[str, Path], shows: Callable[..., None]
) -> None:
    """rsLoRA and patterns of ranks and alphas too, which the converter alone gets wrong."""
    base = table(model)
    model.use_adapter(adapters[name])
    with open_model("transformers", adapter=adapters[name]) as reference:
        expected = table(reference)
        said = reference.ask(STORY, max_tokens=20).token_ids
    found = table(model)
    assert np.abs(found - base).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=2e-2)
    assert model.ask(STORY, max_tokens=20).token_ids == said
    shows(model, Power.ADAPTERS)


def test_adapters_are_switched_without_loading_again(
    model: Model, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model.use_adapter(None)
    expected: dict[Path | None, Any] = {None: model.ask(STORY, max_tokens=16).token_ids}
    for folder in adapters.values():
        with open_model("llama.cpp", adapter=folder) as fresh:
            assert fresh.plan.adapter == folder
            expected[folder] = fresh.ask(STORY, max_tokens=16).token_ids
    assert len(set(expected.values())) == 3
    monkeypatch.setattr(llama_cpp_adapter, "_convert", None)
    plain, ranked = adapters.values()
    for folder in (plain, ranked, None, plain, plain, None):
        model.use_adapter(folder)
        assert model.ask(STORY, max_tokens=16).token_ids == expected[folder]
    model.use_adapter(lora_file(plain, model.card))  # the GGUF itself
    assert model.ask(STORY, max_tokens=16).token_ids == expected[plain]
    model.use_adapter(None)


def test_a_file_that_was_written_again_is_read_again(
    model: Model, adapters: dict[str, Path], tmp_path: Path
) -> None:
    own, said = tmp_path / "own.gguf", []
    for number, folder in enumerate(adapters.values()):
        shutil.copyfile(lora_file(folder, model.card), own)
        os.utime(own, (number, number))
        model.use_adapter(own)
        found = model.ask(STORY, max_tokens=16).token_ids
        model.use_adapter(folder)
        assert model.ask(STORY, max_tokens=16).token_ids == found
        said.append(found)
    assert said[0] != said[1]
    model.use_adapter(None)


def test_an_adapter_works_on_a_quantized_base(adapters: dict[str, Path]) -> None:
    with open_model("llama.cpp", quantization="Q8_0", adapter=adapters["plain"]) as model:
        adapted = table(model)
        model.use_adapter(None)
        assert np.abs(table(model) - adapted).max() > 0.5


def test_what_has_no_form_is_refused_and_the_model_stays(
    model: Model, adapters: dict[str, Path], f32: Path, tmp_path: Path
) -> None:
    model.use_adapter(None)
    before = model.ask(STORY, max_tokens=8).token_ids

    def changed(name: str, **settings: Any) -> Path:
        folder = shutil.copytree(adapters["plain"], tmp_path / name)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))
        return folder

    (tmp_path / "empty").mkdir()
    broken = changed("broken")
    (broken / "adapter_config.json").write_text("{")
    for adapter, error, said in (
        (changed("dora", use_dora=True), UnsupportedError, "DoRA"),
        (changed("ia3", peft_type="IA3"), UnsupportedError, "IA3"),
        (changed("biased", bias="all"), UnsupportedError, "biases"),
        (tmp_path / "empty", InputError, "no adapter_config.json"),
        (broken, FormatError, "not valid JSON"),
        (f32, InputError, "no LoRA adapter"),
    ):
        with pytest.raises(error, match=said):
            model.use_adapter(adapter)
        assert model.plan.adapter is None
    assert model.ask(STORY, max_tokens=8).token_ids == before


def test_a_conversion_that_fails_leaves_nothing(
    adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(llama_cpp_adapter, "converter", lambda: type("C", (), {"folder": tmp_path}))
    with pytest.raises(UnsupportedError, match=r"has no convert_lora_to_gguf\.py"):
        lora_file(adapters["plain"], Card(id="nobody"))
    assert not list((tmp_path / "cache").rglob("*.gguf"))
