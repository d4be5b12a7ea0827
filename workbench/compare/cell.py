"""One cell of the matrix: runs in a child process, measures one form and returns plain data."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.catalog import Card
from workbench.engines import load
from workbench.engines.base import Power
from workbench.engines.memory import give_back_memory
from workbench.engines.registry import engine
from workbench.errors import WorkbenchError
from workbench.evaluate.agreement import compare_to_reference, write_reference
from workbench.evaluate.speed import Speed, measure_decode, measure_prefill
from workbench.evaluate.tasks import Prompt, evaluate_tasks
from workbench.machine.meter import Meter, PhaseMemory
from workbench.machine.probes import NVML_DEVICE, NVML_TREE
from workbench.messages import Message, Sampling
from workbench.planning import Plan, plan

PHASES = ("load", "prefill", "decode")
_DEVICE_SOURCES = ("torch.cuda peak", NVML_TREE, NVML_DEVICE, "MPS driver, sampled")
_M_MMAP_THRESHOLD = -3  # malloc.h
_SMALL_ALLOCATION, _LARGE_ALLOCATION = 1 << 16, 1 << 25


def model_of(plain: str | Mapping[str, Any]) -> str | Card:
    """Return a model as ``load`` takes it: a path, a card id, or a card that came as plain data."""
    return plain if isinstance(plain, str) else Card.of(plain, source="the card of this cell")


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
        _map_allocations_above(_SMALL_ALLOCATION)
        with meter.phase("warm-up"):
            planned = _prepared(cell)
        tell("loading")
        with meter.phase("load"):
            model = load(planned)
        _map_allocations_above(_LARGE_ALLOCATION)
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


def _map_allocations_above(size: int) -> None:
    """Set from which size on glibc maps an allocation by itself and unmaps it when it is freed.

    With a small size the warm-up leaves no free heap behind that would hide what loading takes;
    with the largest, temporary tensors are as fast as in any process that has run for a while.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(_M_MMAP_THRESHOLD, size)


def _prepared(cell: Mapping[str, Any]) -> Plan:
    """Return the plan with its files made, after loading and dropping a small model likewise.

    So imports, conversions and first-time caches count for nothing in what is measured.
    """
    planned = _with_files(cell["model"], cell["load"])
    if cell.get("warm") is not None:
        with contextlib.suppress(Exception):  # what is wrong shows when the model itself is loaded
            _load_and_drop(cell["warm"])
        give_back_memory()
    return planned


def _load_and_drop(warm: Mapping[str, Any]) -> None:
    planned = _with_files(warm["model"], warm["load"])
    session = engine(planned.engine).open(planned)
    try:
        for _ in session.stream([Message("user", "Hi.")], Sampling(max_tokens=2)):
            pass
    finally:
        session.close()


def _with_files(model: str | Mapping[str, Any], settings: Mapping[str, Any]) -> Plan:
    planned = plan(model_of(model), **settings)
    prepare = getattr(engine(planned.engine), "prepare", None)
    return prepare(planned) if prepare is not None else planned


def _weights(model: Any) -> dict[str, int | None]:
    files = model.plan.files
    return {
        "disk_bytes": files.weight_bytes() if files is not None else None,
        "memory_bytes": _bytes_in_memory(model),
    }


def _bytes_in_memory(model: Any) -> int | None:
    """Return the bytes of the loaded weights as the engine counts them, None where it does not."""
    raw: Any = getattr(model, "raw", None)
    if hasattr(raw, "get_memory_footprint"):  # transformers: parameters and buffers, shared once
        return int(raw.get_memory_footprint())
    if model.plan.engine == "llama.cpp":
        import llama_cpp

        return int(llama_cpp.llama_model_size(raw.model))
    return None


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


def added_by_phase(
    phases: Sequence[PhaseMemory], *, device: str
) -> tuple[dict[str, int], str | None]:
    """Return what each phase added where the model lies, in bytes, and where the figures are from.

    On an accelerator PyTorch's exact peak comes first (without the CUDA context), then the driver's
    figure of this process; devices are summed. Each phase counts its peak beyond its own start.
    """
    sources = ("VmHWM", "sampled RSS") if device == "cpu" else _DEVICE_SOURCES
    for source in sources:
        found = [phase for phase in phases if phase.source == source]
        if found:
            added = dict.fromkeys(PHASES, 0)
            for phase in found:
                if phase.name in added:
                    added[phase.name] += phase.delta_bytes
            return added, source
    return {}, None
