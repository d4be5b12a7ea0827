"""What this computer is: devices, memory, versions."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "llm-workbench",
    "torch",
    "transformers",
    "llama-cpp-python",
    "peft",
    "trl",
    "bitsandbytes",
    "accelerate",
    "papermill",
    "nbconvert",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator.

    Attributes:
        kind: ``cuda`` or ``mps``.
        name: What the driver calls it.
        total_bytes: Its memory, or None where unified and unknown.
    """

    kind: str
    name: str
    total_bytes: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What this computer is.

    Attributes:
        system: Operating system and architecture.
        processor: CPU model name.
        cores: CPU cores this process may use.
        ram_bytes: Memory this process may use: physical, or the container's limit.
        devices: Accelerators.
        python: Python version.
        versions: Versions of the packages that matter, installed ones only.
    """

    system: str
    processor: str
    cores: int
    ram_bytes: int
    devices: tuple[Device, ...]
    python: str
    versions: dict[str, str]

    def describe(self) -> dict[str, Any]:
        """Return plain data for receipts and run files; it holds no host or user name."""
        return dataclasses.asdict(self)

    def summary(self) -> str:
        """Return one line: processor, cores, memory, devices."""
        devices = ", ".join(device.name for device in self.devices) or "no GPU"
        return (
            f"{self.processor}, {self.cores} cores, {self.ram_bytes / 2**30:.0f} GiB RAM, {devices}"
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        import html

        rows = [("system", self.system), ("machine", self.summary()), ("python", self.python)]
        rows += sorted(self.versions.items())
        plain = "\n".join(f"{name:18} {value}" for name, value in rows)
        cells = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
            for name, value in rows
        )
        return {"text/plain": plain, "text/html": f"<table>{cells}</table>"}


@functools.cache
def machine() -> Machine:
    """Return what this computer is; asked once per process."""
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(),
        cores=_cores(),
        ram_bytes=_ram_bytes(),
        devices=_devices(),
        python=platform.python_version(),
        versions=_versions(),
    )


def default_device() -> str:
    """Return ``cuda``, ``mps`` or ``cpu``, the best one here."""
    found = machine().devices
    return found[0].kind if found else "cpu"


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _ram_bytes() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (
        Path("/sys/fs/cgroup/memory.max"),
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    ):
        if limit.is_file():
            text = limit.read_text(encoding="ascii").strip()
            if text.isdigit():
                total = min(total, int(text))
    return total


def _devices() -> tuple[Device, ...]:
    if importlib.util.find_spec("torch") is None:
        return ()
    import torch

    if torch.cuda.is_available():
        return tuple(
            Device(kind="cuda", name=p.name, total_bytes=p.total_memory)
            for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        )
    if torch.backends.mps.is_available():
        return (Device(kind="mps", name="Apple GPU", total_bytes=None),)
    return ()
