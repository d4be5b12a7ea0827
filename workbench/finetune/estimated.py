"""What the estimator says of a fine-tuning, beside the peak that was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.errors import WorkbenchError
from workbench.finetune.job import Job
from workbench.memory import Estimate
from workbench.memory.ledger import KEY, beside
from workbench.memory.training import estimate_training


def estimate_job(job: Job) -> Estimate | None:
    """Return the memory of a job, its rows as long as they are; None where it is not known."""
    recipe = job.recipe
    targets = recipe.target_modules
    longest = max((len(row.token_ids) for row in job.view.rows), default=recipe.max_length)
    try:
        return estimate_training(
            job.card,
            method=recipe.method,
            quantization=None if recipe.method == "lora" else recipe.quantization,
            rank=recipe.rank,
            targets=targets,
            dropout=recipe.dropout,
            batch=recipe.batch_size,
            sequence=longest,
            gradient_checkpointing=recipe.gradient_checkpointing,
            optimizer=recipe.optimizer.replace("_", "-"),
            dtype=job.dtype,
            devices=recipe.processes,
            sharding="none" if recipe.processes == 1 else recipe.parallel,
            accumulation=recipe.gradient_accumulation,
            device=job.device,
        )
    except WorkbenchError:
        return None


def beside_peak(job: Job, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the ledger reads of a training: the estimate beside the measured peak.

    Args:
        job: What was trained.
        rows: Its memory by phase, as the meter tells it.
    """
    estimate = estimate_job(job)
    measured, counter = _peak(rows, job.device)
    if estimate is None or measured is None:
        return {}
    found = beside(
        estimate,
        measured,
        moment="train",
        counter=counter,
        device=job.device,
        family=job.card.family,
    )
    if found is None:
        return {}
    total = {place: estimate.total(place) for place in ("device", "host")}
    return {KEY: {**found, "estimated_total_bytes": total}}


def _peak(rows: Sequence[Mapping[str, Any]], device: str) -> tuple[int | None, str]:
    """Return the peak of the training: PyTorch's own on a GPU, on a CPU above what was before."""
    train = [row for row in rows if row["name"] == "train"]
    if device == "cuda":
        own = [row for row in train if str(row["source"]).startswith("torch.cuda")]
        return (max(row["peak_bytes"] for row in own), "torch.cuda peak") if own else (None, "")
    place = "host" if device == "cpu" else "mps"
    peaks = [row for row in train if row["place"] == place]
    before = [row for row in rows if row["name"] == "load" and row["place"] == place]
    if not peaks or not before:
        return None, ""
    grown = max(row["peak_bytes"] for row in peaks) - min(row["start_bytes"] for row in before)
    return grown, f"growth of the process, {peaks[0]['source']}"
