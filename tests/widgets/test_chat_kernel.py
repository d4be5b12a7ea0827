"""The chat in a real kernel: what a front end sends and gets, beside a busy cell and without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from kernel_driver import BUSY, CHAT, Kernel, Widget, kernel
from nbclient import NotebookClient

from workbench.chats.markdown_stream import apply_patch

OTHER = """
other = wb.load("scripted", engine="scripted", script=lambda messages: story, tokens="words",
                tokens_per_second=200, context=100_000)
chat.use(other)
"""
WORDS = " ".join(f"word{n}" for n in range(2000))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    with kernel(tmp_path_factory.mktemp("home")) as running:
        running.run(CHAT)
        yield running


@pytest.fixture(scope="module")
def beside(found: Kernel) -> str:
    return found.subshell()


@pytest.fixture
def chat(found: Kernel) -> Iterator[Widget]:
    """A fresh chat that is shown and greeted."""
    widget = found.shown("chat = wb.chat(model, sampling={'max_tokens': 5000}); chat")
    widget.send(type="hello", view="one")
    widget.wait("state")
    yield widget
    found.run("chat.close()")


def streamed(widget: Widget, turn_id: str, *, after: int = 0) -> str:
    """Return the text that the deltas of an answer make."""
    blocks: list[Any] = []
    for delta in widget.messages("delta", after=after):
        if delta["id"] == turn_id:
            blocks = apply_patch(blocks, delta["patch"])
    return "".join(leaf for block in blocks for leaf in leaves(block))


def leaves(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
        return
    for child in node[2:]:
        yield from leaves(child)


def enough(widget: Widget, count: int = 10, *, after: int = 0) -> None:
    """Wait until so many deltas are there."""
    widget.wait("delta", lambda _: len(widget.messages("delta", after=after)) >= count, after=after)


@pytest.mark.parametrize("route", ["main shell", "subshell"])
def test_stop_ends_the_stream_and_keeps_the_partial_text(
    found: Kernel, beside: str, chat: Widget, route: str
) -> None:
    subshell = beside if route == "subshell" else None
    after = len(chat.said)
    chat.send(type="send", text="Tell me a story.", subshell=subshell)
    enough(chat, after=after)
    chat.send(type="stop", subshell=subshell)
    _, end = chat.wait("end", after=after)
    told = len(chat.said)
    partial = streamed(chat, end["id"], after=after)
    assert end["turn"]["text"].strip() == partial
    assert 0 < len(partial) < len(WORDS)
    assert WORDS.startswith(partial)
    meta = end["turn"]["meta"]
    assert meta["finish"] == "cancelled"
    assert meta["completion_tokens"] == len(partial.split())
    assert meta["ttft"] > 0
    assert meta["rate"] > 0
    # A round trip later no token came, and the whole state tells the same text.
    chat.send(type="hello", view="one", subshell=subshell)
    _, state = chat.wait("state", after=told)
    assert not chat.messages("delta", after=told)
    assert state["busy"] is None
    assert state["turns"][-1]["text"] == end["turn"]["text"]
    assert found.value("chat.messages[-1].content.strip()") == repr(partial)
    numbers = [message["seq"] for message in chat.messages()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_busy_cell_holds_up_neither_send_nor_stop(
    found: Kernel, beside: str, chat: Widget, tmp_path: Path
) -> None:
    flag = tmp_path / "done"
    cell = found.begin(BUSY.format(str(flag)))
    after = len(chat.said)
    chat.send(type="send", text="Go.", subshell=beside)
    enough(chat, after=after)
    chat.send(type="stop", subshell=beside)
    _, end = chat.wait("end", after=after)
    assert not found.done(cell)
    flag.touch()
    found.end(cell)
    assert end["turn"]["meta"]["finish"] == "cancelled"


def test_hello_in_the_middle_gives_everything_and_the_stream_goes_on(chat: Widget) -> None:
    after = len(chat.said)
    chat.send(type="send", text="Go.")
    enough(chat, after=after)
    middle = len(chat.said)
    chat.send(type="hello", view="two")  # a page that was loaded again
    _, state = chat.wait("state", after=middle)
    at = next(n for n, (_, m) in enumerate(chat.said) if m is state)
    enough(chat, after=at)
    chat.send(type="stop")
    _, end = chat.wait("end", after=at)
    assert state["view"] == "two"
    answer = state["turns"][-1]
    assert state["busy"] == answer["id"] == end["id"]
    assert answer["meta"] is None
    blocks = answer["blocks"]
    for delta in chat.messages("delta", after=at):
        blocks = apply_patch(blocks, delta["patch"])
    assert blocks == end["turn"]["blocks"]


def test_ctrl_c_in_ask_keeps_the_partial_text_and_the_chat(
    found: Kernel, beside: str, chat: Widget
) -> None:
    after = len(chat.said)
    cell = found.begin("chat.ask('Go.')")
    chat.wait("busy", lambda message: message["blocking"], after=after)
    enough(chat, after=after)
    found.interrupt()
    reply = found.end(cell)
    _, end = chat.wait("end", after=after)
    assert reply["status"] == "error"
    assert reply["ename"] == "KeyboardInterrupt"
    assert end["turn"]["meta"]["finish"] == "cancelled"
    assert end["turn"]["text"]
    assert found.value("chat.busy") == "False"
    assert found.value("chat.ask('Again.', max_tokens=3).text") == repr("word0 word1 word2")


def test_stop_reaches_a_cell_that_waits_where_there_are_subshells(
    found: Kernel, beside: str, chat: Widget
) -> None:
    after = len(chat.said)
    chat.send(type="hello", subshell=beside)
    chat.wait("state", after=after)  # else the cell may begin before it is heard
    cell = found.begin("reply = chat.ask('Go.')")
    _, busy = chat.wait("busy", lambda message: message["blocking"], after=after)
    assert busy["subshell"] is True
    enough(chat, after=after)
    chat.send(type="stop", subshell=beside)
    assert found.end(cell)["status"] == "ok"
    assert found.value("reply.finish_reason") == "'cancelled'"


def test_a_broken_message_gives_an_error_and_no_traceback(found: Kernel, chat: Widget) -> None:
    before = len(found.outputs)
    broken: list[Any] = [
        {},
        {"type": 7},
        {"type": "sned"},
        {"type": "send", "text": 5},
        {"type": "send", "text": "x", "images": [{"url": "/etc/passwd"}]},
        {"type": "edit", "id": "9' or 1", "text": "x"},
        {"type": "settings", "temperature": "hot"},
        {"type": "settings", "top_p": 7},
        {"type": "save", "kind": "exe"},
        {"type": "probabilities", "id": "77"},
    ]
    for content in broken:
        after = len(chat.said)
        found.comm(chat.comm_id, content)
        _, error = chat.wait("error", after=after)
        assert error["message"], content
    assert "Did you mean 'send'?" in [m["hint"] for m in chat.messages("error")]
    assert found.value("len(chat.dialogue)") == "0"
    assert [o for o in found.outputs[before:] if o["kind"] in ("stream", "error")] == []


def test_branches_settings_and_files_by_message(found: Kernel, chat: Widget) -> None:
    chat.send(type="settings", max_tokens=4, temperature=0.5)
    _, settings = chat.wait("settings")
    assert settings["settings"]["max_tokens"] == 4
    chat.send(type="send", text="One.")
    _, first = chat.wait("end")
    assert first["turn"]["text"].split() == WORDS.split()[:4]
    assert first["turn"]["meta"]["finish"] == "length"
    after = len(chat.said)
    chat.send(type="edit", id="1", text="Two.")
    chat.wait("end", after=after)
    _, path = chat.wait("path", after=after)
    asked = next(m["turn"] for m in chat.messages("turn", after=after) if m["turn"]["id"] == "3")
    assert path["ids"] == ["3", "4"]
    assert asked["siblings"] == ["1", "3"]
    after = len(chat.said)
    chat.send(type="show", id="1")
    _, path = chat.wait("path", after=after)
    assert path["ids"] == ["1", "2"]
    after = len(chat.said)
    chat.send(type="prompt", id="2")
    _, prompt = chat.wait("prompt", after=after)
    assert prompt["text"] == "user: One.\nassistant: "
    assert "".join(text for _, text in prompt["pieces"]) == prompt["text"]
    after = len(chat.said)
    chat.send(type="save", kind="md")
    _, saved = chat.wait("saved", after=after)
    assert "One." in Path(saved["path"]).read_text(encoding="utf-8")
    chat.send(type="reset")
    _, settings = chat.wait("settings", after=after)
    assert settings["settings"]["max_tokens"] == 5000


def test_a_chat_without_its_model_says_so_and_goes_on_with_another(
    found: Kernel, chat: Widget
) -> None:
    found.run(OTHER)
    chat.send(type="send", text="Go.")
    enough(chat)
    found.run("other.close()")  # in the middle of an answer
    _, end = chat.wait("end")
    assert end["turn"]["meta"]["finish"] == "cancelled"
    after = len(chat.said)
    chat.send(type="send", text="Again.")
    _, error = chat.wait("error", after=after)
    assert "is closed" in error["message"]
    assert "chat.use(model)" in error["hint"]
    after = len(chat.said)
    found.run("chat.use(model)")
    _, state = chat.wait("state", after=after)
    assert len(state["turns"]) == 2
    chat.send(type="send", text="Again.")
    enough(chat, after=after)
    chat.send(type="stop")
    chat.wait("end", after=after)


def test_two_chats_on_one_model_take_turns(found: Kernel, chat: Widget) -> None:
    second = found.shown("second = wb.chat(model, sampling={'max_tokens': 5}); second")
    second.send(type="hello")
    second.wait("state")
    chat.send(type="send", text="Go.")
    enough(chat)
    second.send(type="send", text="Go.")
    _, busy = second.wait("busy", lambda message: message["note"])
    assert "busy" in busy["note"]
    assert not second.messages("delta")
    chat.send(type="stop")
    _, end = second.wait("end")
    assert end["turn"]["text"].split() == WORDS.split()[:5]
    found.run("second.close()")
    found.until(lambda: second.closed, "the end of the second widget")


def test_nothing_of_the_talk_is_widget_state(found: Kernel, chat: Widget) -> None:
    chat.send(type="settings", max_tokens=9)
    chat.send(type="send", text="Secret question.")
    chat.wait("end")
    assert chat.updates == []
    assert "Secret question." not in json.dumps(chat.opened)
    assert not any("Secret" in json.dumps(widget.opened) for widget in found.widgets.values())


def test_the_transcript_stands_below_the_live_view_and_follows(found: Kernel, chat: Widget) -> None:
    mime = "application/vnd.jupyter.widget-view+json"
    views = [each for each in found.outputs if mime in each.get("data", {})]
    assert views[-1]["data"]["text/plain"] == ""
    assert "text/html" not in views[-1]["data"]
    before = len(found.outputs)
    chat.send(type="settings", max_tokens=2)
    chat.send(type="send", text="What is new?")
    chat.wait("end")

    def follows() -> dict[str, Any] | None:
        fits = (o for o in found.outputs[before:] if o["kind"] == "update_display_data")
        return next((o for o in fits if "What is new?" in o["data"]["text/html"]), None)

    html = found.until(follows, "the transcript")["data"]["text/html"]
    assert "word0 word1" in html
    assert chat.comm_id in html


def test_in_batch_the_cells_show_the_transcript_and_no_widget(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [
        "import workbench as wb\n"
        "model = wb.load('scripted', engine='scripted', script='日本 **yes**')",
        "chat = wb.chat(model)\nchat",
        "reply = chat.ask('Is it?')",
        "other = wb.chat(model)\nreply = other.ask('Unshown?')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in cells])
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    said = json.dumps([cell.outputs for cell in notebook.cells], ensure_ascii=False)
    assert "widget-view" not in said
    assert "widgets" not in notebook.metadata
    (shown,) = notebook.cells[1].outputs
    assert "Is it?" in shown["data"]["text/html"]
    assert "日本" in shown["data"]["text/html"]
    assert "**yes**" in shown["data"]["text/plain"]
    (unshown,) = notebook.cells[3].outputs
    assert "Unshown?" in unshown["data"]["text/html"]
