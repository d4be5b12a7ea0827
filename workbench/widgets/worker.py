"""One answer being generated: the engine is read in one thread, a clock hands on what came."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from workbench.chats.asking import KEEP
from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.errors import EngineError
from workbench.messages import FinishReason, Piece, Reply, Timings, Usage

PERIOD = 1 / 30
"""Seconds between two deliveries."""
GRACE = 0.1
"""Seconds that a stopped engine gets to end by itself; then the answer ends without it."""
_LOOK = 0.05
_KEEPING_SHARE = 0.05  # of the time at most: a long conversation is kept more seldom
_AT_EXIT = 2.0
Start = Callable[[], Iterator[Piece]]
_running: set[Generation] = set()


class Generation:
    """One answer of a model, made in threads of its own.

    The engine is never slowed by whoever looks: pieces are delivered together, 30 times a second.
    A stop takes effect between two tokens. An engine that is inside a long step, such as the
    prefill of a long prompt, cannot be stopped there: the answer ends at once all the same, and
    what the engine still says is dropped when the step is over.

    Args:
        model: The model, whose turn is waited for.
        start: Opens the stream; called in the reading thread.
        take: Gets the pieces since the last delivery.
        waits: Told True when the model is busy with somebody else, and False when it is free.
        end: Gets the outcome once, as the last call.
        keep: Told every ``KEEP`` seconds to keep what came so far, in a thread of its own.

    Attributes:
        stopped: Whether somebody wants it to end.
        error: What the engine raised, or None.
    """

    def __init__(
        self,
        model: Model,
        start: Start,
        *,
        take: Callable[[Sequence[Piece]], None],
        waits: Callable[[bool], None],
        end: Callable[[Generation], None],
        keep: Callable[[Generation], None] | None = None,
    ) -> None:
        self._model, self._start = model, start
        self._take, self._waits, self._end, self._keep = take, waits, end, keep
        self.pieces: list[Piece] = []
        self.error: BaseException | None = None
        self.stopped = False
        self._delivered = 0
        self._let_go = False
        self._reader: int | None = None
        self._began = self._first = self._last = time.perf_counter()
        self._changed = threading.Condition()
        self._read_out = False
        self._over = threading.Event()

    def run(self) -> None:
        """Begin; returns at once."""
        _running.add(self)
        threading.Thread(target=self._read, name="chat-engine", daemon=True).start()
        threading.Thread(target=self._deliver, name="chat-clock", daemon=True).start()
        if self._keep is not None:
            keeper = threading.Thread(
                target=self._keep_on, args=(self._keep,), name="chat-keeper", daemon=True
            )
            keeper.start()

    def stop(self) -> None:
        """End it between two tokens; what has come stays. Any thread may, also twice."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()
            reader = None if self._read_out else self._reader
        if reader is not None:  # an engine that can, such as a server, ends inside a long step
            with contextlib.suppress(Exception):
                self._model.stop(thread=reader)

    def join(self, seconds: float | None = None) -> bool:
        """Wait until the outcome is handed over; return whether it is."""
        return self._over.wait(seconds)

    def leave(self, seconds: float) -> None:
        """Stop, and wait until the engine is left and the outcome handed over, each so long."""
        self.stop()
        with self._changed:
            self._changed.wait_for(lambda: self._read_out, seconds)
        self._over.wait(seconds)

    @property
    def over(self) -> bool:
        """Whether the outcome is handed over."""
        return self._over.is_set()

    # The engine's side

    def _read(self) -> None:
        self._reader = threading.get_ident()
        try:
            if self._waited_for_turn():
                with contextlib.closing(self._start()) as stream:  # type: ignore[type-var]
                    for piece in stream:
                        if not self._took(piece):
                            break
        except BaseException as error:  # also a SystemExit of the engine belongs to the reader
            self.error = error
        finally:
            with self._changed:
                self._read_out = True
                self._changed.notify_all()
            if self._over.is_set():
                _running.discard(self)

    def _waited_for_turn(self) -> bool:
        """Wait until nobody else uses the model; return whether the answer is still wanted."""
        told = False
        while not self.stopped and busy(self._model):
            if not told:
                told = True
                self._waits(True)
            with self._changed:
                self._changed.wait(_LOOK)
        if told and not self.stopped:
            self._waits(False)
        self._began = self._first = self._last = time.perf_counter()
        return not self.stopped

    def _took(self, piece: Piece) -> bool:
        """Keep a piece; return whether more are wanted."""
        with self._changed:
            if self.stopped or self._let_go:
                if piece.finish_reason is None:
                    return False
                # It ended by itself in this moment: its figures are better than ours.
                piece = Piece(finish_reason="cancelled", usage=piece.usage, timings=piece.timings)
            self._last = time.perf_counter()
            if not self.pieces:
                self._first = self._last
                self._changed.notify_all()
            if not self._let_go:
                self.pieces.append(piece)
            return not self.stopped

    # The reader's side

    def _deliver(self) -> None:
        due = time.monotonic()
        until: float | None = None
        while True:
            with self._changed:
                if not self._fresh() and not self._read_out and not self.stopped:
                    self._changed.wait(PERIOD)
                if self.stopped and until is None:
                    until = time.monotonic() + GRACE
                if self.stopped and not self._read_out:
                    self._changed.wait(GRACE)
                last = self._read_out or (until is not None and time.monotonic() >= until)
                self._let_go = last
                fresh = self.pieces[self._delivered :]
                self._delivered = len(self.pieces)
            self._hand_over(fresh)
            if last:
                break
            due = max(due + PERIOD, time.monotonic())
            with self._changed:
                if not self._read_out and not self.stopped:
                    self._changed.wait_for(
                        lambda: self._read_out or self.stopped, due - time.monotonic()
                    )
        try:
            self._end(self)
        finally:
            self._over.set()
            if self._read_out:
                _running.discard(self)

    def _fresh(self) -> bool:
        return self._delivered < len(self.pieces)

    def _hand_over(self, fresh: Sequence[Piece]) -> None:
        if not fresh:
            return
        try:
            self._take(fresh)
        except Exception as error:  # a fault in drawing must not lose the answer
            self.error = self.error or error
            self.stop()

    # Against a kill

    def _keep_on(self, keep: Callable[[Generation], None]) -> None:
        """Have it kept again and again until it ends; neither engine nor reader waits for that."""
        kept, pause = 0, KEEP
        while not self._ends_within(pause):
            if len(self.pieces) == kept:
                continue
            kept, began = len(self.pieces), time.perf_counter()
            with contextlib.suppress(Exception):  # the end is kept all the same, and says why not
                keep(self)
            pause = max(KEEP, (time.perf_counter() - began) / _KEEPING_SHARE)

    def _ends_within(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._read_out or self.stopped, seconds)

    # The outcome

    def so_far(self) -> Reply:
        """Return what came so far, for a reader who finds it when this process is gone."""
        reply = Reply.joined(tuple(self.pieces), model=self._model.label)
        reply = dataclasses.replace(reply, logprobs=())  # they take more room than all the rest
        return self._measured(reply, "interrupted", lambda: None)

    def reply(self, *, prompt_tokens: Callable[[], int | None]) -> Reply:
        """Return what was said, in full or in part.

        Args:
            prompt_tokens: Counts the prompt, for an answer whose engine had no time to.
        """
        reply = Reply.joined(iter(self.pieces), model=self._model.label)
        failed = tuple(each.card for each in self._model.fallbacks)
        reply = dataclasses.replace(reply, fallback_from=failed)
        ended = self.pieces[-1].finish_reason if self.pieces else None
        if self.error is not None:
            return self._measured(reply, "error", prompt_tokens)
        if ended in (None, "cancelled"):
            return self._measured(reply, "cancelled", prompt_tokens)
        return reply

    def _measured(
        self, reply: Reply, finish: FinishReason, prompt_tokens: Callable[[], int | None]
    ) -> Reply:
        """Return the reply with our own clock's figures where the engine gave none."""
        usage, timings = reply.usage, reply.timings
        count = len(reply.token_ids)
        if usage is None and count:
            prompt = prompt_tokens()
            if prompt is not None:
                usage = Usage(prompt_tokens=prompt, completion_tokens=count)
        if timings is None and self.pieces:
            ttft, total = self._first - self._began, self._last - self._began
            counted = usage or Usage(prompt_tokens=0, completion_tokens=count)
            timings = Timings.measured(ttft=ttft, total=total, usage=counted)
            if usage is None:
                timings = dataclasses.replace(timings, prefill_tokens_per_second=None)
        return dataclasses.replace(reply, finish_reason=finish, usage=usage, timings=timings)


def busy(model: Model) -> bool:
    """Return whether somebody uses the model now, so that another answer would have to wait."""
    try:
        return model.busy and Power.CONCURRENT not in model.powers
    except EngineError:  # it is closed, which the stream will say
        return False


@atexit.register
def _stop_all() -> None:
    """Leave every engine before the process ends: its memory is about to be freed."""
    for generation in list(_running):
        generation.leave(_AT_EXIT)
