"""Does each engine and quantization run here? Told by running it."""

from workbench.doctor.visit import doctor

__all__ = ["doctor"]
