"""Folders of receipts that no other test sees."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty folder of shipped receipts, and return that of this machine."""
    ships = home / "ships"
    ships.mkdir()
    monkeypatch.setattr(
        importlib.import_module("workbench.receipts.found"), "shipped_folder", lambda: ships
    )
    return home / "outputs" / "receipts"
