"""Memory of one form by phase, without what imports, conversions and first-time caches take."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.catalog import Card, resolve
from workbench.engines.memory import give_back_memory
from workbench.engines.registry import engine
from workbench.engines.tensors import bytes_of
from workbench.machine.meter import PhaseMemory
from workbench.machine.probes import DEVICE_SOURCES
from workbench.messages import Message, Sampling
from workbench.planning import Plan, plan

PHASES = ("load", "prefill", "decode")
EMBEDDED = "tiny-chat"
_SMALL = 200_000_000
SMALL_ALLOCATION, LARGE_ALLOCATION = 1 << 16, 1 << 25
_M_MMAP_THRESHOLD = -3  # malloc.h


def model_of(plain: str | Mapping[str, Any]) -> str | Card:
    """Return a model as ``load`` takes it: a path, a card id, or a card that came as plain data."""
    return plain if isinstance(plain, str) else Card.of(plain, source="the card of this cell")


def map_allocations_above(size: int) -> None:
    """Set from which size on glibc maps an allocation by itself and unmaps it when it is freed.

    With a small size the warm-up leaves no free heap behind that would hide what loading takes;
    with the largest, temporary tensors are as fast as in any process that has run for a while.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(_M_MMAP_THRESHOLD, size)


def prepared(
    model: str | Mapping[str, Any], settings: Mapping[str, Any], *, warm: Mapping[str, Any] | None
) -> Plan:
    """Return the plan with its files made, after loading and dropping a small model likewise.

    So imports, conversions and first-time caches count for nothing in what is measured.
    """
    planned = _with_files(model, settings)
    if warm is not None:
        with contextlib.suppress(Exception):  # what is wrong shows when the model itself is loaded
            _load_and_drop(warm)
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


def bytes_in_memory(model: Any) -> int | None:
    """Return the bytes of the loaded weights as the engine counts them, None where it does not."""
    raw: Any = getattr(model, "raw", None)
    if hasattr(raw, "get_memory_footprint"):  # transformers: parameters and buffers, shared once
        return int(raw.get_memory_footprint())
    if model.plan.engine == "llama.cpp":
        import llama_cpp

        return int(llama_cpp.llama_model_size(raw.model))
    return bytes_of(raw) or None  # MLX: the arrays of its parameters


def added_by_phase(
    phases: Sequence[PhaseMemory], *, device: str
) -> tuple[dict[str, int], str | None]:
    """Return what each phase added where the model lies, in bytes, and where the figures are from.

    On an accelerator PyTorch's exact peak comes first (without the CUDA context), then the driver's
    figure of this process; devices are summed. Each phase counts its peak beyond its own start.
    """
    sources = ("VmHWM", "sampled RSS") if device == "cpu" else DEVICE_SOURCES
    for source in sources:
        found = [phase for phase in phases if phase.source == source]
        if found:
            added = dict.fromkeys(PHASES, 0)
            for phase in found:
                if phase.name in added:
                    added[phase.name] += phase.delta_bytes
            return added, source
    return {}, None


def total_added(phases: Sequence[PhaseMemory], source: str | None) -> int | None:
    """Return the most that was in use beyond the state before loading, in bytes; devices summed.

    The warm-up is no part of it, nor what was in use when loading began.
    """
    found = [phase for phase in phases if phase.source == source and phase.name != "warm-up"]
    total = 0
    for place in {phase.place for phase in found}:
        there = [phase for phase in found if phase.place == place]
        start = next((phase.start_bytes for phase in there if phase.name == "load"), None)
        if start is None:
            return None
        total += max(phase.peak_bytes for phase in there) - start
    return total if found else None


def warm_up_for(planned: Plan | None, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what to load and drop before measuring: the model itself if small, else tiny-chat."""
    if planned is None or planned.files is None:
        return None
    if planned.files.weight_bytes() <= _SMALL:
        return {"model": planned.card.model_dump(mode="json"), "load": dict(settings)}
    small = {name: value for name, value in settings.items() if name != "adapter"}
    return {
        "model": resolve(EMBEDDED).model_dump(mode="json"),
        "load": {**small, "context": 512},
    }
