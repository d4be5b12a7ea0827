"""How much memory a model takes, before anything is loaded: inference, training, and why."""

from workbench.memory.estimate import Estimate, Part
from workbench.memory.inference import estimate
from workbench.memory.training import estimate_training

__all__ = ["Estimate", "Part", "estimate", "estimate_training"]
