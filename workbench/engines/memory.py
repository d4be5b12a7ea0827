"""Give freed memory back to the system, and read how much a process holds and a load added."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from typing import Any

from workbench.catalog.capabilities import engine_facts
from workbench.machine import machine
from workbench.machine.device_probes import Mlx, Nvml, TorchMps

RAM = "RAM"
"""The resident set of this process."""

_LATER = {"transformers": ("transformers.modeling_utils", "transformers.generation")}
"""Modules that an engine's packages import when the first model is loaded."""


def give_back_memory() -> None:
    """Collect garbage and hand back what allocators kept: PyTorch's, MLX's, and glibc's."""
    gc.collect()
    torch: Any = sys.modules.get("torch")
    mlx: Any = sys.modules.get("mlx.core")
    cuda = getattr(torch, "cuda", None)
    if cuda is not None and cuda.is_initialized():
        cuda.empty_cache()
    if sys.platform == "darwin" and torch is not None and torch.backends.mps.is_available():
        torch.mps.empty_cache()
    if hasattr(mlx, "clear_cache"):
        mlx.clear_cache()
    _trim()


def _trim() -> None:
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def readings() -> dict[str, int]:
    """Return the bytes that this process holds now, by place; only what is in use is asked.

    ``RAM`` is the resident set. ``cuda:0 tensors`` and ``cuda:0 reserved`` are PyTorch's,
    ``cuda:0 process`` and ``cuda:0 device-wide`` the driver's, ``mps`` and ``mlx`` Metal's.
    """
    found = {RAM: resident_bytes()}
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        for index in range(cuda.device_count()):
            found[f"cuda:{index} tensors"] = int(cuda.memory_allocated(index))
            found[f"cuda:{index} reserved"] = int(cuda.memory_reserved(index))
    found.update(TorchMps().now())
    found.update(Mlx().now())
    driver = Nvml.here()
    for place, size in driver.now() if driver is not None else ():
        found[place if " " in place else f"{place} process"] = size
    return found


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """What a load added.

    Attributes:
        host_bytes: Growth of the resident memory of the process that holds the model.
        device_bytes: Growth on the accelerators, or None where there is none or it is not told.
        counter: How ``device_bytes`` was measured, "" without it.
        before: What the process held by place before, in bytes; empty where it is not told.
        after: What it held after loading.
    """

    host_bytes: int
    device_bytes: int | None = None
    counter: str = ""
    before: Mapping[str, int] = dataclasses.field(default_factory=dict)
    after: Mapping[str, int] = dataclasses.field(default_factory=dict)


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
        self._places = readings()
        self._before, self._counter = self._on_device()

    def end(self) -> Grown:
        """Return what was added since; what was freed on the way is given back first."""
        gc.collect(1)  # the oldest generation, with all imported libraries in it, takes 0.3 s
        _trim()
        after, counter = self._on_device()
        known = after is not None and self._before is not None and counter == self._counter
        places = readings()
        return Grown(
            host_bytes=places[RAM] - self._places[RAM],
            device_bytes=after - self._before if known else None,  # type: ignore[operator]
            counter=counter if known else "",
            before=self._places,
            after=places,
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
