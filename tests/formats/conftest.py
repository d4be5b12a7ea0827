"""The room's tests convert into a cache of their own, never the user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.catalog import ModelFiles, locate, resolve


@pytest.fixture(scope="session")
def tiny() -> ModelFiles:
    return locate(resolve("tiny-chat"))


@pytest.fixture(autouse=True)
def own_cache(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(cache_folder))
