"""The room that a machine has: what a plan may use of each memory, the margin taken off."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import InputError, UnsupportedError
from workbench.machine import Machine, default_device
from workbench.machine import machine as this_machine
from workbench.memory import Estimate
from workbench.planning.planned import Need, gib
from workbench.planning.policy import GIB, Rules

DEVICES = ("cpu", "cuda", "mps")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What one kind of device of a machine, and its RAM, have room for.

    Attributes:
        machine: The machine.
        here: Whether it is this one: engines must be installed then.
        device: ``cpu``, ``cuda`` or ``mps``.
        device_bytes: Usable bytes of each device of that kind, the margin taken off.
        host_bytes: Usable bytes of RAM.
        unified: Whether device and RAM are one memory.
        margin: What was taken off each device, in words.
        kept: Share of the RAM that was taken off.
    """

    machine: Machine
    here: bool
    device: str
    device_bytes: tuple[int, ...]
    host_bytes: int
    unified: bool
    margin: str = ""
    kept: float = 0.0

    @property
    def name(self) -> str:
        """The machine in a word or two; "" for this one."""
        return "" if self.here else (self.machine.described or self.machine.summary())

    @property
    def capability(self) -> float | None:
        """Least CUDA compute capability of the devices, for example 8.6; None where unknown."""
        found = [d.compute_capability for d in self.machine.devices if d.kind == self.device]
        known = [major + minor / 10 for major, minor in filter(None, found)]
        return min(known) if known else None

    def on_cpu(self) -> Room:
        """Return the same machine without its accelerators."""
        return dataclasses.replace(self, device="cpu", device_bytes=(), unified=False)

    def needs(self, estimate: Estimate, devices: int) -> tuple[Need, ...]:
        """Return what an estimate needs of each memory; that of the devices is for them all."""
        found = []
        on_device, on_host = estimate.total("device"), estimate.total("host")
        if self.device == "cpu":
            on_device, on_host = 0, on_device + on_host
        if on_device:
            place = self.device if devices == 1 else f"{devices} x {self.device}"
            usable = sum(sorted(self.device_bytes, reverse=True)[:devices])
            found.append(Need(place=place, needed_bytes=on_device, usable_bytes=usable))
        if self.unified:
            on_host += on_device
        if on_host:
            found.append(Need(place="RAM", needed_bytes=on_host, usable_bytes=self.host_bytes))
        return tuple(found)

    def sentence(self) -> str:
        """Return in a sentence what may be used."""
        parts = []
        if self.device_bytes:
            count = len(self.device_bytes)
            each = f"{gib(min(self.device_bytes))} GiB"
            parts.append(f"{each} of {self.device}" if count == 1 else f"{count} times {each}")
        parts.append(f"{gib(self.host_bytes)} GiB of RAM")
        where = self.name or "here"
        left = self.margin if self.device_bytes else ""
        said = f"{left}{self.kept:.0%} of the RAM stay free"
        return f"Usable on {where}: {' and '.join(parts)} ({said})."


def room_of(
    machine: Machine | str | Path | Mapping[str, Any] | None,
    *,
    rules: Rules,
    device: str = "auto",
    margin: float | None = None,
) -> Room:
    """Return the room of a machine.

    Args:
        machine: A machine, its description (``24GB-cuda``), or None for this one, by what is free.
        rules: Where the margins are from.
        device: ``cuda``, ``mps``, ``cpu`` or ``auto`` for the best one there.
        margin: Share of each memory that stays free, 0 to below 1; None takes the rules'.

    Raises:
        InputError: The description cannot be read, or the margin is no share.
        UnsupportedError: The machine has no such device.
    """
    if margin is not None and not 0 <= margin < 1:
        raise InputError(
            f"margin={margin!r} is no share of the memory.", hint="Give 0 to below 1, such as 0.1."
        )
    found = this_machine() if machine is None else this_machine(machine)
    here = found.described is None
    kinds = list(dict.fromkeys(each.kind for each in found.devices))
    if device == "auto":
        chosen = default_device() if here else (kinds[0] if kinds else "cpu")
    else:
        chosen = device
    if chosen not in DEVICES:
        raise UnsupportedError(
            f"A model does not run on {device!r}.", hint=f"The devices are {', '.join(DEVICES)}."
        )
    if chosen != "cpu" and chosen not in kinds and not here:
        raise UnsupportedError(
            f"The machine {found.described or found.summary()} has no {chosen}.",
            hint=f"It has {', '.join(kinds) or 'only a CPU'}.",
        )
    share = rules.margin if margin is None else margin
    least = int(rules.least_margin * GIB) if margin is None else 0
    devices = [each for each in found.devices if each.kind == chosen]
    unified = any(each.unified or each.kind == "mps" for each in devices)
    limits = [_limit(each, found, here) for each in devices]
    ram = found.ram_available_bytes if here and found.ram_available_bytes else found.ram_bytes
    kept = rules.cpu_margin if margin is None else margin
    return Room(
        machine=found,
        here=here,
        device=chosen,
        device_bytes=tuple(max(0, size - max(int(size * share), least)) for size in limits),
        host_bytes=int(ram * (1 - kept)),
        unified=unified,
        margin=f"{share:.0%} of a GPU and " if devices else "",
        kept=kept,
    )


def _limit(device: Any, machine: Machine, here: bool) -> int:
    """Return the bytes of a device before the margin: what is free here, else what it may use."""
    usable = device.usable_bytes
    if usable is None:  # unified, and nobody said how much of it
        usable = int(machine.ram_bytes * 0.66)
    if here and device.free_bytes is not None:
        return int(min(usable, device.free_bytes))
    return int(usable)
