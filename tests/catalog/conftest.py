"""A hub of our own on this machine, and empty stores of the other programs."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point every store at an empty folder of the test."""
    folder = tmp_path / "stores"
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(folder / "huggingface"))
    monkeypatch.setenv("OLLAMA_MODELS", str(folder / "ollama"))
    monkeypatch.setenv("LM_STUDIO_MODELS", str(folder / "lm-studio"))
    monkeypatch.setenv("WORKBENCH_CACHE", str(folder / "own"))
    monkeypatch.delenv("WORKBENCH_OFFLINE", raising=False)
    return folder


@pytest.fixture
def online(stores: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the library ask a hub, with no login, no proxy and short pauses."""
    hub = importlib.import_module("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    transfer = importlib.import_module("workbench.catalog.transfer")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(stores / "token"))
    monkeypatch.setattr(transfer, "FIRST_PAUSE", 0.01)
    hub.close_session()
    yield
    hub.close_session()


@pytest.fixture
def fake_hub(online: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A running hub that HF_ENDPOINT names."""
    fake = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", fake.url)
    yield fake
    fake.close()
