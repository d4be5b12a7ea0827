"""Where a receipt was measured: machines told apart by processor, devices and memory."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

_GIB = 2**30
_SLACK = 0.03  # a kernel keeps a little more or less of the memory for itself


class Place(NamedTuple):
    """What tells two machines apart; it holds no host name.

    Attributes:
        processor: CPU model name.
        ram_gib: Memory in GiB.
        devices: Names of the accelerators, sorted, each once.
    """

    processor: str
    ram_gib: float
    devices: tuple[str, ...]

    def same(self, other: Place) -> bool:
        """Return whether both are one machine: memory may differ by 3 percent."""
        difference = abs(self.ram_gib - other.ram_gib)
        if difference > _SLACK * max(self.ram_gib, other.ram_gib):
            return False
        return (self.processor, self.devices) == (other.processor, other.devices)


def place_of(facts: Mapping[str, Any]) -> Place:
    """Return the place of a receipt's ``machine``; missing facts make one of their own."""
    ram, devices = facts.get("ram_bytes"), facts.get("devices")
    names = {
        str(device.get("name")) if isinstance(device, Mapping) else str(device)
        for device in (devices if isinstance(devices, list | tuple) else ())
    }
    return Place(
        processor=str(facts.get("processor", "")),
        ram_gib=ram / _GIB if isinstance(ram, int | float) else 0.0,
        devices=tuple(sorted(names)),
    )


@functools.cache
def this_place() -> Place:
    """Return this machine's place, asked once per process."""
    from workbench.machine import machine  # here: where nothing was measured it is not needed

    return place_of(machine().describe())
