from __future__ import annotations

import sys
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "data"
sys.path.insert(0, str(DATA / "tiny-chat"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of the embedded data."""
    return DATA


@pytest.fixture(scope="session")
def shipped(data: Path) -> Path:
    """The folder of the embedded model."""
    return data / "tiny-chat"
