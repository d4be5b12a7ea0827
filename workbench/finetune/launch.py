"""Training on several devices: the `accelerate launch` command of a job, and running it."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

from workbench.errors import EngineError, MissingPackageError, UnsupportedError
from workbench.finetune.job import Job
from workbench.finetune.lora import TRAINED
from workbench.finetune.workspace import Workspace
from workbench.paths import PACKAGE, shipped

WORKER = "workbench.finetune.worker"
_PATIENCE = 15.0
"""Seconds that the processes get to end after an interrupt before they are killed."""


def launch_command(job: Job, folder: Path) -> list[str]:
    """Return the command that trains a job on ``recipe.processes`` devices.

    On CUDA it is ``accelerate launch`` with the file of ``recipe.parallel`` in
    ``configs/accelerate``; on a CPU, where accelerate wants MPI, PyTorch's own launcher.

    Args:
        job: What is trained.
        folder: The working folder, which the worker reads the recipe from.

    Raises:
        MissingPackageError: ZeRO was asked for and DeepSpeed is not installed.
        UnsupportedError: Anything but ddp was asked for without CUDA.
    """
    recipe = job.recipe
    if recipe.parallel.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise MissingPackageError(
            f"parallel = {recipe.parallel!r} needs DeepSpeed, which is not installed.",
            hint="pip install deepspeed, or take parallel='fsdp'.",
        )
    if job.device != "cuda" and recipe.parallel != "ddp":
        raise UnsupportedError(
            f"parallel = {recipe.parallel!r} needs CUDA GPUs; this machine trains on {job.device}.",
            hint="Take parallel='ddp', or processes=1.",
        )
    worker = ["-m", WORKER, str(folder)]
    if job.device != "cuda":
        runner = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        return [*runner, f"--nproc-per-node={recipe.processes}", *worker]
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(shipped("configs", "accelerate", f"{recipe.parallel}.yaml"))),
        *("--num_processes", str(recipe.processes)),
        *("--mixed_precision", {"fp32": "no"}.get(job.dtype, job.dtype)),
        *("--main_process_port", "0"),
        *worker,
    ]


def train_launched(job: Job, work: Workspace) -> None:
    """Train a job in processes of their own and wait for them; none outlives this call.

    Raises:
        EngineError: A process failed; the message carries the last lines it wrote.
    """
    log = work.folder / "launch.log"
    environment = dict(os.environ)
    paths = [str(PACKAGE.parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment["WORKBENCH_RESUME"] = "1" if work.resumed else ""
    environment["WORKBENCH_PARENT"] = str(os.getpid())
    environment["ACCELERATE_USE_CPU"] = str(job.device == "cpu").lower()
    environment.setdefault("OMP_NUM_THREADS", str(job.recipe.threads or 1))
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            launch_command(job, work.folder),
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait()
        finally:
            _end(process)
    if code != 0 or work.remembered(TRAINED) is None:
        raise EngineError(
            f"Training on {job.recipe.processes} processes ended with code {code}: {_tail(log)}",
            hint=f"The whole log is {log}.",
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the launcher's whole process group, politely first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            continue


def _tail(log: Path, lines: int = 12) -> str:
    text = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    errors = [line for line in text if "Error" in line]
    return " | ".join(errors[-3:] or text[-lines:]) or "it wrote nothing"
