"""Which files of a repository make a form, by their names."""

from __future__ import annotations

import pytest

from workbench.catalog.card import GgufSource
from workbench.catalog.wanted import (
    gguf_wanted,
    quantization_of,
    safetensors_missing,
    safetensors_wanted,
)
from workbench.errors import InputError, NotFoundError, UnsupportedError

SOURCE = GgufSource(repository="owner/m")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("qwen2.5-7b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("Model-IQ2_XXS.gguf", "IQ2_XXS"),
        ("m-UD-Q4_K_XL.gguf", "Q4_K_XL"),
        ("Q8_0/m-00001-of-00002.gguf", "Q8_0"),
        ("m.BF16.gguf", "BF16"),
        ("m-fp16.gguf", "F16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("m-Q4_0_4_4.gguf", "Q4_0_4_4"),
        ("qwen3-model.gguf", None),
    ],
)
def test_the_quantization_in_a_name(name: str, said: str | None) -> None:
    assert quantization_of(name) == said


def test_like_names_are_told_apart() -> None:
    names = ["m-F16.gguf", "m-BF16.gguf", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-IQ4_XS.gguf"]
    for name in names:
        assert gguf_wanted(names, SOURCE, name[2:-5]) == [name]
        assert gguf_wanted([n.lower() for n in names], SOURCE, name[2:-5]) == [name.lower()]
    with pytest.raises(NotFoundError, match="Q4_K_M"):
        gguf_wanted(names, SOURCE, "Q4_K")


def test_no_quantization_takes_the_nearest_to_q4_k_m() -> None:
    assert gguf_wanted(["m-Q8_0.gguf", "m-Q4_K_M.gguf"], SOURCE, None) == ["m-Q4_K_M.gguf"]
    assert gguf_wanted(["m-Q2_K.gguf", "m-Q8_0.gguf"], SOURCE, None) == ["m-Q8_0.gguf"]
    assert gguf_wanted(["m.gguf"], GgufSource(repository="o/m", pattern="*.gguf"), None) == [
        "m.gguf"
    ]


def test_several_files_of_one_quantization_need_the_card_to_choose() -> None:
    names = ["small-Q4_0.gguf", "large-Q4_0.gguf"]
    with pytest.raises(InputError, match="small-Q4_0"):
        gguf_wanted(names, SOURCE, "Q4_0")
    chosen = GgufSource(repository="owner/m", files={"Q4_0": "small*"})
    assert gguf_wanted(names, chosen, "Q4_0") == ["small-Q4_0.gguf"]
    variants = ["m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf"]
    assert gguf_wanted(variants, SOURCE, "Q4_K_M") == ["m-Q4_K_M.gguf"]


def test_what_safetensors_need() -> None:
    names = [
        "config.json", "model.safetensors", "consolidated.safetensors", "vocab.txt", "merges.txt",
        "1_Pooling/config.json", "2_Dense/model.safetensors", "onnx/model.onnx", "onnx/config.json",
        "original/consolidated.00.pth", "pytorch_model.bin", "tf_model.h5", "modeling_x.py",
        ".gitattributes", "README.md", "a/../b.json", "/etc/passwd.json", "qwen.tiktoken",
    ]  # fmt: skip
    assert safetensors_wanted(names) == [
        "1_Pooling/config.json", "2_Dense/model.safetensors", "config.json", "merges.txt",
        "model.safetensors", "qwen.tiktoken", "vocab.txt",
    ]  # fmt: skip
    assert "consolidated.safetensors" in safetensors_wanted(["consolidated.safetensors"])
    with pytest.raises(UnsupportedError, match="pickle"):
        safetensors_wanted(["config.json", "pytorch_model.bin"])
    with pytest.raises(NotFoundError, match="owner/m has no"):
        safetensors_wanted(["config.json"], where="owner/m")


def test_what_a_folder_lacks() -> None:
    assert safetensors_missing(["config.json", "tokenizer.json", "model.safetensors"]) == []
    assert safetensors_missing([]) == ["config.json", "model.safetensors", "tokenizer.json"]
    part = "model-00002-of-00003.safetensors"
    assert len(safetensors_missing(["config.json", "vocab.json", part])) == 2
