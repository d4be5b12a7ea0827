"""Accelerators: NVIDIA devices through NVML, else PyTorch; Apple's GPU through Metal."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from workbench.machine import host, nvml
from workbench.machine.device import Device

_GIB = 1 << 30
_SMALL_MAC = 32 * _GIB
WORKING_SET_RULE = (
    "two thirds of unified memory up to 32 GiB, three quarters above: Metal's "
    "recommendedMaxWorkingSetSize as llama.cpp prints it on Macs of 16, 32, 64 and 96 GiB "
    "(10922, 21845, 49152 and 73728 MiB); newer systems allow more"
)
_SIGNS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/nvmap", "/dev/kfd")
"""Device files of the NVIDIA driver, WSL, Jetson and ROCm: without one PyTorch finds nothing."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found, its driver, and where the figures are from."""

    devices: tuple[Device, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    notes: tuple[str, ...] = ()


def find() -> Found:
    """Return the accelerators of this computer, with what is free of each now.

    PyTorch is imported only where NVML is missing and a device could be here.
    """
    if sys.platform == "darwin":
        return _apple() if platform.machine() == "arm64" else Found()
    library, reason = nvml.library()
    if library is not None:
        return _through_nvml(library)
    if torch_may_have_devices():
        return _through_torch(reason)
    return Found()


def torch_may_have_devices() -> bool:
    """Return whether asking PyTorch is worth its import: it could use a device, and one is here."""
    if not any(Path(sign).exists() for sign in _SIGNS):
        return False
    if importlib.util.find_spec("torch") is None:
        return False
    with contextlib.suppress(metadata.PackageNotFoundError):
        return not metadata.version("torch").endswith("+cpu")
    return True


def _through_nvml(library: Any) -> Found:
    driver = cuda = None
    with contextlib.suppress(library.NVMLError):
        driver = _text(library.nvmlSystemGetDriverVersion())
        version = int(library.nvmlSystemGetCudaDriverVersion())
        cuda = f"{version // 1000}.{version % 1000 // 10}"
    devices = tuple(_device(library, handle) for handle in nvml.visible_handles(library))
    notes = ("device memory is read from NVML",) if devices else ()
    return Found(devices=devices, driver=driver, cuda=cuda, notes=notes)


def _device(library: Any, handle: Any) -> Device:
    capability = total = free = None
    with contextlib.suppress(library.NVMLError):
        major, minor = library.nvmlDeviceGetCudaComputeCapability(handle)
        capability = (int(major), int(minor))
    try:
        memory = library.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
        unified = False
    except library.NVMLError:  # Grace and Jetson boards share the host's memory
        total, free, unified = host.physical_memory(), host.available_memory(), True
    return Device(
        kind="cuda",
        name=_text(library.nvmlDeviceGetName(handle)),
        total_bytes=total,
        free_bytes=free,
        compute_capability=capability,
        unified=unified,
    )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _through_torch(reason: str) -> Found:
    import torch

    if not torch.cuda.is_available():
        return Found(notes=(f"{reason}, and PyTorch sees no device",))
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        devices.append(
            Device(
                kind="cuda",
                name=str(properties.name),
                total_bytes=int(total),
                free_bytes=int(free),
                compute_capability=(int(properties.major), int(properties.minor)),
                unified=bool(getattr(properties, "is_integrated", False)),
            )
        )
    note = f"{reason}: device memory is read through PyTorch"
    return Found(devices=tuple(devices), cuda=torch.version.cuda, notes=(note,))


def _apple() -> Found:
    total = int(host.sysctl("hw.memsize") or host.physical_memory())
    limit, source = working_set(total)
    chip = host.sysctl("machdep.cpu.brand_string") or "Apple"
    device = Device(
        kind="mps",
        name=f"{chip} GPU",
        total_bytes=total,
        free_bytes=min(limit, host.available_memory()),
        unified=True,
        working_set_bytes=limit,
    )
    return Found(devices=(device,), notes=(f"recommended working set: {source}",))


def working_set(total: int) -> tuple[int, str]:
    """Return how much of a Mac's memory its GPU should use at most, and where that is from."""
    asked = _from_metal()
    if asked is not None:
        return asked
    wired = host.sysctl("iogpu.wired_limit_mb")
    if wired and wired.isdigit() and int(wired):
        return int(wired) << 20, "the system's setting iogpu.wired_limit_mb"
    return by_rule(total), WORKING_SET_RULE


def by_rule(total: int) -> int:
    """Return the recommended working set of a Mac with ``total`` bytes, by ``WORKING_SET_RULE``."""
    return total * 2 // 3 if total <= _SMALL_MAC else total * 3 // 4


def _from_metal() -> tuple[int, str] | None:
    torch = sys.modules.get("torch")  # importing it takes seconds, MLX does not
    if torch is not None and torch.backends.mps.is_available():
        return int(torch.mps.recommended_max_memory()), "Metal, through PyTorch"
    if importlib.util.find_spec("mlx") is None:
        return None
    import mlx.core as mlx

    asked = getattr(mlx, "device_info", None) or mlx.metal.device_info
    found = asked().get("max_recommended_working_set_size")
    return (int(found), "Metal, through MLX") if found else None
