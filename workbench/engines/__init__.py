"""Engines: one way to load, ask, stream, score and close over all back ends."""

from workbench.engines.load import load, loaded
from workbench.engines.model import Model
from workbench.engines.registry import engines

__all__ = ["Model", "engines", "load", "loaded"]
