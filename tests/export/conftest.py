"""A random LoRA adapter on the embedded model, and a cache beside the user's."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_models import Fake, Loaded

from workbench.catalog import locate, resolve
from workbench.paths import shipped

pytest.importorskip("peft")


@pytest.fixture(autouse=True)
def own_cache(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(cache_folder))


@pytest.fixture(scope="session")
def base() -> Path:
    return locate(resolve("tiny-chat")).path


@pytest.fixture(scope="session")
def make_adapter(base: Path) -> Callable[..., Path]:
    """Make an adapter with random weights: ``make_adapter(folder, **LoraConfig arguments)``."""

    def make(folder: Path, **settings: Any) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        adapted = get_peft_model(
            model,
            LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings}),
        )
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter) * 0.03)
        adapted.save_pretrained(folder)
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "base_model_name_or_path": "data/tiny-chat"}))
        return folder

    return make


@pytest.fixture(scope="session")
def adapter(make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "random-lora")


@pytest.fixture(scope="session")
def talks() -> list[list[dict[str, str]]]:
    """A few held-out conversations."""
    lines = shipped("data", "prompts", "heldout_text.jsonl").read_text().splitlines()
    return [json.loads(line)["messages"] for line in lines[:10]]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Loaded]:
    """Let ``parity`` load fakes by form: ``fakes(Q8_0=Fake(0.1))``; return what was loaded."""

    def use(**by_form: Fake | Exception) -> Loaded:
        seen: Loaded = []

        @contextlib.contextmanager
        def load(**arguments: Any) -> Iterator[Fake]:
            seen.append(arguments)
            model = arguments["model"]
            form = model.stem if isinstance(model, Path) else "source"
            form = "adapter" if "adapter" in arguments else form
            chosen = by_form.get(form, Fake())
            if isinstance(chosen, Exception):
                raise chosen
            yield chosen

        monkeypatch.setattr(sys.modules["workbench.export.parity"], "load", load)
        return seen

    return use
