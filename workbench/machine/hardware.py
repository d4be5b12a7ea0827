"""What this computer is: processor, memory, accelerators, limits, disks, versions."""

from __future__ import annotations

import functools
import importlib.util
import math
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import Field

from workbench.machine import accelerators, container, host
from workbench.machine.device import Bytes, Device, gib
from workbench.settings import Settings

_PACKAGES = (
    "llm-workbench",
    "torch",
    "transformers",
    "llama-cpp-python",
    "peft",
    "trl",
    "bitsandbytes",
    "accelerate",
    "mlx",
    "mlx-lm",
    "vllm",
    "papermill",
    "nbconvert",
)


class Machine(Settings):
    """What a computer is: this one, or one that was described.

    It holds no host or user name, no serial number, and no identifier of a device.
    """

    system: str = "unknown"
    """Operating system and architecture."""
    processor: str = "unknown"
    """CPU model name."""
    cores: int = Field(default=1, ge=1)
    """CPU cores this process may use: by affinity, and by a container's share of CPU time."""
    instructions: tuple[str, ...] = ()
    """Instruction sets that engines make use of: AVX2, AVX512, AMX, NEON ..."""
    ram_bytes: Bytes
    """Memory this process may use: physical, or the container's limit."""
    ram_available_bytes: Bytes | None = None
    """What could be had of it without swapping, when it was asked."""
    memory_limit_bytes: Bytes | None = None
    """A container's limit, or None."""
    cpu_quota: float | None = Field(default=None, gt=0)
    """A container's share of CPU time in cores, for example 1.5, or None."""
    swap_bytes: Bytes = 0
    """Swap in all."""
    swap_free_bytes: Bytes = 0
    """Swap that is free."""
    disk_free_bytes: dict[str, Bytes] = {}
    """Free bytes where ``outputs`` and the ``cache`` lie."""
    devices: tuple[Device, ...] = ()
    """Accelerators, in CUDA's numbering."""
    driver: str | None = None
    """Version of the NVIDIA driver."""
    cuda: str | None = None
    """Newest CUDA version that the driver supports, or the one PyTorch was built for."""
    python: str = "unknown"
    """Python version."""
    versions: dict[str, str] = {}
    """Versions of the packages that matter, installed ones only."""
    described: str | None = None
    """The text it was described by; None for this computer."""
    notes: tuple[str, ...] = ()
    """Where figures are from, and what was assumed."""

    def describe(self) -> dict[str, Any]:
        """Return plain data for receipts and files; ``Machine.of`` makes the machine of it."""
        return self.model_dump(mode="json")

    def refresh(self) -> Machine:
        """Return it with the free figures of now; a described machine stays as it is."""
        return self if self.described is not None else machine()

    def free(self) -> dict[str, int]:
        """Return the bytes that are free now: ``ram``, ``swap``, and each device (``cuda:0``)."""
        now = self.refresh()
        known: dict[str, int | None] = {"ram": now.ram_available_bytes, "swap": now.swap_free_bytes}
        for index, device in enumerate(now.devices):
            known[f"cuda:{index}" if device.kind == "cuda" else device.kind] = device.free_bytes
        return {name: value for name, value in known.items() if value is not None}

    def summary(self) -> str:
        """Return one line: processor, cores, memory, devices."""
        devices = ", ".join(device.name for device in self.devices) or "no GPU"
        return (
            f"{self.processor}, {self.cores} cores, {self.ram_bytes / 2**30:.0f} GiB RAM, {devices}"
        )

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values, as they are displayed."""
        rows = [("described as", self.described)] if self.described else []
        quota = f", {self.cpu_quota:g} of CPU time" if self.cpu_quota else ""
        rows += [
            ("system", self.system),
            ("processor", f"{self.processor}, {self.cores} cores{quota}"),
            ("instructions", ", ".join(self.instructions) or "unknown"),
            ("memory", self._memory()),
        ]
        if self.swap_bytes:
            rows.append(("swap", _of(self.swap_free_bytes, self.swap_bytes)))
        for index, device in enumerate(self.devices):
            place = f"cuda:{index}" if device.kind == "cuda" else device.kind
            rows.append((place, device.label))
        if not self.devices:
            rows.append(("accelerator", "none"))
        if self.driver or self.cuda:
            rows.append(("driver", f"NVIDIA {self.driver or '?'}, CUDA {self.cuda or '?'}"))
        rows += [
            (f"{name} disk", f"{gib(free)} GiB free") for name, free in self.disk_free_bytes.items()
        ]
        rows += [("python", self.python)] if self.described is None else []
        rows += sorted(self.versions.items())
        return rows + [("note", note) for note in self.notes]

    def _memory(self) -> str:
        limit = " (container limit)" if self.memory_limit_bytes == self.ram_bytes else ""
        return _of(self.ram_available_bytes, self.ram_bytes) + limit

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        import html

        rows = self.rows()
        plain = "\n".join(f"{name:18} {value}" for name, value in rows)
        cells = "".join(
            f'<tr><td><div align="left">{html.escape(name)}</div></td>'
            f'<td><div align="left">{html.escape(value)}</div></td></tr>'
            for name, value in rows
        )
        return {"text/plain": plain, "text/html": f"<table>{cells}</table>"}


def _of(free: int | None, total: int) -> str:
    return f"{gib(total)} GiB" if free is None else f"{gib(free)} free of {gib(total)} GiB"


def machine(description: str | Path | Mapping[str, Any] | Machine | None = None) -> Machine:
    """Return what this computer is, or a machine that is described.

    What does not change is asked once per process; free memory and disk are read at each call.

    Args:
        description: ``24GB-cuda``, ``16GB-mac``, ``cpu-32GB``, ``2x80GB-cuda``, a YAML or JSON
            file, or what ``describe()`` returned; default is this computer.

    Raises:
        InputError: The description cannot be read.
        NotFoundError: The file does not exist.
    """
    if description is not None:
        from workbench.machine.description import describe_machine

        return describe_machine(description)
    fixed = _fixed()
    limits = container.limits()
    available = host.available_memory()
    if limits.memory_free_bytes is not None:
        available = min(available, limits.memory_free_bytes)
    swap_total, swap_free = host.swap()
    found = accelerators.find()
    return fixed.model_copy(
        update={
            "ram_available_bytes": min(available, fixed.ram_bytes),
            "swap_bytes": swap_total,
            "swap_free_bytes": swap_free,
            "disk_free_bytes": host.disks(),
            "devices": found.devices,
            "driver": found.driver,
            "cuda": found.cuda,
            "notes": found.notes,
        }
    )


@functools.cache
def _fixed() -> Machine:
    """Return what does not change while this process runs."""
    limits = container.limits()
    physical = host.physical_memory()
    cores = host.allowed_cores()
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=host.processor(),
        cores=min(cores, max(1, math.ceil(limits.cpus))) if limits.cpus else cores,
        instructions=host.instruction_sets(),
        ram_bytes=min(physical, limits.memory_bytes or physical),
        memory_limit_bytes=limits.memory_bytes,
        cpu_quota=limits.cpus,
        python=platform.python_version(),
        versions=_versions(),
    )


def default_device(through: str = "torch") -> str:
    """Return ``cuda``, ``mps`` or ``cpu``: the best one here that a package can use.

    Args:
        through: The module that will use it. PyTorch, where installed, is asked whether it was
            built for the device and accepts the driver; of others that is not known here.
    """
    found = accelerators.find().devices
    if not found:
        return "cpu"
    if through != "torch" or importlib.util.find_spec("torch") is None:
        return found[0].kind
    import torch

    usable = torch.cuda if found[0].kind == "cuda" else torch.backends.mps
    return found[0].kind if usable.is_available() else "cpu"


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
