"""What this computer is, and a meter of memory by phase."""

from workbench.machine.hardware import Device, Machine, default_device, machine

__all__ = ["Device", "Machine", "default_device", "machine"]
