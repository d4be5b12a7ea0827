"""Several devices: the command as accelerate reads it, and two processes on a CPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import EngineError, MissingPackageError, UnsupportedError
from workbench.finetune import Training, finetune
from workbench.finetune.data import data_file
from workbench.finetune.job import Job, prepare
from workbench.finetune.launch import launch_command
from workbench.finetune.workspace import workspace_folder
from workbench.paths import shipped

PARALLEL = ("ddp", "fsdp", "zero2", "zero3")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    out = tmp_path_factory.mktemp("launch") / "adapter"
    return prepare("tiny", {"processes": 4, "out": str(out)})


def on_cuda(job: Job, parallel: str) -> Job:
    recipe = job.recipe.changed(parallel=parallel)
    return dataclasses.replace(job, recipe=recipe, device="cuda", dtype="bf16")


@pytest.mark.parametrize("parallel", PARALLEL)
def test_the_file_is_what_accelerate_reads(parallel: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    path = shipped("configs", "accelerate", f"{parallel}.yaml")
    assert path.read_text(encoding="utf-8").startswith("# wb.finetune(")
    config = load_config_from_file(str(path))
    kinds = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert config.distributed_type.value == kinds[parallel]
    if parallel.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(parallel[-1])


@pytest.mark.parametrize("parallel", PARALLEL)
def test_accelerate_understands_the_command(
    job: Job, parallel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name == "deepspeed" or known(name)
    )
    command = launch_command(on_cuda(job, parallel), tmp_path)
    assert command[1:3] == ["-m", "accelerate.commands.launch"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(command[3:]))
    assert arguments.num_processes == 4
    assert arguments.mixed_precision == "bf16"
    assert arguments.module
    assert arguments.training_script == "workbench.finetune.worker"
    assert arguments.training_script_args == [str(tmp_path)]
    assert bool(arguments.use_fsdp) == (parallel == "fsdp")
    assert bool(arguments.use_deepspeed) == parallel.startswith("zero")
    if parallel == "fsdp":
        assert arguments.fsdp_state_dict_type == "FULL_STATE_DICT"
        assert int(arguments.fsdp_version) == 2
    if parallel == "zero3":
        assert arguments.zero3_init_flag in (True, "true")


@pytest.mark.skipif("__import__('importlib.util').util.find_spec('deepspeed')", reason="installed")
def test_zero_without_deepspeed_says_what_to_install(job: Job, tmp_path: Path) -> None:
    with pytest.raises(MissingPackageError, match="pip install deepspeed"):
        launch_command(on_cuda(job, "zero3"), tmp_path)


def test_cutting_the_model_needs_gpus(job: Job, tmp_path: Path) -> None:
    recipe = job.recipe.changed(parallel="fsdp")
    with pytest.raises(UnsupportedError, match="needs CUDA GPUs"):
        launch_command(dataclasses.replace(job, recipe=recipe, device="cpu"), tmp_path)


def losses(training: Training) -> list[float]:
    return [row["loss"] for row in training.curve if "loss" in row]


@pytest.mark.slow
def test_two_processes_of_four_rows_equal_one_of_eight(tmp_path: Path) -> None:
    rows = data_file("hashtags").read_text(encoding="utf-8").splitlines()[:32]
    dataset = tmp_path / "tags.jsonl"
    dataset.write_text("\n".join(rows) + "\n", encoding="utf-8")
    settings: dict[str, Any] = {
        "recipe": "tiny",
        "dataset": dataset,
        "max_steps": 4,
        "logging_steps": 1,
        "skill_items": 0,
        "threads": 1,
        "progress": False,
    }
    two = finetune(out=tmp_path / "two", processes=2, batch_size=4, **settings)
    one = finetune(out=tmp_path / "one", processes=1, batch_size=8, **settings)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert (two.adapter / "adapter_model.safetensors").is_file()
    assert not workspace_folder(two.adapter).exists()
    assert [row["tokens"] for row in two.curve if "tokens" in row][-1] == two.metrics["tokens"]


def test_a_failing_process_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: Job
) -> None:
    from workbench.finetune import launch, lora
    from workbench.finetune.workspace import workspace

    monkeypatch.setattr(
        launch, "launch_command", lambda job, folder: ["python3", "-c", "raise OSError('no GPU')"]
    )
    with workspace(tmp_path / "out", job.recipe, job.origins, resume=False) as work:
        with pytest.raises(EngineError, match=r"ended with code 1: .*OSError: no GPU"):
            launch.train_launched(job, work)
        assert work.remembered(lora.TRAINED) is None
