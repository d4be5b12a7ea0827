"""Training on several devices: the `accelerate launch` command of a job, and running it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

from workbench.errors import EngineError, MissingPackageError, UnsupportedError
from workbench.finetune.job import Job
from workbench.finetune.lora import TRAINED, read_log
from workbench.finetune.shown import Shown, training_shown
from workbench.finetune.workspace import Workspace
from workbench.paths import PACKAGE, shipped

WORKER = "workbench.finetune.worker"
_LOOK_SECONDS = 0.5
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


def train_launched(job: Job, work: Workspace, *, progress: bool = True) -> None:
    """Train a job in processes of their own and wait for them; none outlives this call.

    Args:
        job: What is trained.
        work: Its working folder; the log that the first process keeps there is what is shown.
        progress: Show a bar and the curves.

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
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # of these processes; the bar is drawn here
    environment.setdefault("OMP_NUM_THREADS", str(job.recipe.threads or 1))
    with (
        training_shown(job, quiet=None if progress else True) as shown,
        log.open("w", encoding="utf-8") as stream,
    ):
        process = subprocess.Popen(
            launch_command(job, work.folder),
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            code = _followed(process, work.log, shown)
        finally:
            _end(process)
    if code != 0 or work.remembered(TRAINED) is None:
        raise EngineError(
            f"Training on {job.recipe.processes} processes ended with code {code}: {_tail(log)}",
            hint=f"The whole log is {log}.",
        )


def _followed(process: subprocess.Popen[bytes], log: Path, shown: Shown) -> int:
    """Show each row of the log as it is written, until the process ends; return its code."""
    seen: set[tuple[int, bool]] = set()  # a resumed training writes its first rows again
    code: int | None = None
    while code is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(_LOOK_SECONDS)
        for row in read_log(log):
            key = (row["step"], "loss" in row)
            if key not in seen:
                seen.add(key)
                shown.row(row)
    return code


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
