"""LLM Workbench: load, measure, compare, fine-tune and export open-weight language models.

The face that notebooks import as ``wb``: names only, each imported when first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_FACE = {
    "Message": "workbench.messages",
    "Sampling": "workbench.messages",
    "Reply": "workbench.messages",
    "WorkbenchError": "workbench.errors",
    "machine": "workbench.machine",
    "catalog": "workbench.planning",
    "plan": "workbench.planning",
    "estimate": "workbench.planning",
    "ledger": "workbench.memory.ledger",
    "engines": "workbench.engines",
    "load": "workbench.engines",
    "loaded": "workbench.engines",
    "compare": "workbench.compare",
    "chats": "workbench.chats",
    "replay": "workbench.chats.replay",
    "doctor": "workbench.doctor",
    "finetune": "workbench.widgets.curves",  # with live curves; the work is workbench.finetune's
    "curves": "workbench.widgets.curves",
    "merge": "workbench.export",
    "export_gguf": "workbench.export",
    "parity": "workbench.export",
    "profile": "workbench.widgets.curves",  # with a live curve, as finetune
    "receipts": "workbench.receipts",
    "run": "workbench.runs",
    "runs": "workbench.runs",
    "leave": "workbench.runs",
    "conclude": "workbench.runs",
    "supervised": "workbench.finetune",
    "number": "workbench.runs",
    "show": "workbench.figures",
    "chat": "workbench.widgets.chat",
    "arena": "workbench.widgets.arena",
}
"""Public name -> module that has it; a room may bear the same name as its word."""

__all__ = ["__version__", *sorted(_FACE)]  # noqa: PLE0604

if TYPE_CHECKING:
    from workbench.chats import chats as chats
    from workbench.chats.replay import replay as replay
    from workbench.compare import compare as compare
    from workbench.doctor import doctor as doctor
    from workbench.engines import engines as engines
    from workbench.engines.load import load as load
    from workbench.engines.load import loaded as loaded
    from workbench.errors import WorkbenchError as WorkbenchError
    from workbench.evaluate.profile import profile as profile
    from workbench.export import export_gguf as export_gguf
    from workbench.export.merge import merge as merge
    from workbench.export.parity import parity as parity
    from workbench.finetune import finetune as finetune
    from workbench.finetune import supervised as supervised
    from workbench.machine import machine as machine
    from workbench.memory.ledger import ledger as ledger
    from workbench.messages import Message as Message
    from workbench.messages import Reply as Reply
    from workbench.messages import Sampling as Sampling
    from workbench.planning import catalog as catalog
    from workbench.planning import estimate as estimate
    from workbench.planning import plan as plan
    from workbench.receipts import receipts as receipts
    from workbench.runs import conclude as conclude
    from workbench.runs import leave as leave
    from workbench.runs import number as number
    from workbench.runs import run as run
    from workbench.runs import runs as runs
    from workbench.widgets.arena import arena as arena
    from workbench.widgets.chat import chat as chat
    from workbench.widgets.curves import curves as curves


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    return getattr(importlib.import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Face(ModuleType):
    """Keeps a word of the face when a room of the same name is imported (``wb.machine``)."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FACE and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
