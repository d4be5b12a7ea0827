"""Comparing forms of models: every cell of the matrix in its own child process, with a verdict."""

from workbench.compare.comparison import Comparison
from workbench.compare.matrix import CompareSettings, compare
from workbench.evaluate.form import FORMS, Form

__all__ = ["FORMS", "CompareSettings", "Comparison", "Form", "compare"]
