"""One cache for the room's tests: the converter is fetched once, tiny-chat converted once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from workbench.catalog import ModelFiles, locate, resolve
from workbench.formats import ensure_gguf
from workbench.formats.converter import converter


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of its own that borrows the fetched converter from the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "llama.cpp").symlink_to(converter().folder.parent)
    return folder


@pytest.fixture(scope="session")
def tiny() -> ModelFiles:
    return locate(resolve("tiny-chat"))


@pytest.fixture(autouse=True)
def own_cache(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(cache_folder))


@pytest.fixture(scope="session")
def f16(cache_folder: Path, tiny: ModelFiles) -> Iterator[Path]:
    """tiny-chat as a GGUF of 16 bits, converted once for all tests."""
    before = os.environ.get("WORKBENCH_CACHE")
    os.environ["WORKBENCH_CACHE"] = str(cache_folder)
    try:
        yield ensure_gguf(tiny, "F16")
    finally:
        if before is None:
            del os.environ["WORKBENCH_CACHE"]
        else:
            os.environ["WORKBENCH_CACHE"] = before
