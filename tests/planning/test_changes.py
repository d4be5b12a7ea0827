"""What would make a plan fit: each change that is named does so when it is made."""

from __future__ import annotations

import re
from typing import Any

import pytest

import workbench as wb
from workbench.planning import Plan

CASES: list[tuple[str, str, dict[str, Any]]] = [
    (
        "qwen2.5-32b-instruct",
        "24GB-cuda",
        {"quantization": "Q4_K_M", "context": 32768, "gpu_layers": -1},
    ),
    ("qwen2.5-14b-instruct", "12GB-cuda", {"quantization": "Q8_0", "gpu_layers": -1}),
    (
        "qwen2.5-7b-instruct",
        "24GB-cuda+8GB-ram",
        {"quantization": "none", "engine": "transformers", "batch": 16, "context": 8192},
    ),
    ("qwen3-30b-a3b", "12GB-cuda", {"quantization": "Q4_K_M", "experts_on_cpu": 1}),
    (
        "qwen2.5-32b-instruct",
        "24GB-cuda+16GB-ram",
        {"engine": "transformers", "quantization": "none"},
    ),
    ("kimi-k2-instruct", "24GB-cuda", {}),
    ("llama-3.3-70b-instruct", "16GB-mac", {}),
    ("qwen3-32b", "cpu-8GB", {}),
]


@pytest.mark.parametrize(("model", "machine", "given"), CASES, ids=str)
def test_every_change_makes_it_fit(model: str, machine: str, given: dict[str, Any]) -> None:
    found = wb.plan(model, machine=machine, **given)
    assert found.fits is False
    assert len(found.changes) == len(set(found.changes)) == 3
    checked = sum(_holds(said, model, machine, given) for said in found.changes)
    assert checked >= 2


def _holds(said: str, model: str, machine: str, given: dict[str, Any]) -> bool:
    """Make the change and check that it fits; False where the sentence names no setting."""
    changed = _changed(said, model, machine, given)
    if changed is None:
        return False
    assert changed.fits, said
    return True


def _changed(said: str, model: str, machine: str, given: dict[str, Any]) -> Plan | None:
    if match := re.match(r"(context|batch|gpu_layers|experts_on_cpu)=(\d+)", said):
        return wb.plan(model, machine=machine, **{**given, match[1]: int(match[2])})
    if match := re.match(r"cache_type='(\w+)'", said):
        return wb.plan(model, machine=machine, **{**given, "cache_type": match[1]})
    if match := re.match(r"(\S+) instead: ", said):
        return wb.plan(match[1], machine=machine)
    if match := re.match(r"(\d+) GB of RAM instead", said):
        base = machine.split("+")[0]
        larger = f"cpu-{match[1]}GB" if base.startswith("cpu") else f"{base}+{match[1]}GB-ram"
        return wb.plan(model, machine=larger)
    if match := re.match(r"(\d+) GB of unified memory", said):
        return wb.plan(model, machine=f"{match[1]}GB-mac")
    if match := re.match(r"(\d+) GPUs of (\d+) GB", said):
        return wb.plan(model, machine=f"{match[1]}x{match[2]}GB-cuda", **_kept(given))
    if match := re.match(r"a GPU of (\d+) GB", said):
        return wb.plan(model, machine=f"{match[1]}GB-cuda", **_kept(given))
    if match := re.match(r"(transformers|llama\.cpp) ([\w-]+)", said):
        return wb.plan(model, machine=machine, engine=match[1], quantization=_form(match[2]))
    return None


def _kept(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in ("engine", "quantization")}


def _form(name: str) -> str:
    return "none" if name in ("bf16", "fp16", "fp32") else name


def test_a_plan_that_fits_needs_no_change() -> None:
    assert wb.plan("qwen2.5-7b-instruct", machine="24GB-cuda").changes == ()
