"""Give freed memory back to the system, and read how much a process holds and a load added."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import importlib
import importlib.util
import sys
from typing import Any

from workbench.catalog.capabilities import engine_facts
from workbench.machine import machine

_LATER = {"transformers": ("transformers.modeling_utils", "transformers.generation")}
"""Modules that an engine's packages import when the first model is loaded."""


def give_back_memory() -> None:
    """Collect garbage and hand what the allocator kept back to the system (glibc only)."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """What a load added.

    Attributes:
        host_bytes: Growth of the resident memory of the process that holds the model.
        device_bytes: Growth on the accelerators, or None where there is none or it is not told.
        counter: How ``device_bytes`` was measured, "" without it.
    """

    host_bytes: int
    device_bytes: int | None = None
    counter: str = ""


class Growth:
    """Measures what a load adds, from its making to ``end``; the engine's packages come before.

    Args:
        engine: Name of the engine; its packages are imported now, so that they are not counted.
        device: ``cpu``, ``cuda`` or ``mps``.
        quantization: What it needs besides is imported too.
    """

    def __init__(self, engine: str, device: str, *, quantization: str = "none") -> None:
        facts = engine_facts().get(engine)
        needed = (*facts.packages, *facts.modules_for(quantization)) if facts else ()
        for name in (*needed, *_LATER.get(engine, ())):
            if importlib.util.find_spec(name.split(".")[0]) is not None:
                importlib.import_module(name)
        self._engine, self._device = engine, device
        self._host = resident_bytes()
        self._before, self._counter = self._on_device()

    def end(self) -> Grown:
        """Return what was added since; what was freed on the way is given back first."""
        give_back_memory()
        after, counter = self._on_device()
        known = after is not None and self._before is not None and counter == self._counter
        return Grown(
            host_bytes=resident_bytes() - self._host,
            device_bytes=after - self._before if known else None,  # type: ignore[operator]
            counter=counter if known else "",
        )

    def _on_device(self) -> tuple[int | None, str]:
        if self._device == "cpu":
            return None, ""
        torch: Any = sys.modules.get("torch")
        if self._engine == "transformers" and torch is not None:
            if self._device == "mps":
                return int(torch.mps.current_allocated_memory()), "torch.mps allocated"
            devices = range(torch.cuda.device_count())
            return sum(
                torch.cuda.memory_allocated(each) for each in devices
            ), "torch.cuda allocated"
        found = [each for each in machine().devices if each.kind == self._device]
        if not found or any(each.free_bytes is None or each.unified for each in found):
            return None, ""
        used = sum((each.total_bytes or 0) - (each.free_bytes or 0) for each in found)
        return used, "device-wide"
