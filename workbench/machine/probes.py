"""Ways to read memory: the kernel's own peak, samples, PyTorch's counters, the NVIDIA driver."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

HOST = "host"
TREE = "host with children"
NVML_TREE = "NVML process tree, sampled"
NVML_DEVICE = "NVML device-wide, sampled"
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets the peak resident set size to the present one


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PhaseMemory:
    """What one phase did to the memory of one place.

    Attributes:
        name: The phase: ``load``, ``prefill``, ``decode`` ...
        place: ``host``, ``host with children``, ``cuda:0`` ..., ``mps``.
        source: Where the figure comes from: ``VmHWM`` and ``torch.cuda peak`` are exact peaks,
            the sampled ones can miss a short spike, ``device-wide`` counts other processes too.
        seconds: Length of the phase.
        start_bytes: In use when the phase began; import-time baggage is in here.
        peak_bytes: Most in use within the phase.
        end_bytes: In use when the phase ended.
        anonymous_bytes: Growth of the heap over the phase (RssAnon), or None where unknown.
        file_bytes: Growth of mapped files over the phase (RssFile), or None where unknown.
    """

    name: str
    place: str
    source: str
    seconds: float
    start_bytes: int
    peak_bytes: int
    end_bytes: int
    anonymous_bytes: int | None = None
    file_bytes: int | None = None

    @property
    def delta_bytes(self) -> int:
        """What the phase needed beyond its start: peak - start."""
        return self.peak_bytes - self.start_bytes

    @property
    def kept_bytes(self) -> int:
        """What the phase left behind: end - start, below zero when it freed memory."""
        return self.end_bytes - self.start_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, with ``delta_bytes``."""
        return {**dataclasses.asdict(self), "delta_bytes": self.delta_bytes}


class Probe(Protocol):
    """One way to read memory; ``sampled`` says whether it needs the sampling thread."""

    sampled: bool

    def begin(self) -> None:
        """Note the state at the start of a phase."""

    def sample(self) -> None:
        """Take one reading within a phase."""

    def end(self, name: str, seconds: float) -> Iterator[PhaseMemory]:
        """Yield what the phase did."""
        ...


def probes(*, children: bool, exact: bool) -> list[Probe]:
    """Return the probes that read something on this machine."""
    host: Probe = HostPeak() if exact and HostPeak.permitted() else HostSampled()
    found: list[Probe] = [host]
    if children:
        found.append(TreeSampled())
    found += [TorchCuda(), TorchMps()]
    nvml = Nvml.here()
    return [*found, nvml] if nvml is not None else found


def _status() -> dict[str, int]:
    """Return the memory lines of /proc/self/status in bytes; empty where there is no such file."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines if line.startswith(("Vm", "Rss")))
    return {pair[0].rstrip(":"): int(pair[1]) * 1024 for pair in pairs if len(pair) == 3}


class HostPeak:
    """The kernel's own peak of this process (VmHWM), reset when a phase begins: misses nothing."""

    sampled = False

    @staticmethod
    def permitted() -> bool:
        """Return whether this kernel lets this process reset and read its peak."""
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
        except OSError:
            return False
        return "VmHWM" in _status()

    def begin(self) -> None:
        """Reset the peak and note the resident set."""
        _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
        self._start = _status()

    def sample(self) -> None:
        """Nothing to do: the kernel keeps the peak."""

    def end(self, name: str, seconds: float) -> Iterator[PhaseMemory]:
        """Yield the phase of this process."""
        end, start = _status(), self._start
        yield PhaseMemory(
            name=name,
            place=HOST,
            source="VmHWM",
            seconds=seconds,
            start_bytes=start["VmRSS"],
            peak_bytes=max(end["VmHWM"], end["VmRSS"], start["VmRSS"]),
            end_bytes=end["VmRSS"],
            anonymous_bytes=_growth(start, end, "RssAnon"),
            file_bytes=_growth(start, end, "RssFile"),
        )


def _growth(start: dict[str, int], end: dict[str, int], field: str) -> int | None:
    return end[field] - start[field] if field in start and field in end else None


class _Sampled:
    """A reading that is sampled: subclasses give ``place``, ``source`` and ``_read``."""

    sampled = True
    place = HOST
    source = "sampled RSS"

    def _read(self) -> int | None:
        """Return bytes in use, or None where there is nothing to read yet."""
        raise NotImplementedError

    def begin(self) -> None:
        """Note the first reading."""
        self._start = self._read()
        self._peak = self._start or 0

    def sample(self) -> None:
        """Keep the largest reading."""
        self._peak = max(self._peak, self._read() or 0)

    def end(self, name: str, seconds: float) -> Iterator[PhaseMemory]:
        """Yield the phase, unless there was nothing to read."""
        end = self._read()
        if end is None:
            return
        yield PhaseMemory(
            name=name,
            place=self.place,
            source=self.source,
            seconds=seconds,
            start_bytes=self._start or 0,
            peak_bytes=max(self._peak, end),
            end_bytes=end,
        )


class HostSampled(_Sampled):
    """The resident set of this process, sampled; a spike between two samples is missed."""

    def begin(self) -> None:
        """Note the first reading and the split into heap and files."""
        super().begin()
        self._split = _status()

    def _read(self) -> int:
        import psutil

        return int(psutil.Process().memory_info().rss)

    def end(self, name: str, seconds: float) -> Iterator[PhaseMemory]:
        """Yield the phase of this process."""
        end = _status()
        for phase in super().end(name, seconds):
            yield dataclasses.replace(
                phase,
                anonymous_bytes=_growth(self._split, end, "RssAnon"),
                file_bytes=_growth(self._split, end, "RssFile"),
            )


class TreeSampled(_Sampled):
    """The resident sets of this process and its children, summed; shared pages count each time."""

    place = TREE
    source = "sampled RSS of the process tree"

    def _read(self) -> int:
        import psutil

        total = 0
        for process in (own := psutil.Process(), *own.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total


class TorchCuda:
    """PyTorch's own peak of live tensors per CUDA device; exact, but blind to other libraries."""

    sampled = False

    def begin(self) -> None:
        """Reset the peaks; CUDA is never initialised by the meter."""
        self._start: dict[int, int] = {}
        cuda = _initialised_cuda()
        for index in range(cuda.device_count() if cuda else 0):
            cuda.reset_peak_memory_stats(index)
            self._start[index] = cuda.memory_allocated(index)

    def sample(self) -> None:
        """Nothing to do: PyTorch keeps the peak."""

    def end(self, name: str, seconds: float) -> Iterator[PhaseMemory]:
        """Yield one phase per device that holds tensors."""
        cuda = _initialised_cuda()
        for index in range(cuda.device_count() if cuda else 0):
            peak = cuda.max_memory_allocated(index)
            if peak:
                yield PhaseMemory(
                    name=name,
                    place=f"cuda:{index}",
                    source="torch.cuda peak",
                    seconds=seconds,
                    start_bytes=self._start.get(index, 0),
                    peak_bytes=peak,
                    end_bytes=cuda.memory_allocated(index),
                )


def _initialised_cuda() -> Any:
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return cuda if cuda is not None and cuda.is_initialized() else None


class TorchMps(_Sampled):
    """What PyTorch took from the Metal driver, pools included; Metal keeps no peak, so sampled."""

    place = "mps"
    source = "MPS driver, sampled"
    sampled = sys.platform == "darwin"

    def _read(self) -> int | None:
        torch = sys.modules.get("torch")
        backends = getattr(torch, "backends", None)
        if torch is None or backends is None or not backends.mps.is_available():
            return None
        return int(torch.mps.driver_allocated_memory())


class Nvml:
    """The driver's view of each NVIDIA device: this process tree if it tells, else the device."""

    sampled = True

    def __init__(self, library: Any) -> None:
        self._nvml = library
        self._devices = [
            library.nvmlDeviceGetHandleByIndex(index)
            for index in range(library.nvmlDeviceGetCount())
        ]
        self._ours: dict[int, bool] = {}

    @classmethod
    def here(cls) -> Nvml | None:
        """Return the probe, or None without nvidia-ml-py, a driver or a device."""
        import importlib.util

        if importlib.util.find_spec("pynvml") is None:
            return None
        import pynvml

        try:
            pynvml.nvmlInit()
            return cls(pynvml)
        except pynvml.NVMLError:
            return None

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
            mine = None
            with contextlib.suppress(self._nvml.NVMLError):
                for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(device):
                    if process.usedGpuMemory and self._is_ours(process.pid):
                        mine = (mine or 0) + int(process.usedGpuMemory)
            found.append((mine, int(self._nvml.nvmlDeviceGetMemoryInfo(device).used)))
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
