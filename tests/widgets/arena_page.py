"""An arena's front end on a page of its own; the real arena is behind it, without a kernel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from chat_stub import START, Stub

from workbench.errors import WorkbenchError
from workbench.widgets import assets
from workbench.widgets.arena import Arena
from workbench.widgets.arena_requests import handlers_of
from workbench.widgets.view import told


class ArenaPage(Stub):
    """Carries messages between a page and an arena, whose listener it is."""

    seen = True

    def __init__(self, page: Any, arena: Arena) -> None:
        self.page, self.number = page, 0
        self.play = arena._play
        self.play.listener = self
        self._lock = threading.Lock()
        self._waiting: list[dict[str, Any]] = []
        self._read = 0
        self._handlers = handlers_of(self.play)
        page.set_content("<!doctype html><title>arena</title>")
        page.evaluate(START, [assets.script("arena"), assets.style("arena")])
        self.pump()

    # As the arena's listener, in any thread

    def tell(self, kind: str, **values: Any) -> None:
        with self._lock:
            self._waiting.append({"type": kind, **values})

    def update(self) -> None:
        pass

    # As the page's kernel, in the test's own

    def pump(self) -> None:
        """Hand over what both sides said since."""
        said = self.page.evaluate("(from) => window.sent.slice(from)", self._read)
        self._read += len(said)
        for message in said:
            kind = message.pop("type")
            if kind == "hello":
                with self.play.lock:
                    self.tell("state", subshell=True, live=None, **self.play.state())
                continue
            try:
                self._handlers[kind](message)
            except WorkbenchError as error:
                self.tell("error", **told(error))
        with self._lock:
            waiting, self._waiting = self._waiting, []
        if waiting:
            self.feed(*waiting)

    def until(self, holds: Callable[[], bool], what: str = "it") -> None:
        """Hand messages over until something holds."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            self.pump()
            if holds():
                self.drawn()
                return
            time.sleep(0.02)
        raise AssertionError(f"{what} did not come about")

    def idle(self) -> None:
        """Wait for the end of the round."""
        self.until(lambda: self.play.bout is None, "the end of the round")
        self.pump()
        self.drawn()

    def text(self) -> str:
        """Return what is seen."""
        return str(self.page.locator(".wb-arena").inner_text())
