"""The rules of configs/quantization.yaml: their order, their tables, and what is refused."""

from __future__ import annotations

import pytest

from workbench.catalog.capabilities import engine_facts
from workbench.errors import InputError
from workbench.memory.weight_form import weight_form
from workbench.paths import shipped
from workbench.planning.policy import Rules, rules
from workbench.settings import read_yaml


def changed(**values: object) -> Rules:
    stored = read_yaml(shipped("configs", "quantization.yaml"))
    return Rules.of({**stored, **values})


def test_better_forms_come_first() -> None:
    order = ["none", "Q8_0", "Q6_K", "Q5_K_M", "awq", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K"]
    ranks = [rules().rank(name) for name in order]
    assert ranks == sorted(set(ranks))
    assert rules().rank("int8") == rules().rank("Q8_0")
    assert rules().rank("nf4") == rules().rank("Q4_K_M") == rules().rank(rules().floor)
    assert rules().rank("anything else") > rules().rank("IQ2_XXS")


def test_every_form_has_bytes_and_every_engine_form_a_place() -> None:
    for line in rules().quality:
        for name in line:
            weight_form(name)  # raises where nothing is known of it
    for facts in engine_facts().values():
        for name in facts.quantizations:
            if "gguf" in facts.formats or facts.name == "transformers":
                assert rules().rank(name) < len(rules().quality), name


@pytest.mark.parametrize(
    ("billions", "forms", "dtype"),
    [
        (70.6, ("nf4",), "fp16"),
        (32.0, ("nf4",), "fp16"),
        (31.9, ("int8",), "bf16"),
        (20.0, ("int8",), "bf16"),
        (14.8, ("gptq-8", "int8"), "fp16"),
        (7.6, ("gptq-8", "int8"), "fp16"),
        (6.9, ("none",), None),
        (0.0, ("none",), None),
    ],
)
def test_the_table_by_size(billions: float, forms: tuple[str, ...], dtype: str | None) -> None:
    rule = rules().size_rule(billions * 1e9)
    assert (rule.forms, rule.dtype) == (forms, dtype)


def test_offload_by_size() -> None:
    assert rules().size_offload(int(41e9)) == ("layers", "optimizer", "gradients")
    assert rules().size_offload(int(40e9)) == ("optimizer", "gradients")
    assert rules().size_offload(int(20.1e9)) == ("optimizer", "gradients")
    assert rules().size_offload(int(20e9)) == ()


def test_what_is_worth_its_bytes() -> None:
    assert rules().ceiling("cpu", 1e9) == 0
    assert rules().ceiling("cpu", 7.6e9) == rules().rank("Q8_0")
    assert rules().ceiling("cpu", 32e9) == rules().rank("Q4_K_M")
    assert rules().ceiling("cuda", 70e9) == 0


def test_a_wrong_file_is_refused() -> None:
    with pytest.raises(InputError, match="'Q4_K_N' has no place in the order of quality"):
        changed(floor="Q4_K_N")
    with pytest.raises(InputError, match="margin"):
        changed(margin=1.5)
    with pytest.raises(InputError, match="flor"):
        changed(flor="Q4_K_M")
