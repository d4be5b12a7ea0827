"""GGUF files under transformers: as exact as their safetensors, or refused before they answer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_gguf import random_gguf
from random_models import FAMILIES, SMALL, random_model, tokenizer

import workbench as wb
from workbench.catalog import locate, resolve
from workbench.catalog.capabilities import engine_facts
from workbench.catalog.card import GgufSource
from workbench.catalog.header import Tensor
from workbench.engines import transformers_gguf
from workbench.engines.transformers import ON_LOAD, TransformersEngine
from workbench.engines.transformers_gguf import GgufFile
from workbench.errors import MissingPackageError, UnsupportedError
from workbench.formats import convert, quantize

SUM = "What is 3 + 4?"
IDS = [1, *range(300, 500), 5, 9]


def under(engine: str, model: Path, **settings: Any) -> wb.Model:
    return wb.load(model, engine=engine, threads=1, context=512, **settings)


def patched(source: Path, target: Path, before: bytes, after: bytes) -> Path:
    """Copy a GGUF and replace the one place where it says ``before``."""
    data = source.read_bytes()
    assert len(before) == len(after)
    assert data.count(before) == 1
    target.write_bytes(data.replace(before, after))
    return target


def test_a_gguf_of_32_bits_is_the_model_it_was_made_from(f32: Path) -> None:
    with under("llama.cpp", f32) as model:
        prompt, raw = model.prompt_ids(SUM), [*model.complete("Once upon", max_tokens=6)]
        scores, reply = model.score(prompt), model.ask(SUM, max_tokens=24)
    with wb.load("tiny-chat", engine="transformers", dtype="fp32", threads=1) as model:
        exact = model.score(prompt)
    with under("transformers", f32) as model:
        assert model.prompt_ids(SUM) == prompt
        assert model.ask(SUM, max_tokens=24).token_ids == reply.token_ids
        assert model.ask(SUM, max_tokens=24).finish_reason == "stop"
        mine = [piece.token_id for piece in model.complete("Once upon", max_tokens=6)]
        assert mine == [piece.token_id for piece in raw]
        np.testing.assert_array_equal(model.score(prompt), exact)
        np.testing.assert_allclose(model.score(prompt), scores, atol=2e-3)
        assert model.render(SUM) == tokenizer().apply_chat_template(
            [{"role": "user", "content": SUM}], add_generation_prompt=True, tokenize=False
        )


def test_quantized_weights_are_unpacked_and_take_what_the_plan_says(
    f32: Path, tmp_path: Path
) -> None:
    import torch
    from gguf import GGUFReader, dequantize

    small = quantize(f32, tmp_path / "small.gguf", "Q4_K_M")
    assert wb.plan(small).engine == "llama.cpp"
    planned = wb.plan(small, engine="transformers", dtype="bf16")
    assert any("unpacked while loading" in said for said in planned.reasons)
    assert any("GGUF as bf16" in said for said in planned.reasons)
    assert planned.estimate is not None
    assert planned.estimate.weights > 2.5 * small.stat().st_size
    with under("llama.cpp", small) as model:
        prompt = model.prompt_ids(SUM)
        scores = model.score(prompt)
    with under("transformers", small, dtype="bf16") as model:
        held = sum(each.numel() * each.element_size() for each in model.raw.parameters())
        assert held == planned.estimate.weights
    with under("transformers", small) as model:
        tensors = {each.name: each for each in GGUFReader(str(small)).tensors}
        tensor = tensors["blk.2.ffn_up.weight"]
        expected = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(model.raw.model.layers[2].mlp.up_proj.weight, expected)
        difference = np.abs(model.score(prompt) - scores)
        assert difference.max() < 0.15, "llama.cpp rounds activations to 8 bit besides"


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen3_moe"])
def test_a_family_that_is_read_scores_as_its_safetensors(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    more = {"qwen2": {"head_dim": 12}, "qwen3_moe": {**experts, "norm_topk_prob": True}}
    monkeypatch.setitem(FAMILIES, family, more.get(family, {}))
    random_model.cache_clear()
    file = random_gguf(family, tmp_path)
    with under("transformers", tmp_path / f"{family}-source", dtype="fp32") as model:
        expected = model.score(IDS)
    with under("transformers", file) as model:
        np.testing.assert_array_equal(model.score(IDS), expected)


def llama_gguf(folder: Path, **changes: Any) -> Path:
    """A random Llama as a GGUF of 32 bits, its safetensors beside it in ``source``."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**SMALL, **changes})).float()
    model.save_pretrained(folder / "source")
    tokenizer().save_pretrained(folder / "source")
    files = locate(resolve(folder / "source"))
    return convert(files, folder / "random.gguf", dtype="F32", name="random")


def test_scaled_frequencies_that_transformers_leaves_out_are_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 256}  # fmt: skip
    file = llama_gguf(tmp_path, rope_parameters=rope)
    with under("transformers", tmp_path / "source", dtype="fp32") as model:
        exact = model.score(IDS)
    with under("llama.cpp", file) as model:
        np.testing.assert_allclose(model.score(IDS), exact, atol=5e-3)
    with under("transformers", file) as model:
        np.testing.assert_allclose(model.score(IDS), exact, atol=1e-3)
    monkeypatch.setattr(GgufFile, "_rope_factors", lambda _: None)
    with under("transformers", file) as model:
        assert np.abs(model.score(IDS) - exact).max() > 0.1, "the library alone does not read them"


def test_tensors_without_a_place_in_the_model_are_not_lost_in_silence(
    f32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = transformers_gguf.read_header
    biases = [Tensor(f"blk.{n}.attn_q.bias", (256,), "F32", 1024, f32.name) for n in range(2)]

    def with_biases(path: Path) -> Any:
        header = read(path)
        return dataclasses.replace(header, tensors=(*header.tensors, *biases))

    monkeypatch.setattr(transformers_gguf, "read_header", with_biases)
    with pytest.raises(UnsupportedError, match=r"left out 512 of .* values .*llama\.cpp"):
        under("transformers", f32)


def test_architectures_that_are_read_wrong_or_not_at_all_are_refused(
    f32: Path, tmp_path: Path
) -> None:
    said = b"general.architecture" + (8).to_bytes(4, "little") + (5).to_bytes(8, "little")
    other = patched(f32, tmp_path / "other.gguf", said + b"llama", said + b"olmo2")
    planned = wb.plan(f32, engine="transformers")
    assert planned.files is not None
    files = dataclasses.replace(planned.files, path=other, weights=(other,))
    with pytest.raises(UnsupportedError, match=r"architecture 'olmo2'.*llama, qwen2") as caught:
        TransformersEngine().open(dataclasses.replace(planned, files=files))
    assert "engine='llama.cpp'" in str(caught.value)
    parts = dataclasses.replace(planned.files, weights=(f32, f32))
    with pytest.raises(UnsupportedError, match="lies in 2 GGUF files"):
        TransformersEngine().open(dataclasses.replace(planned, files=parts))
    card = planned.card.model_copy(update={"tasks": ("embedding",)})
    with pytest.raises(UnsupportedError, match="no vectors from the GGUF"):
        TransformersEngine().open(dataclasses.replace(planned, card=card))


@pytest.mark.parametrize(
    ("key", "value"), [("rope.scaling.type", "yarn"), ("attention.sliding_window", 512)]
)
def test_windows_and_scaled_positions_that_would_be_left_out_are_refused(
    key: str, value: Any, f32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = transformers_gguf.read_header

    def with_key(path: Path) -> Any:
        header = read(path)
        return dataclasses.replace(header, metadata={**header.metadata, f"llama.{key}": value})

    monkeypatch.setattr(transformers_gguf, "read_header", with_key)
    with pytest.raises(UnsupportedError, match=f"{key} = {value}"):
        TransformersEngine().open(wb.plan(f32, engine="transformers"))


def test_a_missing_package_is_named_with_its_command(
    f32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.engines import transformers_packed

    monkeypatch.setattr(transformers_packed, "_is_here", lambda module: module != "gguf")
    with pytest.raises(MissingPackageError, match="pip install gguf"):
        TransformersEngine().open(wb.plan(f32, engine="transformers"))


def test_gguf_of_the_hub_is_taken_only_where_it_is_asked_for() -> None:
    given = {"machine": "cpu-64GB", "engine": "transformers"}
    plain = wb.plan("qwen2.5-7b-instruct", **given)
    asked = wb.plan("qwen2.5-7b-instruct", quantization="Q4_K_M", **given)
    assert plain.quantization == "none"
    assert asked.quantization == "Q4_K_M"
    assert asked.repository == "bartowski/Qwen2.5-7B-Instruct-GGUF"
    assert asked.estimate is not None
    assert plain.estimate is not None
    assert asked.estimate.weights == plain.estimate.weights
    only = resolve("qwen2.5-7b-instruct").model_copy(
        update={"repository": None, "gguf": GgufSource(repository="a/b-GGUF")}
    )
    found = wb.plan(only, **given)
    assert (found.engine, found.repository) == ("transformers", "a/b-GGUF")
    assert wb.plan(only, machine="cpu-64GB").engine == "llama.cpp"
    with pytest.raises(UnsupportedError, match=r"llama\.cpp can"):
        wb.plan("tiny-chat", engine="transformers", quantization="Q8_0")


def test_the_names_of_what_is_made_on_load_agree() -> None:
    facts = engine_facts()["transformers"]
    assert facts.on_load == facts.quantizations == ON_LOAD
    assert facts.only_when_named == ("gguf",)
