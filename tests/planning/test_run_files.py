"""The run files for a 7B model: parameters fit the notebooks, steps fit the machines."""

from __future__ import annotations

import pytest

import workbench as wb
from workbench.evaluate.form import read_forms
from workbench.finetune.recipe import resolve_recipe
from workbench.paths import shipped
from workbench.runs.chain import _prepared, find_run_file, read_run_file

MACHINES = {"qwen2.5-7b-cuda": "24GB-cuda", "qwen2.5-7b-metal": "32GB-mac"}


@pytest.mark.parametrize("name", MACHINES)
def test_every_parameter_is_one_of_its_notebook(name: str) -> None:
    path = find_run_file(name)
    assert path == shipped("configs", "runs", f"{name}.yaml")
    plan = read_run_file(path)
    assert [step.name for step in plan.steps] == ["compare", "finetune", "export"]
    for step in plan.steps:
        prepared = _prepared(step, path, {}, done={})
        given = {key: one.value for key, one in prepared.given.items() if one.source != "default"}
        assert given == step.parameters  # nothing is dropped, renamed or of another type


@pytest.mark.parametrize(("name", "machine"), MACHINES.items())
def test_every_form_fits_the_machine(name: str, machine: str) -> None:
    plan = read_run_file(shipped("configs", "runs", f"{name}.yaml"))
    compare = plan.steps[0].parameters
    for form in read_forms(compare["forms"]):
        found = wb.plan(compare["model"], machine=machine, **form.load_arguments())
        assert found.fits, f"{form.label}: {found}"
        assert found.device == ("cuda" if "cuda" in name else "mps")
        assert found.gpu_layers == -1


@pytest.mark.parametrize(("name", "machine"), MACHINES.items())
def test_the_recipe_fits_the_machine(name: str, machine: str) -> None:
    step = read_run_file(shipped("configs", "runs", f"{name}.yaml")).steps[1].parameters
    recipe, _ = resolve_recipe(step["recipe"], {"model": step["model"]})
    found = wb.plan(
        step["model"],
        machine=machine,
        task="finetune",
        quantization=recipe.quantization,
        context=recipe.max_length,
    )
    assert found.fits
    assert found.training["method"] == recipe.method
