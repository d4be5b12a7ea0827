"""One request at a time for each model: wait for a turn, cancel the one that runs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from workbench.errors import EngineError

WAIT_SECONDS = 600.0
_AGAIN_SECONDS = 0.1


class Turn:
    """The right to use the model until the turn ends.

    Attributes:
        thread: Who holds it.
        cancelled: Whether somebody wants it to end between two tokens.
        inner: The session's own generator while one runs.
    """

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.cancelled = False
        self.inner: Any = None


class Turns:
    """Gives out one turn at a time.

    Another thread waits for the turn to end. The thread that holds it would wait for itself, so it
    gets an error: a stream that it left unread is still open.
    """

    def __init__(self, label: str, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self._label = label
        self._wait_seconds = wait_seconds
        self._free = threading.Condition()
        self._active: Turn | None = None

    @contextlib.contextmanager
    def taken(self, *, cancelling: bool = False) -> Iterator[Turn]:
        """Hold the turn for the block.

        Args:
            cancelling: End whatever runs instead of waiting until it is done.

        Raises:
            EngineError: This thread holds a turn already, or no turn came in time.
        """
        turn = Turn()
        self._take(turn, cancelling)
        try:
            yield turn
        finally:
            self._release(turn)

    def _take(self, turn: Turn, cancelling: bool) -> None:
        until = time.monotonic() + self._wait_seconds
        with self._free:
            while self._active is not None:
                if cancelling:  # again and again: its reader may stop reading after the mark
                    self.cancel()
                    self._free.wait(_AGAIN_SECONDS)
                    continue
                if self._active.thread == turn.thread:
                    raise EngineError(
                        f"{self._label} is busy: a stream of this thread is not read to its end.",
                        hint="Read it on, close it, or call model.stop().",
                    )
                if not self._free.wait(until - time.monotonic()):
                    raise EngineError(
                        f"{self._label} was busy for {self._wait_seconds:g} seconds.",
                        hint="Another thread uses it; model.stop() ends that.",
                    )
            self._active = turn

    def _release(self, turn: Turn) -> None:
        with self._free:
            if self._active is turn:
                self._active = None
                self._free.notify()

    def cancel(self) -> None:
        """Make the active turn end between two tokens; one that nobody reads ends at once."""
        turn = self._active
        if turn is None:
            return
        turn.cancelled = True
        close = getattr(turn.inner, "close", None)
        if close is None:
            return
        try:
            close()
        except ValueError:  # the generator runs in another thread, which sees the mark by itself
            return
        self._release(turn)
