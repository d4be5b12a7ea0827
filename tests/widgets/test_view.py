"""What all widgets share: numbered messages, checked ones, the front end's own thread."""

from __future__ import annotations

import re
import threading
from typing import Any

import ipykernel
import pytest

from workbench.errors import EngineError
from workbench.widgets import assets
from workbench.widgets import view as views
from workbench.widgets.view import View


class Widget:
    """Stands for anywidget's."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.comm = Comm()
        self.model_id = "m"
        self.broken = False

    def on_msg(self, callback: Any) -> None:
        self.callback = callback

    def send(self, content: dict[str, Any]) -> None:
        if self.broken:
            raise OSError("gone")
        self.sent.append(content)

    def close(self) -> None:
        self.broken = True


class Comm:
    """A comm of ipykernel 7.4: it answers in the shell of the message it sent last."""

    def _reply_subshell_for(self, data: Any, default: Any) -> Any:
        return "the main shell"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> View:
    monkeypatch.setattr(views, "_widget_class", lambda entry: Widget)

    def fail(said: Any) -> None:
        raise EngineError("It broke.", hint="Mend it.")

    handlers = {"fail": fail, "crash": lambda said: 1 / 0}
    return View("chat", state=lambda: {"turns": []}, handlers=handlers)


def test_the_front_ends_choice_of_a_subshell_stands(made: View) -> None:
    assert made._widget.comm._reply_subshell_for({}, "a subshell") == "a subshell"


@pytest.mark.parametrize(
    ("version", "warned"), [((6, 31, 0), 0), ((7, 0, 1), 1), ((7, 3, 0), 1), ((7, 4, 0), 0)]
)
def test_a_kernel_that_loses_messages_is_named_once(
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
    version: tuple[int, int, int],
    warned: int,
) -> None:
    monkeypatch.setattr(views, "_widget_class", lambda entry: Widget)
    monkeypatch.setattr(views.notebook, "in_kernel", lambda: True)
    monkeypatch.setattr(ipykernel, "version_info", version)
    monkeypatch.setattr(ipykernel, "__version__", ".".join(map(str, version)))
    views._warn_of_lost_messages.cache_clear()
    for _ in range(2):
        View("chat", state=dict, handlers={})
    views._warn_of_lost_messages.cache_clear()
    assert len(recwarn) == warned
    if warned:
        assert "ipykernel>=7.4" in str(recwarn.pop().message)


def test_nothing_is_sent_before_hello_and_everything_is_numbered(made: View) -> None:
    made.send("delta")
    assert made._widget.sent == []
    made.receive({"type": "hello", "view": "v"})
    made.send("delta", id="1")
    assert made._widget.sent == [
        {"type": "state", "seq": 1, "view": "v", "turns": []},
        {"type": "delta", "seq": 2, "id": "1"},
    ]


def test_numbers_stay_in_order_when_threads_send(made: View) -> None:
    made.receive({"type": "hello"})
    threads = [
        threading.Thread(target=lambda: [made.send("delta") for _ in range(200)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [message["seq"] for message in made._widget.sent] == list(range(1, 802))


def test_what_a_handler_raises_becomes_one_error(made: View) -> None:
    made.receive({"type": "hello"})
    for content in ({"type": "fail"}, {"type": "crash"}, None, {"type": "helo"}):
        made.receive(content)
    told = [(m["message"], m["hint"]) for m in made._widget.sent[1:]]
    assert told[0] == ("It broke.", "Mend it.")
    assert told[1] == ("ZeroDivisionError: division by zero", None)
    assert told[2] == ("A message of the front end has no type.", None)
    assert told[3][1] == "Did you mean 'hello'?"


def test_a_front_end_that_is_gone_is_no_error(made: View) -> None:
    made.receive({"type": "hello"})
    made._widget.broken = True
    made.send("delta")
    made.close()
    made.close()
    made.send("delta")
    assert made.closed
    assert made.model_id == ""


def test_a_message_beside_the_main_thread_shows_that_there_are_subshells(made: View) -> None:
    made.receive({"type": "hello"})
    assert not made.subshell
    thread = threading.Thread(target=made.receive, args=({"type": "hello"},))
    thread.start()
    thread.join()
    assert made.subshell


@pytest.mark.parametrize("widget", ["chat", "curves"])
def test_a_widget_is_one_module_that_asks_for_nothing(widget: str) -> None:
    script = assets.script(widget)
    assert script.count("export default") == 1
    assert not re.search(r"^\s*import\b|import\(|https?://(?!www\.w3\.org/)", script, re.MULTILINE)
    assert not re.search(r"@import|url\(", assets.style(widget))
    assert "innerHTML" not in script
