"""The NVIDIA management library: whether it is there, and the devices CUDA would show."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from typing import Any


def library() -> tuple[Any, str]:
    """Return the initialised ``pynvml`` module and "", or None and why there is none."""
    if importlib.util.find_spec("pynvml") is None:
        return None, "nvidia-ml-py is not installed"
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, f"the NVIDIA driver's library does not answer ({error})"
    return pynvml, ""


def visible_handles(nvml: Any) -> list[Any]:
    """Return the device handles in CUDA's numbering, as CUDA_VISIBLE_DEVICES leaves them.

    Whole numbers count in the order of the PCI bus; a machine with unlike devices should set
    ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` so that CUDA counts likewise. As in CUDA, what follows the
    first entry that names no device is ignored.
    """
    everything = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return everything
    chosen = []
    for entry in (part.strip() for part in given.split(",")):
        handle = _named(nvml, entry, everything)
        if handle is None:
            break
        chosen.append(handle)
    return chosen


def _named(nvml: Any, entry: str, everything: list[Any]) -> Any:
    if entry.isdigit():
        return everything[int(entry)] if int(entry) < len(everything) else None
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    for handle in everything:  # CUDA takes the beginning of an identifier too
        with contextlib.suppress(nvml.NVMLError):
            if str(nvml.nvmlDeviceGetUUID(handle)).startswith(entry):
                return handle
    with contextlib.suppress(nvml.NVMLError):
        return nvml.nvmlDeviceGetHandleByUUID(entry)
    return None
