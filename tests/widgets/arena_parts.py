"""Arenas of scripted models, for the tests of the arena."""

from __future__ import annotations

from typing import Any

import workbench as wb
from workbench.engines.model import Model
from workbench.widgets.arena import Arena


def scripted(script: Any, **options: Any) -> Model:
    return wb.load("scripted", engine="scripted", script=script, **options)


def described(script: Any, label: str, **options: Any) -> dict[str, Any]:
    return {"model": "scripted", "engine": "scripted", "script": script, "label": label, **options}


def pair(one: Any, two: Any, **options: Any) -> Arena:
    return wb.arena([described(one, "one"), described(two, "two")], **options)
