"""The arena's front end in Chromium, with a real arena behind it; the guide's pictures are these.

``WORKBENCH_PICTURES=docs/images pytest tests/widgets/test_browser_arena.py``
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from arena_page import ArenaPage
from test_browser_chat_pictures import LEGIBLE

import workbench as wb
from workbench.widgets.arena import Arena

pytestmark = pytest.mark.browser
BASE = """**LoRA** adds two small matrices to each frozen weight.

- the base stays as it is
- only the rank-*r* update is trained

```python
W = W0 + (alpha / r) * B @ A
```
"""
TUNED = """**LoRA** adds two thin matrices to each frozen weight.

- the base model stays as it is
- only the rank-*r* update is learned, so optimizer states are small

| method | trained |
|:--|--:|
| full | 100 % |
| LoRA | 0.3 % |
"""
HOSTILE = """<script>window.ran = 1</script> <img src=x onerror="window.ran = 2">
[click](javascript:window.ran=3) ![picture](https://evil.invalid/b.png) user\u202egnp.exe
"""
QUESTION = "What is LoRA, and what does it train?"


def entrant(script: Any, label: str, **options: Any) -> dict[str, Any]:
    fixed = {"model": "scripted", "engine": "scripted", "tokens": "words"}
    return {**fixed, "script": script, "label": label, **options}


def pair(*, speeds: tuple[float, float] = (45, 60), **options: Any) -> Arena:
    one = entrant(BASE, "tiny-chat", tokens_per_second=speeds[0])
    two = entrant(TUNED, "tiny-chat + chemistry-lora", tokens_per_second=speeds[1])
    return wb.arena([one, two], title="Base against adapter", **options)


def ask(page: ArenaPage, text: str = QUESTION) -> None:
    page.page.get_by_role("textbox", name="Your turn").fill(text)
    page.page.keyboard.press("Enter")
    page.until(lambda: page.play.bout is not None, "the round")


def press(page: ArenaPage, name: str) -> None:
    page.page.get_by_role("button", name=name, exact=True).click()
    page.pump()
    page.drawn()


def keep(page: ArenaPage, name: str) -> None:
    """Check that everything fits and is legible, and keep a picture where a folder is named."""
    folder = os.environ.get("WORKBENCH_PICTURES")
    if folder:
        view = page.page.locator(".wb-arena")
        view.screenshot(path=str(Path(folder) / f"arena-{name}.png"))
    assert page.page.evaluate(LEGIBLE) == [], "WCAG AA asks for a contrast of 4.5"
    assert page.page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.page.said == []
    assert page.page.asked == []


def column(page: ArenaPage, place: int) -> Any:
    return page.page.locator(".wb-column").nth(place)


def test_answers_stream_side_by_side_are_compared_and_voted_on(page: Any) -> None:
    page.set_viewport_size({"width": 900, "height": 900})
    # slow enough for a busy machine to look while they answer
    arena = pair(speeds=(15, 20), prompts=["What is DoRA?", "What is QLoRA?"])
    shown = ArenaPage(page, arena)
    assert "tiny-chat + chemistry-lora" in shown.text()
    ask(shown)
    shown.until(
        lambda: all(c.inner_text().count("\n") > 4 for c in page.locator(".wb-column").all())
    )
    assert arena.busy
    keep(shown, "streaming")
    shown.idle()
    assert "rank-r update is trained" in column(shown, 0).inner_text()
    assert column(shown, 1).locator("table td").last.inner_text() == "0.3 %"
    assert "TTFT" in column(shown, 0).inner_text()
    rate = page.locator(".wb-measure-rate .wb-measure-row")
    assert rate.nth(1).locator(".wb-star").count() == 1
    assert rate.nth(0).locator(".wb-star").count() == 0
    boxes = [column(shown, place).bounding_box() for place in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    keep(shown, "answers")
    press(shown, "Differences")
    marked = [column(shown, place).locator(".wb-differs").all_inner_texts() for place in (0, 1)]
    assert (marked[0][0], marked[1][0]) == ("small", "thin")
    before = page.evaluate(
        "() => { const mark = document.querySelector('.wb-parting');"
        " return [mark.previousSibling.textContent, mark.nextSibling.textContent]; }"
    )
    assert before == ["**LoRA** adds two ", "small"]
    press(shown, "B is better")
    assert arena.votes[0].best == "tiny-chat + chemistry-lora"
    rates = page.locator(".wb-rate").all_inner_texts()
    assert "1 won" in rates[0]
    assert "100 % (21–100 %)" in rates[0]
    keep(shown, "differences")
    press(shown, "Differences")
    assert not page.locator(".wb-differing:visible").count()
    press(shown, "Tie")  # the last vote can be changed
    assert [vote.best for vote in arena.votes] == [None]
    assert page.get_by_role("button", name="Tie").get_attribute("aria-pressed") == "true"
    page.set_viewport_size({"width": 900, "height": 500})
    press(shown, "Next prompt (2 left)")
    shown.idle()
    assert page.locator(".wb-round").count() == 2
    assert "What is DoRA?" in shown.text()
    assert "Voted: tie" in page.locator(".wb-round").first.inner_text()
    # A new round is read from its beginning, however long it grows.
    tops = [page.locator(each).last.bounding_box()["y"] for each in (".wb-arena-log", ".wb-round")]
    assert 0 < tops[1] - tops[0] < 40
    page.set_viewport_size({"width": 900, "height": 900})
    page.emulate_media(color_scheme="dark")
    keep(shown, "dark")


def test_names_and_speeds_are_hidden_until_the_vote(page: Any) -> None:
    page.set_viewport_size({"width": 900, "height": 900})
    shown = ArenaPage(page, pair(blind=True, seed=5))
    ask(shown)
    shown.idle()
    log = page.locator(".wb-arena-log")
    for hidden in ("tiny-chat", "chemistry", "tokens/s", "TTFT"):
        assert hidden not in log.inner_html()
    assert "Model A" in log.inner_text()
    keep(shown, "blind")
    press(shown, "A is better")
    first = shown.play.rounds[0].entries[0].contestant.name
    assert first in column(shown, 0).inner_text()
    assert f"Voted: {first}" in log.inner_text()
    assert "tokens/s" in log.inner_text()
    assert "1 of them blind" in shown.text()
    keep(shown, "revealed")


def test_a_narrow_cell_puts_the_columns_below_one_another(page: Any) -> None:
    page.set_viewport_size({"width": 380, "height": 1000})
    shown = ArenaPage(page, pair())
    ask(shown)
    shown.idle()
    press(shown, "Both bad")
    boxes = [column(shown, place).bounding_box() for place in (0, 1)]
    assert boxes[0]["x"] == boxes[1]["x"]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
    keep(shown, "narrow")


def test_one_column_and_all_are_stopped_and_a_failure_stays_in_its_column(page: Any) -> None:
    page.set_viewport_size({"width": 1000, "height": 700})
    story = " ".join(f"word{number}" for number in range(3000))
    slow = {"tokens_per_second": 60, "context": 9000}
    broken = entrant([{"regex": "", "say": "Half of", "fail": "Out of memory."}], "broken")
    arena = wb.arena(
        [entrant(story, "one", **slow), broken, entrant(story, "two", **slow)],
        sampling={"max_tokens": 2900},
    )
    shown = ArenaPage(page, arena)
    ask(shown)
    shown.until(lambda: "word9" in column(shown, 0).inner_text())
    shown.until(lambda: "Out of memory." in column(shown, 1).inner_text())
    keep(shown, "three")
    column(shown, 0).get_by_role("button", name="Stop this answer").click()
    shown.until(lambda: "stopped" in column(shown, 0).locator("header").inner_text())
    partial = column(shown, 0).locator(".wb-body").inner_text()
    assert arena.busy
    shown.drawn()
    held = page.evaluate("() => document.activeElement.ariaLabel")
    assert held == "Your turn", "the button went away, not the keys"
    shown.until(lambda: "word19" in column(shown, 2).inner_text())
    page.get_by_role("textbox", name="Your turn").focus()
    page.get_by_role("button", name="Stop (Esc)").click()
    shown.idle()
    assert column(shown, 0).locator(".wb-body").inner_text() == partial
    assert [entry.state for entry in arena.rounds[0].entries] == ["stopped", "failed", "stopped"]
    assert arena.rounds[0].entries[0].text.strip() == partial
    # The one that failed is not voted on, and the differences are those from a chosen answer.
    assert page.locator("[data-vote]").all_inner_texts() == [
        "A is better", "C is better", "Tie", "Both bad",
    ]  # fmt: skip
    press(shown, "Differences")
    page.get_by_role("combobox", name="Compared with").select_option("2")
    shown.until(lambda: column(shown, 0).locator(".wb-parting").count() == 1)
    assert column(shown, 2).locator(".wb-differs").count() == 0


def test_a_page_that_is_drawn_anew_in_the_middle_goes_on(page: Any) -> None:
    story = " ".join(f"word{number}" for number in range(120))
    arena = wb.arena([entrant(story, "one", tokens_per_second=80), entrant("Short.", "two")])
    shown = ArenaPage(page, arena)
    ask(shown, "日本語で?")
    shown.until(lambda: "word9" in column(shown, 0).inner_text())
    again = ArenaPage(page, arena)
    assert "word9" in column(again, 0).inner_text()
    assert arena.busy
    again.idle()
    assert column(again, 0).locator(".wb-body").inner_text() == story
    assert "日本語で?" in again.text()
    page.set_viewport_size({"width": 900, "height": 420})
    page.locator(".wb-arena-log").last.evaluate("(node) => (node.scrollTop = 0)")
    again.drawn()
    boxes = [page.locator(each).last.bounding_box() for each in (".wb-arena-log", ".wb-vote")]
    ends = [box["y"] + box["height"] for box in boxes]
    assert page.locator(".wb-columns").last.bounding_box()["height"] > boxes[0]["height"]
    assert boxes[0]["y"] < boxes[1]["y"] < ends[1] <= ends[0] + 1, "long answers hide no vote"


def test_what_models_say_runs_nothing(page: Any) -> None:
    shown = ArenaPage(page, wb.arena([entrant(HOSTILE, "<b>one</b>"), entrant("Fine.", "two")]))
    ask(shown)
    shown.idle()
    press(shown, "Differences")
    assert page.evaluate("() => window.ran") is None
    assert (
        "<script>window.ran = 1</script>" in column(shown, 0).locator(".wb-differing").inner_text()
    )
    assert "\u202e" not in page.locator(".wb-arena").inner_text()
    press(shown, "Differences")
    assert page.evaluate("() => window.ran") is None
    assert page.locator(".wb-arena [href^='javascript']").count() == 0
    assert "<b>one</b>" in shown.text()
    assert page.asked == []
    assert page.said == []
