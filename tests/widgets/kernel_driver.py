"""Speaks to a real kernel as a front end does: cells, widget messages, with a subshell or without.

Run as a script it prints latencies: ``python tests/widgets/kernel_driver.py``.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager

PATIENCE = 60.0


class Widget:
    """One widget in the kernel, with the messages that it sent."""

    def __init__(self, kernel: Kernel, comm_id: str, opened: dict[str, Any]) -> None:
        self.kernel, self.comm_id, self.opened = kernel, comm_id, opened
        self.updates: list[dict[str, Any]] = []
        self.said: list[tuple[float, dict[str, Any]]] = []
        self.closed = False

    def send(self, *, subshell: str | None = None, **content: Any) -> float:
        """Send one message and return when."""
        return self.kernel.comm(self.comm_id, content, subshell)

    def messages(self, kind: str | None = None, *, after: int = 0) -> list[dict[str, Any]]:
        return [m for _, m in self.said[after:] if kind in (None, m["type"])]

    def wait(
        self, kind: str, holds: Callable[[dict[str, Any]], bool] = bool, *, after: int = 0
    ) -> tuple[float, dict[str, Any]]:
        """Return the first message of a type, after so many, for which something holds."""

        def found() -> tuple[float, dict[str, Any]] | None:
            fits = (p for p in self.said[after:] if p[1]["type"] == kind and holds(p[1]))
            return next(fits, None)

        return self.kernel.until(found, f"a message {kind!r}")


class Kernel:
    """A kernel of its own, whose widgets are collected."""

    def __init__(self, home: Path) -> None:
        self.manager = KernelManager(kernel_name="python3")
        env = {**os.environ, "WORKBENCH_HOME": str(home), "OMP_NUM_THREADS": "1"}
        self.manager.start_kernel(env=env)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE)
        self.widgets: dict[str, Widget] = {}
        self.outputs: list[dict[str, Any]] = []
        self.replies: dict[str, dict[str, Any]] = {}
        self._changed = threading.Condition()
        self._over = False
        for channel in (self._read_iopub, self._read_shell):
            threading.Thread(target=channel, daemon=True).start()

    # What comes

    def _read_iopub(self) -> None:
        while not self._over:
            with contextlib.suppress(Exception):
                message = self.client.get_iopub_msg(timeout=0.2)
                with self._changed:
                    self._sort(message, time.perf_counter())
                    self._changed.notify_all()

    def _read_shell(self) -> None:
        while not self._over:
            with contextlib.suppress(Exception):
                message = self.client.get_shell_msg(timeout=0.2)
                with self._changed:
                    self.replies[message["parent_header"]["msg_id"]] = message["content"]
                    self._changed.notify_all()

    def _sort(self, message: dict[str, Any], now: float) -> None:
        kind, content = message["msg_type"], message["content"]
        if kind == "comm_open":
            found = Widget(self, content["comm_id"], content["data"]["state"])
            self.widgets[content["comm_id"]] = found
        elif kind == "comm_close":
            self.widgets[content["comm_id"]].closed = True
        elif kind == "comm_msg" and content["comm_id"] in self.widgets:
            widget, data = self.widgets[content["comm_id"]], content["data"]
            if data["method"] == "custom":
                widget.said.append((now, data["content"]))
            else:
                widget.updates.append(data)
        elif kind in ("stream", "error", "display_data", "update_display_data", "execute_result"):
            self.outputs.append({"kind": kind, **content})

    def until(self, found: Callable[[], Any], what: str) -> Any:
        """Wait until something is there and return it."""
        due = time.monotonic() + PATIENCE
        with self._changed:
            while not (value := found()):
                if not self._changed.wait(due - time.monotonic()):
                    raise TimeoutError(f"{what} did not come; outputs: {self.outputs[-3:]}")
            return value

    # What goes

    def begin(self, source: str) -> str:
        """Start a cell and return its id."""
        return self.client.execute(source, allow_stdin=True, stop_on_error=False)

    def done(self, cell: str) -> bool:
        return cell in self.replies

    def end(self, cell: str) -> dict[str, Any]:
        """Wait for a cell and return its reply."""
        return self.until(lambda: self.replies.get(cell), "the end of the cell")

    def run(self, source: str) -> dict[str, Any]:
        """Run a cell, which must not fail."""
        reply = self.end(self.begin(source))
        assert reply["status"] == "ok", "\n".join(reply.get("traceback", []))
        return reply

    def value(self, expression: str) -> str:
        """Return the repr of an expression in the kernel."""
        cell = self.client.execute(
            "", silent=True, user_expressions={"value": expression}, allow_stdin=True
        )
        found = self.end(cell)["user_expressions"]["value"]
        assert found["status"] == "ok", found
        return str(found["data"]["text/plain"])

    def shown(self, source: str, entry: str = "chat") -> Widget:
        """Run a cell and return the widget that it opened."""
        before = set(self.widgets)
        self.run(source)
        name = f"{entry.capitalize()}Widget"

        def opened() -> Widget | None:
            fresh = [each for comm_id, each in self.widgets.items() if comm_id not in before]
            return next((w for w in fresh if name in w.opened.get("_anywidget_id", "")), None)

        return self.until(opened, "the widget")

    def comm(self, comm_id: str, content: Any, subshell: str | None = None) -> float:
        session, data = self.client.session, {"method": "custom", "content": content}
        message = session.msg("comm_msg", {"comm_id": comm_id, "data": data})
        if subshell is not None:
            message["header"]["subshell_id"] = subshell
        now = time.perf_counter()
        self.client.shell_channel.send(message)
        return now

    def subshell(self) -> str:
        """Make a subshell and return its id."""
        message = self.client.session.msg("create_subshell_request", {})
        self.client.control_channel.send(message)
        while True:
            reply = self.client.get_control_msg(timeout=PATIENCE)
            if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                return str(reply["content"]["subshell_id"])

    def interrupt(self) -> None:
        self.manager.interrupt_kernel()

    def close(self) -> None:
        self._over = True
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@contextlib.contextmanager
def kernel(home: Path) -> Iterator[Kernel]:
    found = Kernel(home)
    try:
        yield found
    finally:
        found.close()


CHAT = """
import workbench as wb
story = " ".join(f"word{n}" for n in range(2000))
model = wb.load("scripted", engine="scripted", script=lambda messages: story, tokens="words",
                tokens_per_second=200, context=100_000)
chat = wb.chat(model, sampling={"max_tokens": 5000})
"""
BUSY = "import pathlib, time\nwhile not pathlib.Path({!r}).exists():\n    time.sleep(0.01)"


def latencies(home: Path) -> Iterator[tuple[str, float, float]]:
    """Yield route, seconds from Send to the first delta, seconds from Stop to the end."""
    with kernel(home) as found:
        found.run(CHAT)
        widget = found.shown("chat")
        beside = found.subshell()
        for route, subshell in (("no subshell", None), ("subshell", beside)):
            for state in ("idle", "busy"):
                if state == "busy" and subshell is None:
                    continue  # nothing gets through before the cell ends
                flag = home / f"{route}-{state}"
                cell = found.begin(BUSY.format(str(flag))) if state == "busy" else None
                widget.send(type="hello", subshell=subshell)
                after = len(widget.said)
                sent = widget.send(type="send", text="Go.", subshell=subshell)
                first, _ = widget.wait("delta", after=after)
                widget.wait("delta", lambda m, n=after: len(widget.messages("delta")) > n + 20)
                stopped = widget.send(type="stop", subshell=subshell)
                ended, _ = widget.wait("end", after=after)
                yield f"{route}, {state} kernel", first - sent, ended - stopped
                flag.touch()
                if cell is not None:
                    found.end(cell)


if __name__ == "__main__":
    import tempfile

    for route, send, stop in latencies(Path(tempfile.mkdtemp())):
        print(f"{route:28} send {send * 1000:6.0f} ms   stop {stop * 1000:6.0f} ms")
