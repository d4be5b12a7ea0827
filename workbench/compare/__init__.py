"""Comparing forms of models: every cell of the matrix in its own child process, with a verdict."""

from workbench.compare.comparison import Comparison
from workbench.compare.form import FORMS, Form
from workbench.compare.matrix import CompareSettings, compare

__all__ = ["FORMS", "CompareSettings", "Comparison", "Form", "compare"]
