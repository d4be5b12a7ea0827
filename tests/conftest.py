"""What tests share: a home of its own for each, a browser, and no silent skips in CI."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell that starts tests in the background has Ctrl-C ignored, in every child too.
signal.signal(signal.SIGINT, signal.default_int_handler)
MAY_SKIP = {"gpu", "vllm", "network"}
_skipped: list[str] = []


@pytest.fixture(scope="session", autouse=True)
def _home_between_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What shared fixtures leave at their end stays out of the checkout's outputs/ too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("between")))
        yield


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test its own WORKBENCH_HOME, so that outputs/ never leaks between tests."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("WORKBENCH_HOME", str(folder))
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser without a window; ``WORKBENCH_CHROMIUM`` names another program."""
    from playwright.sync_api import sync_playwright

    found = os.environ.get("WORKBENCH_CHROMIUM") or shutil.which("chromium")
    quiet = ("background-networking", "component-update", "sync", "gpu")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found,
            args=["--headless", "--no-sandbox", *(f"--disable-{name}" for name in quiet)],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache beside the user's, which borrows only the fetched converter from it."""
    from workbench.formats.converter import converter

    folder = tmp_path_factory.mktemp("cache")
    (folder / "llama.cpp").symlink_to(converter().folder.parent)
    return folder


@pytest.fixture(scope="session")
def f16(cache_folder: Path) -> Iterator[Path]:
    """The embedded model as a GGUF of 16 bits, converted once for all rooms, by today's code.

    From here on the session keeps what it converts in this cache.
    """
    from workbench.catalog import locate, resolve
    from workbench.formats import ensure_gguf

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(cache_folder))
        yield ensure_gguf(locate(resolve("tiny-chat")), "F16")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        markers = {marker.name for marker in item.iter_markers()}
        if not markers & MAY_SKIP:
            _skipped.append(item.nodeid)
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if os.environ.get("CI") and _skipped and exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("CI") and _skipped:
        terminalreporter.section("skipped in CI, which counts as failed")
        for node in _skipped:
            terminalreporter.line(node)
