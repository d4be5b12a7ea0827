"""What one phase did to the memory of one place, and the contract of a way to read memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

HOST = "host"
TREE = "host with children"
EXACT = "VmHWM"
SAMPLED = "sampled RSS"
CHILD = "VmHWM of the child, read at intervals"
TORCH_CUDA = "torch.cuda peak"
TORCH_CUDA_ALONE = "torch.cuda peak; no NVML, so what other libraries take is not seen"
NVML_TREE = "NVML process tree, sampled"
NVML_DEVICE = "NVML device-wide, sampled"
MPS = "MPS driver, sampled"
MLX = "MLX peak"
DEVICE_SOURCES = (TORCH_CUDA, TORCH_CUDA_ALONE, MLX, NVML_TREE, NVML_DEVICE, MPS)
"""Sources of accelerator figures, the most exact first."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PhaseMemory:
    """What one phase did to the memory of one place.

    Attributes:
        name: The phase: ``load``, ``prefill``, ``decode``, ``train step``, ``idle`` ...
        place: ``host``, ``host with children``, ``child 1234``, ``cuda:0`` ..., ``mps``, ``mlx``.
        source: Where the figure comes from: ``VmHWM`` and ``torch.cuda peak`` are exact peaks,
            the sampled ones can miss a short spike, ``device-wide`` counts other processes too.
        seconds: Length of the phase.
        start_bytes: In use when the phase began; import-time baggage is in here.
        peak_bytes: Most in use within the phase.
        end_bytes: In use when the phase ended.
        anonymous_bytes: Growth of the heap over the phase (RssAnon), or None where unknown.
        file_bytes: Growth of mapped files over the phase (RssFile), or None where unknown.
        reserved_bytes: Most that PyTorch's allocator held of the device, its free blocks included,
            or None elsewhere.
        ended: Whether a child process ended within the phase; its last reading is kept.
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
    reserved_bytes: int | None = None
    ended: bool = False

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

    def now(self) -> Iterable[tuple[str, int]]:
        """Return each place with the bytes in use there at this moment, for the timeline."""
        ...


class Sampled:
    """A reading that is sampled: subclasses give ``place``, ``source`` and ``_read``."""

    sampled = True
    place = HOST
    source = SAMPLED

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

    def now(self) -> list[tuple[str, int]]:
        """Return the reading of this moment, if there is one."""
        value = self._read()
        return [] if value is None else [(self.place, value)]

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
