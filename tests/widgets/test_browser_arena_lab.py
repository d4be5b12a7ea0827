"""The arena in a real JupyterLab: asked beside a running cell, saved, and read without a kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jupyter_lab import jupyter_lab
from watched_page import watched

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CELL = """
import workbench as wb

def one(label, script):
    return {"model": "scripted", "engine": "scripted", "label": label, "script": script,
            "tokens": "words", "tokens_per_second": 60}

arena = wb.arena([one("small", "It keeps **keys** and values."),
                  one("large", "It keeps keys and values of all *past* tokens.")])
arena
"""
BUSY = """
import pathlib, time
while not pathlib.Path("go").exists():
    time.sleep(0.05)
"""


def test_an_arena_is_used_saved_and_read_in_jupyterlab(
    chromium: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with jupyter_lab(tmp_path_factory.mktemp("lab")) as lab:
        context = chromium.new_context(viewport={"width": 1200, "height": 1000})
        page = watched(context)
        lab.write("talk.ipynb", [CELL, BUSY])
        sheet = lab.open(page, "talk.ipynb")
        sheet.run(0)
        view = page.locator(".wb-arena")
        view.wait_for(timeout=60_000)
        view.locator(".wb-empty", has_text="Ask something").wait_for()
        sheet.run(1)
        view.get_by_role("textbox", name="Your turn").click()
        page.keyboard.type("dd aa 00: what is a KV cache?")
        page.keyboard.press("Enter")
        vote = view.get_by_role("button", name="B is better")
        vote.wait_for()  # while a cell runs
        assert "It keeps keys and values." in view.locator(".wb-column").first.inner_text()
        vote.click()
        view.locator(".wb-rate", has_text="1 won").wait_for()
        Path(lab.folder, "go").touch()
        sheet.wait_for_kernel()
        copy = page.locator(".wb-transcript")
        assert copy.count() == 1
        assert not copy.is_visible()
        page.keyboard.press("Control+s")
        page.wait_for_function(
            "() => !window.jupyterapp.shell.currentWidget.context.model.dirty", timeout=15_000
        )
        saved = lab.read("talk.ipynb")
        assert [cell.source.strip() for cell in saved.cells] == [CELL.strip(), BUSY.strip()]
        assert "widgets" not in saved.metadata
        whole = "".join(
            "".join(out.get("data", {}).get("text/html", "")) for out in saved.cells[0].outputs
        )
        for words in ("dd aa 00", "<strong>keys</strong>", "past", "B · large", "Votes"):
            assert words in whole
        sheet.command("kernelmenu:shutdown")
        page.wait_for_timeout(500)
        page.goto(f"{lab.url}/lab/tree/talk.ipynb?reset&token=test")
        page.locator(".wb-transcript", has_text="what is a KV cache?").wait_for(timeout=60_000)
        assert page.said == []
        assert page.asked == []
        page.evaluate("() => window.jupyterapp.serviceManager.sessions.shutdownAll()")
        context.close()
