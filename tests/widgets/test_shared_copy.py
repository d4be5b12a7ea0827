"""A chat as others get it: run in batch, converted, opened by Chromium without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbconvert import HTMLExporter

from workbench.runs import run

pytestmark = pytest.mark.browser

SAID = """<script>window.ran = 1</script> <img src=x onerror="window.ran = 2">

[press](javascript:window.ran=3) ![far](https://far.example/picture.png)

| language | word |
|---|---|
| 日本語 | **猫** |
"""
CELLS = [
    'said = ""  # what the model answers',
    "import workbench as wb\n"
    'model = wb.load("scripted", engine="scripted", script=said)\n'
    "chat = wb.chat(model)\n"
    "chat",
    'chat.ask("How do you say cat?")\nNone',
    'arena = wb.arena([(model, {"max_tokens": 500}), (model, {"max_tokens": 3})])\narena',
    'arena.ask("And side by side?")\nNone',
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The forms in which a run is shared, by name."""
    folder = tmp_path_factory.mktemp("shared")
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# A chat"), *map(nbformat.v4.new_code_cell, CELLS)]
    )
    book.cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(book, folder / "talk.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(folder))
        done = run(folder / "talk.ipynb", said=SAID, progress=False)
    forms = {"report": done.folder / "report.html"}
    executed = nbformat.read(done.folder / "notebook.ipynb", as_version=4)
    for name, sanitized in (("plain", False), ("sanitized", True)):
        page, _ = HTMLExporter(sanitize_html=sanitized).from_notebook_node(executed)
        forms[name] = folder / f"{name}.html"
        forms[name].write_text(page, encoding="utf-8")
    return forms


@pytest.mark.parametrize("form", ["report", "plain", "sanitized"])
def test_a_shared_chat_reads_without_network_and_runs_nothing(
    form: str, shared: dict[str, Path], page: Any
) -> None:
    page.goto(shared[form].as_uri(), wait_until="load")
    transcripts = page.locator(".wb-transcript")
    assert transcripts.count() == 2
    chat, arena = (transcripts.nth(place).inner_text() for place in range(2))
    assert transcripts.first.is_visible()
    for word in ("How do you say cat?", "<script>window.ran = 1</script>", "猫", "tokens/s"):
        assert word in chat
    assert "And side by side?" in arena
    assert "tbody" not in chat + arena  # nothing that a sanitiser showed as text
    assert page.evaluate("window.ran") is None
    assert page.locator(".wb-transcript img, .wb-transcript script").count() == 0
    assert page.locator('.wb-transcript a[href^="javascript"]').count() == 0
    far = [url for url in page.asked if "far.example" in url]
    assert far == []  # the picture that the model named is not fetched
    if form == "report":
        assert page.asked == []  # nbconvert's own pages want scripts from elsewhere
        assert page.said == []
