"""The chat in a real JupyterLab with Chromium and the scripted engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from chat_stub import picture
from jupyter_lab import Lab, Sheet, jupyter_lab
from watched_page import watched

pytestmark = pytest.mark.browser
LONG = " ".join(f"word{number}" for number in range(4000))
HOSTILE = """<script>window.ran = 1</script>
<img src="https://evil.invalid/a.png" onerror="window.ran = 2"> <b onclick="window.ran = 3">bold</b>

[click](javascript:window.ran=4) [data](data:text/html,<script>window.ran=5</script>)
[fine](https://example.com/?q=1) ![picture](https://evil.invalid/b.png)

user\u202egnp.exe | a | b
|---
```<script>window.ran = 6</script>
</pre></div><style>body { display: none }</style>
"""
NICE = """The prompt is read at once (*prefill*), then one token after the other (*decode*):

| phase | reads | bound by |
|:--|:--|--:|
| prefill | the weights once | compute |
| decode | the weights and the cache, for each token | memory |

```python
seconds = prompt / prefill_rate + answer / decode_rate
```
日本語でも同じです。**長い文脈**ほどキャッシュが大きくなります。
"""
SETUP = f"""
import time
import workbench as wb

HOSTILE = {HOSTILE!r}

def said(messages):
    asked = messages[-1].content
    if "slow" in asked:
        return " ".join(f"word{{number}}" for number in range(4000))
    if "hostile" in asked:
        return HOSTILE
    return f"You said **{{asked}}**."

model = wb.load("scripted", engine="scripted", script=said, tokens="words",
                tokens_per_second=30, context=20_000)
"""
SHOWN = """
import workbench as wb
from answers import script
model = wb.load("scripted", engine="scripted", context=4096,
                script=script, tokens="words", tokens_per_second=45)
"""
CHAT = "talk = wb.chat(model, sampling={'max_tokens': 5000})\ntalk"
ASK = "reply = talk.ask('slow please')\nprint('ended', 'by', reply.finish_reason)"
BUSY = """
import pathlib
while not pathlib.Path("go").exists():
    time.sleep(0.05)
print("went", "on")
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with jupyter_lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


class Room:
    """A notebook with a chat in it, and what a reader does there."""

    def __init__(self, sheet: Sheet, name: str) -> None:
        self.sheet, self.page, self.name = sheet, sheet.page, name
        self.chat = self.page.locator(".wb-chat")
        self.field = self.chat.get_by_role("textbox", name="Your turn")
        self.answers = self.chat.locator(".wb-assistant")

    def ask(self, text: str) -> None:
        """Type a question and press Enter."""
        self.field.click()
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")

    def wait(self, words: str) -> None:
        """Wait until words stand in the last answer."""
        self.answers.last.filter(has_text=words).wait_for()

    def idle(self) -> None:
        """Wait until no answer is in progress."""
        self.chat.get_by_role("button", name="Send (Enter)").wait_for()

    def anew(self) -> None:
        """Begin a new conversation."""
        self.idle()
        if self.chat.locator(".wb-turn").count():
            self.chat.get_by_role("button", name="New conversation").click()
            self.chat.locator(".wb-empty").wait_for()

    def text(self) -> str:
        """Return the last answer as it is drawn."""
        return self.answers.last.locator(".wb-body").inner_text()


@pytest.fixture(scope="module")
def opened(lab: Lab, chromium: Any) -> Iterator[Room]:
    context = chromium.new_context(viewport={"width": 1200, "height": 1000})
    page = watched(context)
    lab.write("talk.ipynb", [SETUP, CHAT, BUSY, ASK])
    sheet = lab.open(page, "talk.ipynb")
    sheet.run(0)
    sheet.run(1)
    room = Room(sheet, "talk.ipynb")
    room.chat.wait_for(timeout=60_000)
    yield room
    context.close()


@pytest.fixture
def room(opened: Room) -> Iterator[Room]:
    opened.anew()
    yield opened
    assert opened.page.said == []
    assert opened.page.asked == []


def sources(page: Any) -> list[str]:
    return page.evaluate(
        "() => window.jupyterapp.shell.currentWidget.content.widgets"
        ".map((cell) => cell.model.sharedModel.getSource())"
    )


def test_typing_sends_and_the_notebook_stays_as_it_is(room: Room) -> None:
    before = sources(room.page)
    room.field.click()
    room.page.keyboard.type("dd aa 00 x")
    room.page.keyboard.press("Shift+Enter")
    room.page.keyboard.type("second line")
    room.page.keyboard.press("Enter")
    room.wait("You said")
    room.idle()
    assert "dd aa 00 x\nsecond line" in room.chat.locator(".wb-user").first.inner_text()
    assert "TTFT" in room.answers.last.inner_text()
    assert sources(room.page) == before
    kernel = "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status"
    assert room.page.evaluate(kernel) == "idle"


def test_ctrl_s_in_the_chat_saves_the_notebook_with_the_transcript(lab: Lab, room: Room) -> None:
    room.ask("please keep this")
    room.wait("please keep this")
    room.idle()
    copy = room.page.locator("[data-chat]")
    copy.filter(has_text="please keep this").first.wait_for(state="attached")
    assert not copy.first.is_visible(), "the static copy is hidden while the view shows"
    room.field.click()
    room.page.keyboard.press("Control+s")
    room.page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    saved = lab.read(room.name)
    kept = [output["data"].get("text/html", "") for output in saved.cells[1].outputs]
    assert any("please keep this" in html for html in kept)
    assert "widgets" not in saved.metadata


def test_stop_in_the_middle_keeps_what_came_and_nothing_follows(room: Room) -> None:
    room.ask("slow please")
    room.wait("word10")
    room.chat.get_by_role("button", name="Stop (Esc)").click()
    room.idle()
    kept = room.text().split()
    assert 10 < len(kept) < 4000
    assert kept == LONG.split()[: len(kept)]
    assert "stopped" in room.answers.last.locator(".wb-figures").inner_text()
    room.page.wait_for_timeout(300)
    assert room.text().split() == kept


def test_escape_stops_beside_a_running_cell(lab: Lab, room: Room) -> None:
    room.sheet.run(2)
    room.page.locator(".jp-InputPrompt", has_text="[*]").wait_for()
    room.ask("slow please")
    room.wait("word10")
    room.page.keyboard.press("Escape")
    room.idle()
    assert len(room.text().split()) < 4000
    assert room.page.locator(".jp-InputPrompt", has_text="[*]").count() == 1
    (lab.folder / "go").touch()
    room.sheet.wait("went on")


def test_a_reload_in_the_middle_loses_nothing(room: Room) -> None:
    room.ask("slow please")
    room.wait("word10")
    before = room.text().split()
    room.sheet.reload()
    room.chat.wait_for(timeout=60_000)
    room.wait("word10")
    after = room.text().split()
    assert len(after) >= len(before)
    room.wait(f"word{len(after) + 10}")
    room.chat.get_by_role("button", name="Stop (Esc)").click()
    room.idle()
    assert room.text().split() == LONG.split()[: len(room.text().split())]
    assert room.chat.count() == 1


def test_an_edit_is_a_branch_that_can_be_switched(room: Room) -> None:
    room.ask("first words")
    room.wait("first words")
    room.idle()
    room.chat.get_by_role("button", name="Edit and ask again").click()
    field = room.chat.get_by_role("textbox", name="Edit this turn")
    field.fill("other words")
    field.press("Enter")
    room.wait("You said other words")
    room.idle()
    versions = room.chat.locator(".wb-user .wb-branches").inner_text().split(" / ")
    assert versions[0] == versions[1] != "1"
    room.chat.get_by_role("button", name="Earlier version").click()
    room.wait("You said first words")
    earlier = room.chat.locator(".wb-user .wb-branches").inner_text().split(" / ")
    assert earlier == [str(int(versions[1]) - 1), versions[1]]
    room.chat.get_by_role("button", name="Answer again").click()
    room.chat.locator(".wb-assistant", has_text="2 / 2").wait_for()
    room.idle()
    assert room.answers.count() == 1


def test_a_composition_is_not_sent_by_its_enter(room: Room) -> None:
    room.field.click()
    session = room.page.context.new_cdp_session(room.page)
    session.send(
        "Input.imeSetComposition", {"text": "こん", "selectionStart": 2, "selectionEnd": 2}
    )
    key = {"type": "rawKeyDown", "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229}
    session.send("Input.dispatchKeyEvent", key)
    session.send("Input.insertText", {"text": "今日は"})
    room.page.wait_for_timeout(200)
    assert room.chat.locator(".wb-turn").count() == 0
    room.page.keyboard.press("Enter")
    room.wait("You said 今日は.")


def test_hostile_words_run_nothing_and_ask_for_nothing(room: Room) -> None:
    room.ask("hostile <img src=x onerror='window.ran = 7'>")
    room.wait("body { display: none }")
    room.idle()
    picture(room.page, "hostile")
    assert room.page.evaluate("() => window.ran") is None
    assert room.page.asked == []
    body = room.answers.last.locator(".wb-body")
    assert "<script>window.ran = 1</script>" in body.inner_text()
    links = body.locator("a").evaluate_all("(all) => all.map((a) => [a.protocol, a.target, a.rel])")
    assert links
    for protocol, target, rel in links:
        assert protocol in ("https:", "http:")
        assert target == "_blank"
        assert {"noopener", "noreferrer"} <= set(rel.split())
    forbidden = body.locator("script, style, iframe, object, embed, [onclick], [onerror], [src]")
    assert forbidden.count() == 0
    assert "\u202e" not in body.inner_text()
    body.get_by_role("button", name="evil.invalid").click()
    room.page.wait_for_function("() => document.querySelector('.wb-body img')")
    room.page.wait_for_timeout(200)
    assert room.page.asked == ["https://evil.invalid/b.png"], "only after the click"
    room.page.asked.clear()
    assert room.page.evaluate("() => window.ran") is None


def test_dark_follows_the_theme_of_jupyterlab(room: Room) -> None:
    room.ask("in the dark")
    room.wait("in the dark")
    shade = "(node) => getComputedStyle(node).backgroundColor.match(/[0-9]+/g).map(Number)"
    assert sum(room.chat.evaluate(shade)[:3]) > 600
    theme = "(name) => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})"
    room.page.evaluate(theme, "JupyterLab Dark")
    room.page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
    room.page.wait_for_timeout(500)
    assert sum(room.chat.evaluate(shade)[:3]) < 200
    room.page.evaluate(theme, "JupyterLab Light")
    room.page.wait_for_selector("body[data-jp-theme-light=true]", state="attached")


def test_ask_in_a_cell_is_seen_and_stopped_from_the_view(room: Room) -> None:
    room.sheet.run(3)
    room.wait("word10")
    room.chat.get_by_role("button", name="Stop (Esc)").click()
    room.sheet.wait("ended by cancelled")
    room.idle()
    assert room.text().split() == LONG.split()[: len(room.text().split())]


def test_a_chat_that_opens_during_run_all_lives_beside_the_later_cells(lab: Lab, page: Any) -> None:
    lab.write("all.ipynb", [SETUP, CHAT, "talk.ask('hello')\nNone", BUSY.replace("go", "free")])
    sheet = lab.open(page, "all.ipynb")
    sheet.run_all()
    room = Room(sheet, "all.ipynb")
    room.answers.first.filter(has_text="You said hello").wait_for(timeout=60_000)
    room.ask("and now")
    room.wait("You said and now")
    assert page.locator(".jp-InputPrompt", has_text="[*]").count() == 1, "the last cell still runs"
    (lab.folder / "free").touch()
    sheet.wait("went on")
    assert page.said == []


def test_a_dead_kernel_leaves_the_transcript(lab: Lab, page: Any) -> None:
    (lab.folder / "answers.py").write_text(f"script = [{NICE!r}]", encoding="utf-8")
    lab.write("first_token.ipynb", [SHOWN.strip(), "wb.chat(model)"])
    sheet = lab.open(page, "first_token.ipynb")
    sheet.run_all()
    room = Room(sheet, "first_token.ipynb")
    room.chat.wait_for(timeout=60_000)
    room.ask("Why does the first token take longer than the others?")
    room.wait("長い文脈")
    room.idle()
    page.locator("[data-chat]", has_text="長い文脈").first.wait_for(state="attached")
    picture(page, "jupyterlab", clip="#jp-main-dock-panel")
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
    room.chat.locator(".wb-status", has_text="The kernel is gone").wait_for()
    assert "長い文脈" in room.text(), "what was said stays readable"
    assert room.field.is_disabled()
    sheet.save()
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    page.goto("about:blank")
    lab.open(page, "first_token.ipynb")
    copy = page.locator(".jp-OutputArea-output", has_text="長い文脈").first
    copy.wait_for()
    assert copy.is_visible()
    assert "**" not in copy.inner_text(), "it is laid out, not the Markdown as written"
    assert room.chat.count() == 0
    picture(page, "dead", clip=".jp-Notebook")
