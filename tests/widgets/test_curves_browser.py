"""Live curves in JupyterLab: drawn while a cell runs, there after a reload, then a figure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_lab import Lab, Sheet, jupyter_lab

pytestmark = pytest.mark.browser
CELL = """
import math, pathlib, time
import workbench as wb
with wb.curves("Training", total=400, units={"memory": "MB"}) as live:
    for step in range(401):
        live.add(step, training_loss=0.3 + 2 * math.exp(-step / 90), memory=600 + step / 4)
        if step % 50 == 0:
            live.add(step, held_out_loss=0.4 + 2 * math.exp(-step / 95))
        time.sleep(0.005)
        while step == 200 and not pathlib.Path("GO").exists():
            time.sleep(0.02)
"""
WIDGET = "application/vnd.jupyter.widget-view+json"
PLOTLY = "application/vnd.plotly.v1+json"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with jupyter_lab(tmp_path_factory.mktemp("lab"), WORKBENCH_QUIET="") as running:
        yield running


def started(lab: Lab, page: Any, name: str) -> Sheet:
    """Run the cell and wait until it stands still in the middle, drawn."""
    lab.write(f"{name}.ipynb", [CELL.replace("GO", f"{name}.go"), "live"])
    sheet = lab.open(page, f"{name}.ipynb")
    sheet.run(0)
    wait_for_step(page, "step 200 of 400")
    return sheet


def wait_for_step(page: Any, words: str) -> None:
    page.wait_for_function(
        "words => document.querySelector('.wbv-body')?.getAttribute('aria-label')?.includes(words)",
        arg=words,
        timeout=60_000,
    )


def go(lab: Lab, name: str) -> None:
    Path(lab.folder / f"{name}.go").touch()


def test_curves_grow_in_a_busy_cell_and_end_as_a_figure(lab: Lab, page: Any) -> None:
    sheet = started(lab, page, "grow")
    words = page.locator(".wbv-body").get_attribute("aria-label")
    assert "training loss 0.517, held out loss 0.644, memory 650 MB" in words
    assert page.locator(".wbv-line").count() == 3
    body = page.locator(".wbv-body")
    body.focus()
    page.keyboard.press("Home")
    page.wait_for_function("() => document.querySelector('.wbv-said').textContent !== ''")
    assert "step 0: training loss 2.3" in page.locator(".wbv-said").text_content()
    page.get_by_role("button", name="Logarithmic scale of loss").click()
    drawn = page.locator(".wbv-line").first.get_attribute("d")
    go(lab, "grow")
    page.locator(".wb-curves").wait_for(state="detached", timeout=60_000)
    page.locator(".jp-OutputArea-output img, .js-plotly-plot").first.wait_for()
    assert drawn.startswith("M")
    sheet.wait_for_kernel()
    sheet.save()
    saved = lab.read("grow.ipynb")
    assert "widgets" not in saved.metadata
    kinds = [set(output.get("data", {})) for output in saved.cells[0].outputs]
    assert kinds == [{PLOTLY, "image/png", "text/plain"}]
    assert page.said == []
    assert page.asked == []


def test_curves_are_there_after_a_reload(lab: Lab, page: Any) -> None:
    sheet = started(lab, page, "reload")
    sheet.save()
    sheet.reload()  # the busy kernel tells a page of its widgets when the cell is over
    go(lab, "reload")
    wait_for_step(page, "done, step 400 of 400")
    assert page.locator(".wbv-line").count() == 3
    page.get_by_text("The page was reloaded meanwhile").wait_for()
    sheet.wait_for_kernel()
    sheet.run(1)
    page.locator(".jp-Cell").nth(1).locator("img, .js-plotly-plot").first.wait_for()
    sheet.save()
    saved = lab.read("reload.ipynb")
    assert "widgets" not in saved.metadata
    assert "image/png" in saved.cells[1].outputs[0].data
    assert page.said == []
    assert page.asked == []
