"""A model behind a URL, as a user loads it."""

from __future__ import annotations

from pathlib import Path

import pytest

import workbench as wb
from workbench.catalog import Card
from workbench.engines.model import Model


def at_url(url: str, key: str, home: Path, card: Card | str = "tiny-chat") -> Model:
    """Return the model behind a URL; its key is read when it is loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(home))
        patch.setenv("TEST_LOCAL_KEY", key)
        return wb.load(card, url=url, key_variable="TEST_LOCAL_KEY")
