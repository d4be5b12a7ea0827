"""Forms as a user writes them, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.errors import InputError
from workbench.evaluate.form import FORMS, Form, read_forms


def test_the_forms_named_by_default_are_read() -> None:
    found = {form.label: form for form in read_forms(None)}
    assert list(found) == list(FORMS)
    fp32, nf4 = found["transformers:fp32"], found["transformers:nf4"]
    assert (fp32.engine, fp32.quantization, fp32.dtype) == ("transformers", "none", "fp32")
    assert (nf4.quantization, nf4.dtype) == ("nf4", "auto")
    gguf = found["llama.cpp:Q4_K_M"]
    assert (gguf.engine, gguf.quantization) == ("llama.cpp", "Q4_K_M")
    assert gguf.load_arguments() == {
        "engine": "llama.cpp",
        "quantization": "Q4_K_M",
        "dtype": "auto",
    }


def test_case_two_parts_and_a_bare_engine() -> None:
    lower, both, bare = read_forms(["llama.cpp:q4_k_m", "transformers:nf4:fp16", "scripted"])
    assert lower.quantization == "Q4_K_M"
    assert (both.quantization, both.dtype) == ("nf4", "fp16")
    assert (bare.quantization, bare.dtype) == ("auto", "auto")


def test_a_mapping_says_more(tmp_path: Path) -> None:
    (form,) = read_forms(
        [
            {
                "engine": "transformers",
                "dtype": "bf16",
                "adapter": tmp_path / "lora",
                "context": 512,
                "options": {"attn_implementation": "eager"},
            }
        ]
    )
    assert form.label == "transformers:bf16 + lora"
    assert form.adapter == str(tmp_path / "lora")
    assert form.load_arguments() == {
        "engine": "transformers",
        "quantization": "none",
        "dtype": "bf16",
        "adapter": str(tmp_path / "lora"),
        "context": 512,
        "attn_implementation": "eager",
    }
    (named,) = read_forms([{"label": "merged", "engine": "transformers", "model": "x"}])
    assert (named.label, named.model) == ("merged", "x")
    assert read_forms([named]) == [named]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("transformer:fp32", "Did you mean 'transformers'"),
        ("transformers:fp23", "Did you mean 'fp32'"),
        ("llama.cpp:Q4_KM", "Did you mean 'Q4_K_M'"),
        ("transformers:fp32:bf16", "names two: fp32 and bf16"),
        ({"engin": "transformers"}, "Did you mean 'engine'"),
        ({"label": "x"}, "names no engine"),
        (7, "a string or a mapping"),
    ],
)
def test_a_form_that_is_not_known_names_the_nearest(form: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_forms([form])  # type: ignore[list-item]


def test_a_quantization_of_another_engine_is_kept_to_fail_as_a_cell() -> None:
    (form,) = read_forms(["transformers:Q4_K_M"])
    assert form.quantization == "Q4_K_M"


def test_no_form_and_two_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="no form"):
        read_forms([])
    with pytest.raises(InputError, match="Two forms are called 'scripted'"):
        read_forms(["scripted", "scripted"])
    assert len(read_forms("scripted")) == 1
    assert isinstance(read_forms("scripted")[0], Form)
