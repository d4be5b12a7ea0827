"""Accelerator memory: PyTorch's and MLX's counters, the Metal driver, the NVIDIA driver."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from workbench.machine import nvml
from workbench.machine.phase import (
    MLX,
    MPS,
    NVML_DEVICE,
    NVML_TREE,
    TORCH_CUDA,
    TORCH_CUDA_ALONE,
    PhaseMemory,
    Sampled,
)


class TorchCuda:
    """PyTorch's own peaks per CUDA device: live tensors, and what its allocator reserved.

    Exact, but blind to other libraries and to the CUDA context.

    Args:
        alone: There is no NVML on this machine to see the rest; the source text says so.
    """

    sampled = False

    def __init__(self, *, alone: bool = False) -> None:
        self.source = TORCH_CUDA_ALONE if alone else TORCH_CUDA
        self._start: dict[int, int] = {}

    def begin(self) -> None:
        """Reset the peaks; CUDA is never initialised by the meter."""
        self._start = {}
        cuda = _initialised_cuda()
        for index in range(cuda.device_count() if cuda else 0):
            cuda.reset_peak_memory_stats(index)
            self._start[index] = cuda.memory_allocated(index)

    def sample(self) -> None:
        """Nothing to do: PyTorch keeps the peak."""

    def now(self) -> list[tuple[str, int]]:
        """Return the live tensors of each device."""
        cuda = _initialised_cuda()
        count = cuda.device_count() if cuda else 0
        return [(f"cuda:{index} tensors", cuda.memory_allocated(index)) for index in range(count)]

    def end(self, name: str, seconds: float) -> Iterator[PhaseMemory]:
        """Yield one phase per device that holds tensors."""
        cuda = _initialised_cuda()
        for index in range(cuda.device_count() if cuda else 0):
            peak = cuda.max_memory_allocated(index)
            if peak:
                yield PhaseMemory(
                    name=name,
                    place=f"cuda:{index}",
                    source=self.source,
                    seconds=seconds,
                    start_bytes=self._start.get(index, 0),
                    peak_bytes=peak,
                    end_bytes=cuda.memory_allocated(index),
                    reserved_bytes=cuda.max_memory_reserved(index),
                )


def _initialised_cuda() -> Any:
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return cuda if cuda is not None and cuda.is_initialized() else None


class TorchMps(Sampled):
    """What PyTorch took from the Metal driver, pools included; Metal keeps no peak, so sampled."""

    place = "mps"
    source = MPS
    sampled = sys.platform == "darwin"

    def _read(self) -> int | None:
        torch = sys.modules.get("torch")
        backends = getattr(torch, "backends", None)
        if torch is None or backends is None or not backends.mps.is_available():
            return None
        return int(torch.mps.driver_allocated_memory())


class Mlx:
    """MLX's own peak of live arrays, exact; read only where MLX is already imported."""

    sampled = False
    _start = 0

    def begin(self) -> None:
        """Reset the peak."""
        mlx = _imported_mlx()
        self._start = int(mlx.get_active_memory()) if mlx else 0
        if mlx:
            mlx.reset_peak_memory()

    def sample(self) -> None:
        """Nothing to do: MLX keeps the peak."""

    def now(self) -> list[tuple[str, int]]:
        """Return the live arrays."""
        mlx = _imported_mlx()
        return [("mlx", int(mlx.get_active_memory()))] if mlx else []

    def end(self, name: str, seconds: float) -> Iterator[PhaseMemory]:
        """Yield the phase, if there were arrays."""
        mlx = _imported_mlx()
        peak = max(int(mlx.get_peak_memory()), self._start) if mlx else 0
        if peak:
            yield PhaseMemory(
                name=name,
                place="mlx",
                source=MLX,
                seconds=seconds,
                start_bytes=self._start,
                peak_bytes=peak,
                end_bytes=int(mlx.get_active_memory()),
            )


def _imported_mlx() -> Any:
    mlx = sys.modules.get("mlx.core")
    return mlx if hasattr(mlx, "get_peak_memory") else None


class Nvml:
    """The driver's view of each NVIDIA device: this process tree if it tells, else the device."""

    sampled = True

    def __init__(self, library: Any) -> None:
        self._nvml = library
        self._devices = nvml.visible_handles(library)
        self._ours: dict[int, bool] = {}

    @classmethod
    def here(cls) -> Nvml | None:
        """Return the probe, or None without nvidia-ml-py, a driver or a device."""
        library, _ = nvml.library()
        return cls(library) if library is not None else None

    def _is_ours(self, pid: int) -> bool:
        """Return whether a process is this one or a descendant; asked once a process."""
        import psutil

        if pid not in self._ours:
            own = os.getpid()
            try:
                chain = {pid, *(parent.pid for parent in psutil.Process(pid).parents())}
            except psutil.Error:  # of another namespace, or gone
                chain = {pid}
            self._ours[pid] = own in chain
        return self._ours[pid]

    def _read(self) -> list[tuple[int | None, int]]:
        """Return per device the bytes of this process tree (None when unseen) and of the device."""
        found = []
        for device in self._devices:
            mine, used = None, 0
            with contextlib.suppress(self._nvml.NVMLError):
                for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(device):
                    if process.usedGpuMemory and self._is_ours(process.pid):
                        mine = (mine or 0) + int(process.usedGpuMemory)
            with contextlib.suppress(self._nvml.NVMLError):  # a device without memory of its own
                used = int(self._nvml.nvmlDeviceGetMemoryInfo(device).used)
            found.append((mine, used))
        return found

    def begin(self) -> None:
        """Note both readings of each device."""
        self._ours.clear()
        self._start = self._read()
        self._peak = [(mine or 0, device) for mine, device in self._start]
        self._seen = [mine is not None for mine, _ in self._start]

    def sample(self) -> None:
        """Keep the largest of both readings."""
        for index, (mine, device) in enumerate(self._read()):
            seen_peak, device_peak = self._peak[index]
            self._peak[index] = (max(seen_peak, mine or 0), max(device_peak, device))
            self._seen[index] |= mine is not None

    def now(self) -> list[tuple[str, int]]:
        """Return each device's figure: of this process tree where seen, else of the device."""
        return [
            (f"cuda:{index}" if mine is not None else f"cuda:{index} device-wide", mine or device)
            for index, (mine, device) in enumerate(self._read())
        ]

    def end(self, name: str, seconds: float) -> Iterator[PhaseMemory]:
        """Yield a phase per device, by process where seen, else device-wide where it grew."""
        self.sample()
        for index, (mine, device) in enumerate(self._read()):
            seen = self._seen[index]
            start_mine, start_device = self._start[index]
            start = (start_mine or 0) if seen else start_device
            peak = self._peak[index][0 if seen else 1]
            if not seen and peak <= start:
                continue
            yield PhaseMemory(
                name=name,
                place=f"cuda:{index}",
                source=NVML_TREE if seen else NVML_DEVICE,
                seconds=seconds,
                start_bytes=start,
                peak_bytes=peak,
                end_bytes=(mine or 0) if seen else device,
            )
