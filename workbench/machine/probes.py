"""The ways to read memory that work on this machine, and the names of what they read."""

from __future__ import annotations

from workbench.machine.device_probes import Mlx, Nvml, TorchCuda, TorchMps
from workbench.machine.host_probes import HostPeak, HostSampled, TreeSampled
from workbench.machine.phase import (
    CHILD,
    DEVICE_SOURCES,
    HOST,
    NVML_DEVICE,
    NVML_TREE,
    TREE,
    PhaseMemory,
    Probe,
)

__all__ = [
    "CHILD",
    "DEVICE_SOURCES",
    "HOST",
    "NVML_DEVICE",
    "NVML_TREE",
    "TREE",
    "HostPeak",
    "HostSampled",
    "Mlx",
    "Nvml",
    "PhaseMemory",
    "Probe",
    "TorchCuda",
    "TorchMps",
    "TreeSampled",
    "probes",
]


def probes(*, children: bool, exact: bool) -> list[Probe]:
    """Return the probes that read something on this machine."""
    found: list[Probe] = [HostPeak() if exact and HostPeak.permitted() else HostSampled()]
    if children:
        found.append(TreeSampled())
    driver = Nvml.here()
    found += [TorchCuda(alone=driver is None), TorchMps(), Mlx()]
    return [*found, driver] if driver is not None else found
