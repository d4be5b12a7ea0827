"""Loading: the forms and options of a model, adapters, templates, a small context."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engine_models import open_model

import workbench as wb
from workbench.engines.model import Model
from workbench.errors import (
    ContextLengthError,
    EngineError,
    InputError,
    UnsupportedError,
)
from workbench.paths import shipped


@pytest.mark.parametrize(("quantization", "limit"), [("int8", 0.01), ("nf4", 0.2)])
def test_bitsandbytes_forms_answer_and_keep_quiet(
    quantization: str, limit: float, opened: Callable[..., Model], caplog: pytest.LogCaptureFixture
) -> None:
    exact = opened("transformers", False)
    ids = exact.prompt_ids("Tell me a story.") + exact.tokenize("A happy cat lived in a house.")
    expected = exact.log_probabilities(ids).astype(np.float64)
    with (
        caplog.at_level(logging.WARNING),
        open_model("transformers", quantization=quantization, dtype="auto") as model,
    ):
        found = model.log_probabilities(ids)
        divergence = (np.exp(expected) * (expected - found)).sum(-1).mean()
        assert 1e-6 < divergence < limit  # it is quantized, and still the same model
        assert model.raw.get_memory_footprint() < 6e6 < exact.raw.get_memory_footprint()
        assert model.ask("What is 3 + 4?", max_tokens=12).finish_reason == "stop"
        many = model.ask_many(["Hi!", "Tell me a story."], max_tokens=8)
        assert all(reply.text for reply in many)
    assert not [record for record in caplog.records if "bitsandbytes" in record.name]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_is_what_was_asked_for(dtype: str) -> None:
    import torch

    with open_model("transformers", dtype=dtype) as model:
        wanted = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
        assert {parameter.dtype for parameter in model.raw.parameters()} == {wanted}
        assert model.plan.dtype == dtype
        assert model.score(model.tokenize("A cat.")).dtype == np.float32


def test_quantized_gguf_files_are_made_once_and_answer() -> None:
    with open_model("llama.cpp", quantization="Q4_K_M") as model:
        assert model.plan.files.kind == "gguf"
        first = model.plan.files.path
        assert model.ask("What is 3 + 4?", max_tokens=12).text
    with open_model("llama.cpp", quantization="q4_k_m") as model:
        assert model.plan.files.path == first


@pytest.fixture
def adapter(opened: Callable[..., Model], tmp_path: Path) -> Path:
    """A LoRA adapter that changes every answer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(shipped("data", "tiny-chat"), dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_loaded_on_top_and_not_merged(
    adapter: Path, opened: Callable[..., Model]
) -> None:
    from peft import PeftModel

    plain = opened("transformers", False)
    ids = plain.prompt_ids("Tell me a story.")
    with open_model("transformers", adapter=adapter) as model:
        assert isinstance(model.raw, PeftModel)
        adapted = model.score(ids)
        assert np.abs(adapted - plain.score(ids)).max() > 0.1
        with model.raw.disable_adapter():
            np.testing.assert_allclose(model.score(ids), plain.score(ids), atol=1e-4)
        assert "adapter" in model.label
        with open_model("transformers", adapter=adapter, isolate=True) as there:
            np.testing.assert_allclose(there.score(ids), adapted, atol=1e-5)
    with open_model("llama.cpp", adapter=adapter) as model:
        np.testing.assert_allclose(model.score(ids), adapted, atol=5e-2)


def test_a_model_without_a_chat_template_completes_only(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    with wb.load(copy, engine="transformers") as model:
        with pytest.raises(UnsupportedError, match="cannot render"):
            model.render("Hi!")
        with pytest.raises(UnsupportedError, match="no chat template"):
            model.ask("Hi!")
        assert next(iter(model.complete("A cat", max_tokens=1))).token_id is not None


def test_a_template_that_refuses_says_why(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role!') }}"
        "{% endif %}{{ messages[0]['content'] }}"
    )
    turns = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    for settings in ({"engine": "transformers"}, {"engine": "llama.cpp", "quantization": "F16"}):
        with wb.load(copy, threads=1, **settings) as model:
            with pytest.raises(InputError, match="No system role!"):
                model.ask(turns)
            assert model.render("only this") == "only this"


def test_a_small_context_is_kept(f32: Path) -> None:
    for settings in ({"engine": "transformers"}, {"engine": "llama.cpp", "quantization": "F32"}):
        with wb.load("tiny-chat", context=40, threads=1, **settings) as model:
            room = 40 - len(model.prompt_ids("Tell me a story."))
            with pytest.raises(ContextLengthError, match=r"\d+ tokens.*40"):
                model.ask("one two three four five six seven " * 4)
            reply = model.ask("Tell me a story.", max_tokens=400, temperature=9.0, seed=0)
            assert len(reply.token_ids) <= room
            assert reply.finish_reason == "stop" or len(reply.token_ids) == room


def test_engine_options_are_passed_on() -> None:
    with open_model("llama.cpp", n_batch=16) as model:
        assert model.raw.n_batch == 16
        assert model.score(model.tokenize("A quiet cat. " * 20)).shape[0] > 64
    with open_model("transformers", attn_implementation="eager") as model:
        assert model.raw.config._attn_implementation == "eager"
    with pytest.raises(UnsupportedError, match="'verbose' is not an option"):
        open_model("llama.cpp", verbose=True)
    with pytest.raises(InputError, match="Did you mean 'n_batch'"):
        open_model("llama.cpp", n_bach=1)
    with pytest.raises(EngineError, match="no_such_option"):
        open_model("transformers", no_such_option=1)
