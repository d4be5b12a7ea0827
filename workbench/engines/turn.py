"""Turns at a model: one request at a time, or several where the engine batches them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

from workbench.errors import EngineError

WAIT_SECONDS = 600.0
_AGAIN_SECONDS = 0.1
_CLOSING_SECONDS = 0.001
_RUNS = "generator already executing"
T = TypeVar("T")


class Turn:
    """The right to use the model until the turn ends.

    Attributes:
        thread: Who holds it.
        shared: Whether other shared turns may run beside it.
        cancelled: Whether somebody wants it to end between two tokens.
        inner: The session's own generator while one runs.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self.thread = threading.get_ident()
        self.shared = shared
        self.cancelled = False
        self.inner: Any = None

    def read(self, inner: Iterator[T]) -> Generator[T, None, None]:
        """Yield what the session's generator yields, until it ends or the turn is cancelled."""
        self.inner = inner
        try:
            for each in inner:
                yield each
                if self.cancelled:
                    return
        except ValueError as error:
            if not (self.cancelled and str(error) == _RUNS):  # somebody closes it right now
                raise
        finally:
            self._close_inner()

    def _close_inner(self) -> None:
        """Close the session's generator; where another thread closes it already, wait for that."""
        inner, self.inner = self.inner, None
        while True:
            try:
                inner.close()
            except ValueError as error:
                if str(error) != _RUNS:
                    raise
                time.sleep(_CLOSING_SECONDS)
            else:
                return


class Turns:
    """Gives out one turn at a time, or several shared ones.

    Another thread waits for the turn to end. The thread that holds it would wait for itself, so it
    gets an error: a stream that it left unread is still open.

    Attributes:
        stops: How often somebody wanted what runs to end: for work of several turns.
    """

    def __init__(self, label: str, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self._label = label
        self._wait_seconds = wait_seconds
        self._free = threading.Condition()
        self._active: list[Turn] = []
        self.stops = 0

    @property
    def busy(self) -> bool:
        """Whether somebody holds a turn now."""
        return bool(self._active)

    @contextlib.contextmanager
    def taken(self, *, cancelling: bool = False, shared: bool = False) -> Iterator[Turn]:
        """Hold the turn for the block.

        Args:
            cancelling: End whatever runs instead of waiting until it is done.
            shared: Run beside other shared turns.

        Raises:
            EngineError: This thread holds a turn already, or no turn came in time.
        """
        turn = Turn(shared=shared)
        self._take(turn, cancelling)
        try:
            yield turn
        finally:
            self._release(turn)

    def _take(self, turn: Turn, cancelling: bool) -> None:
        until = time.monotonic() + self._wait_seconds
        with self._free:
            while self._blocked(turn):
                if cancelling:  # again and again: its reader may stop reading after the mark
                    self.cancel()
                    self._free.wait(_AGAIN_SECONDS)
                    continue
                if any(active.thread == turn.thread for active in self._active):
                    raise EngineError(
                        f"{self._label} is busy: a stream of this thread is not read to its end.",
                        hint="Read it on, close it, or call model.stop().",
                    )
                if not self._free.wait(until - time.monotonic()):
                    raise EngineError(
                        f"{self._label} was busy for {self._wait_seconds:g} seconds.",
                        hint="Another thread uses it; model.stop() ends that.",
                    )
            self._active.append(turn)

    def _blocked(self, turn: Turn) -> bool:
        return bool(self._active) and not (
            turn.shared and all(active.shared for active in self._active)
        )

    def _release(self, turn: Turn) -> None:
        with self._free:
            if turn in self._active:
                self._active.remove(turn)
                self._free.notify_all()

    def cancel(self, *, thread: int | None = None) -> None:
        """Make the active turns end between two tokens; one that nobody reads ends at once.

        Args:
            thread: Only the turns of the thread with this identity; None for all.
        """
        self.stops += thread is None
        for turn in tuple(self._active):
            if thread not in (None, turn.thread):
                continue
            turn.cancelled = True
            close = getattr(turn.inner, "close", None)
            if close is None:
                continue
            try:
                close()
            except ValueError:  # it runs in another thread, which sees the mark by itself
                continue
            self._release(turn)
