"""Merge an adapter, export to GGUF, and hold every form against the one before it."""

from workbench.export.gguf import Export, export_gguf
from workbench.export.merge import merge
from workbench.export.parity import Hop, Parity, parity

__all__ = ["Export", "Hop", "Parity", "export_gguf", "merge", "parity"]
