"""What a tree of processes holds: resident memory summed, and the GPU's where NVML tells it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable
from typing import Any

from workbench.figures import Table


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What processes held at one moment.

    Attributes:
        processes: How many there were; one that only waits to be collected is none.
        rss_bytes: Their resident memory, summed; pages that they share are counted in each.
        device_bytes: Their memory on the GPUs, None where NVML does not tell it.
    """

    processes: int
    rss_bytes: int
    device_bytes: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Freed:
    """What ending a server gave back.

    Attributes:
        before: What its processes held.
        after: What those of them held that were still there.
        seconds: From the request to the end of the last process.
        forced: Whether it had to be killed.
        left: Ids of processes that did not end.
    """

    before: Held
    after: Held
    seconds: float
    forced: bool = False
    left: tuple[int, ...] = ()

    def table(self) -> Table:
        """Return it as a table."""
        rows = []
        for name, held in (("before", self.before), ("after", self.after)):
            gpu = "not told" if held.device_bytes is None else f"{held.device_bytes / 1e6:,.0f}"
            row = {"moment": name, "processes": held.processes}
            rows.append({**row, "resident MB": f"{held.rss_bytes / 1e6:,.0f}", "GPU MB": gpu})
        ended = "killed" if self.forced else "ended by itself"
        return Table(rows, caption=f"The server {ended} in {self.seconds:.1f} s.")

    def __str__(self) -> str:
        return str(self.table())

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.table()._repr_mimebundle_()


def held_by(processes: Iterable[Any]) -> Held:
    """Return what these ``psutil.Process`` hold now."""
    import psutil

    alive, resident = [], 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                resident += process.memory_info().rss
                alive.append(process.pid)
    return Held(processes=len(alive), rss_bytes=resident, device_bytes=_on_devices(alive))


def _on_devices(pids: list[int]) -> int | None:
    """Return the bytes of these processes on all NVIDIA GPUs, None where it is not told."""
    from workbench.machine.nvml import library

    nvml, _ = library()
    if nvml is None:
        return None
    total, told = 0, False
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            for each in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                told = told or each.usedGpuMemory is not None
                if each.pid in pids and each.usedGpuMemory:  # a container may see other ids
                    total += int(each.usedGpuMemory)
    except nvml.NVMLError:
        return None
    return total if told else None
