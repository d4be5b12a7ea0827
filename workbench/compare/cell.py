"""One cell of the matrix: runs in a child process, measures one form and returns plain data."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.engines import load
from workbench.engines.base import Power
from workbench.errors import WorkbenchError
from workbench.evaluate.agreement import compare_to_reference, write_reference
from workbench.evaluate.phases import (
    LARGE_ALLOCATION,
    SMALL_ALLOCATION,
    added_by_phase,
    bytes_in_memory,
    map_allocations_above,
    prepared,
)
from workbench.evaluate.speed import Speed, measure_decode, measure_prefill
from workbench.evaluate.tasks import Prompt, evaluate_tasks
from workbench.machine.meter import Meter
from workbench.messages import Sampling


def measure(
    cell: Mapping[str, Any], progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Load one form and measure memory, speed, agreement and accuracy, in this order.

    Args:
        cell: Plain data: ``model``, ``load`` (arguments of ``plan``), ``warm``, ``prompts``,
            ``sampling``, ``repetitions``, ``prompt_lengths``, ``output_tokens``,
            ``conversations``, and ``reference``: ``{"path", "write"}`` or None.
        progress: Takes the name of each step as it begins.

    Returns:
        Plain data: plan, weights, load_seconds, memory (by phase), added, memory_source, speed,
        agreement, agreement_note, tasks.
    """
    os.environ["WORKBENCH_QUIET"] = "1"  # bars are drawn by the parent
    tell = progress or (lambda step: None)
    with Meter() as meter:
        tell("preparing")
        map_allocations_above(SMALL_ALLOCATION)
        with meter.phase("warm-up"):
            planned = prepared(cell["model"], cell["load"], warm=cell.get("warm"))
        tell("loading")
        with meter.phase("load"):
            model = load(planned)
        map_allocations_above(LARGE_ALLOCATION)
        with model:
            found: dict[str, Any] = {"plan": model.plan.describe(), "weights": _weights(model)}
            with meter.phase("first reply"):
                model.ask("Hi.", max_tokens=2)
            tell("speed")
            found["speed"] = _speed(model, meter, cell)
            tell("agreement")
            found |= _agreement(model, meter, cell)
            tell("prompts")
            with meter.phase("tasks"):
                found["tasks"] = _tasks(model, cell)
    added, source = added_by_phase(meter.phases, device=model.plan.device)
    return {
        **found,
        "load_seconds": model.loading.seconds,
        "memory": meter.as_rows(),
        "added": added,
        "memory_source": source,
        "meter_cost_seconds": meter.cost_seconds,
    }


def _weights(model: Any) -> dict[str, int | None]:
    files = model.plan.files
    return {
        "disk_bytes": files.weight_bytes() if files is not None else None,
        "memory_bytes": bytes_in_memory(model),
    }


def _speed(model: Any, meter: Meter, cell: Mapping[str, Any]) -> dict[str, Any]:
    lengths = _fitting(cell["prompt_lengths"], cell["output_tokens"], model.plan.context)
    with meter.phase("prefill"):
        prefill = measure_prefill(
            model, prompt_lengths=lengths, repetitions=cell["repetitions"], progress=False
        )
    with meter.phase("decode"):
        decode = measure_decode(
            model,
            prompt_length=min(lengths),
            output_tokens=cell["output_tokens"],
            repetitions=cell["repetitions"],
            progress=False,
        )
    speed = Speed(prefill=prefill, decode=decode, output_tokens=cell["output_tokens"])
    return speed.as_dict()


def _fitting(lengths: Sequence[int], output: int, context: int) -> list[int]:
    """Return the prompt lengths that leave room for the output, cut where none does."""
    fitting = [length for length in lengths if length + output <= context]
    return fitting or [max(1, context - output)]


def _agreement(model: Any, meter: Meter, cell: Mapping[str, Any]) -> dict[str, Any]:
    """Leave the reference's log-probabilities, or compare with them; a failure is a note."""
    reference = cell.get("reference")
    if reference is None:
        return {"agreement": None, "agreement_note": "not asked for"}
    if Power.SCORE not in model.powers:
        note = f"the engine {model.plan.engine} gives no log-probabilities"
        return {"agreement": None, "agreement_note": note}
    path = Path(reference["path"])
    try:
        with meter.phase("agreement"):
            if reference["write"]:
                write_reference(model, cell["conversations"], path)
                return {"agreement": None, "agreement_note": None, "left_reference": True}
            if not path.is_file():
                return {"agreement": None, "agreement_note": "the reference left none"}
            found = compare_to_reference(model, path).as_dict()
            return {"agreement": found, "agreement_note": None}
    except WorkbenchError as error:
        return {"agreement": None, "agreement_note": str(error)}


def _tasks(model: Any, cell: Mapping[str, Any]) -> dict[str, Any] | None:
    prompts = [Prompt.of(values) for values in cell["prompts"]]
    if not prompts:
        return None
    sampling = Sampling.of(None, **cell["sampling"])
    return evaluate_tasks(model, prompts, sampling=sampling, progress=False).as_dict()
