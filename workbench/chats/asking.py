"""Ask a model once and keep what came, also when it fails or is interrupted."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from workbench.errors import WorkbenchError
from workbench.messages import Message, Piece, Reply, Sampling

if TYPE_CHECKING:
    from workbench.engines.model import Model

CUT = Piece(finish_reason="interrupted")
KEEP = 2.0
"""Seconds between two times that what came so far is kept, at least."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What came of asking.

    Attributes:
        reply: The answer in so far as it came; None where it failed before its first piece.
        failure: Why it failed, or None.
        interrupted: Whether Ctrl-C ended it.
    """

    reply: Reply | None
    failure: WorkbenchError | None = None
    interrupted: bool = False

    @property
    def error(self) -> str:
        """Why it failed, or ""."""
        return str(self.failure or "")


def heard(
    model: Model,
    messages: Sequence[Message],
    sampling: Sampling,
    *,
    tell: Callable[[Piece], object] | None = None,
    keep: Callable[[Reply], object] | None = None,
) -> Heard:
    """Ask and return what came.

    Args:
        model: Who answers.
        messages: The conversation so far.
        sampling: Settings of the answer.
        tell: Takes each piece as it comes.
        keep: Takes every ``KEEP`` seconds what came so far, marked as interrupted.
    """
    pieces: list[Piece] = []
    failure, interrupted, kept = None, False, time.monotonic()
    try:
        stream = model.stream(list(messages), sampling)
        try:
            for piece in stream:
                pieces.append(piece)
                if tell is not None:
                    tell(piece)
                if keep is not None and time.monotonic() - kept >= KEEP:
                    keep(Reply.joined([*pieces, CUT], model=model.label))
                    kept = time.monotonic()
        finally:
            getattr(stream, "close", bool)()
    except WorkbenchError as error:
        failure = error
    except KeyboardInterrupt:
        interrupted = True
    if failure is not None and not pieces:
        return Heard(reply=None, failure=failure)
    if failure is not None or interrupted:
        pieces.append(Piece(finish_reason="error" if failure else "cancelled"))
    reply = Reply.joined(pieces, model=model.label)
    return Heard(reply=reply, failure=failure, interrupted=interrupted)
