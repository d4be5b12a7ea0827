"""What this computer is, or another one that is described, and a meter of memory by phase."""

from workbench.machine.description import describe_machine
from workbench.machine.device import Device
from workbench.machine.hardware import Machine, default_device, machine

__all__ = ["Device", "Machine", "default_device", "describe_machine", "machine"]
