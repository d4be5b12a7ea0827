"""Answer several conversations, in batches of rows or one after another; what came is kept."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

from workbench.engines.base import Ending, Stopped, reply_limit
from workbench.engines.fallback import release
from workbench.engines.local import LocalSession
from workbench.engines.memory import give_back_memory
from workbench.engines.text import pieces
from workbench.errors import ChildDiedError, WorkbenchError
from workbench.messages import Likelihood, Message, Piece, Reply, Sampling

ROWS_AT_ONCE = 16
CANCELLED = Reply(text="", finish_reason="cancelled")
"""What is left of a reply that was not begun."""


class Row:
    """One conversation of a batch: its prompt, and the pieces of its reply so far.

    Args:
        session: Whose tokens come.
        ids: The prompt.
        sampling: How the reply is made.
        began: ``time.perf_counter()`` of the request.
    """

    def __init__(
        self, session: LocalSession, ids: list[int], sampling: Sampling, began: float
    ) -> None:
        self.ids = ids
        self.taken: list[Piece] = []
        self._session, self._sampling = session, sampling
        self._waiting: deque[int] = deque()
        self._likelihood: tuple[float, tuple[Likelihood, ...]] = (0.0, ())
        self._pieces = pieces(
            self._tokens(),
            prompt_tokens=len(ids),
            limit=reply_limit(len(ids), sampling, session.context),
            ends=() if sampling.ignore_end else session.ends,
            to_bytes=session.shown,
            stop=sampling.stop,
            began=began,
            likelihood=(lambda: self._likelihood) if sampling.top_logprobs else None,
        )

    def _tokens(self) -> Iterator[int]:
        while True:
            yield self._waiting.popleft()

    def take(
        self, token: int, likelihood: tuple[float, tuple[Likelihood, ...]] | None = None
    ) -> None:
        """Keep the piece that the next token makes, with its likelihood where that is wanted."""
        if likelihood is not None:
            self._likelihood = likelihood
        self._waiting.append(token)
        self.taken.append(next(self._pieces))

    @property
    def done(self) -> bool:
        """Whether the reply has come to its end."""
        return bool(self.taken) and self.taken[-1].finish_reason is not None

    def cancel(self) -> None:
        """End the reply here, unless it has come to its end."""
        if not self.done:
            self.taken.append(Piece(finish_reason="cancelled"))

    def reply(self) -> Reply:
        """Return the whole reply."""
        return Reply.joined(self._session.divided(iter(self.taken), self.ids, self._sampling))


Kind = TypeVar("Kind", bound=Row)


def answer_batches(
    session: LocalSession,
    conversations: Sequence[Sequence[Message]],
    sampling: Sampling,
    *,
    made: Callable[[list[int], float], Kind],
    decode: Callable[[list[Kind]], None],
    stopped: Stopped,
) -> list[Reply]:
    """Return one reply for each conversation, in order; a failed one says why.

    Args:
        session: What answers.
        conversations: What is asked.
        sampling: How.
        made: Makes the row of a prompt, of a request that began at a ``time.perf_counter()``.
        decode: Brings all rows of a batch to their end.
        stopped: When it says so, rows that are not done are cancelled.

    Raises:
        Interrupted: Ctrl-C was pressed; it has the replies as ``stopped`` leaves them.
    """
    began = time.perf_counter()

    def make(ids: list[int]) -> Kind:
        return made(ids, began)

    ending = Ending(stopped)
    replies: dict[int, Reply] = {}
    rows: list[tuple[int, list[int]]] = []
    try:
        for index, messages in enumerate(conversations):
            try:
                ids = session.prompt_ids_for(messages, sampling)
                reply_limit(len(ids), sampling, session.context)
                rows.append((index, ids))
            except WorkbenchError as error:
                replies[index] = _failed(error)
        rows.sort(key=lambda pair: len(pair[1]))  # similar lengths need little padding
        for start in range(0, len(rows), ROWS_AT_ONCE):
            chunk = rows[start : start + ROWS_AT_ONCE]
            answers = _answer([ids for _, ids in chunk], make, decode, ending)
            replies |= dict(zip((index for index, _ in chunk), answers, strict=True))
    except KeyboardInterrupt:
        ending.interrupted = True
    return ending.ended([replies.get(index, CANCELLED) for index in range(len(conversations))])


def _answer(
    prompts: list[list[int]],
    made: Callable[[list[int]], Kind],
    decode: Callable[[list[Kind]], None],
    ending: Ending,
) -> list[Reply]:
    """Answer one batch; when it fails as a whole (memory), go on with one row at a time."""
    if ending():
        return [CANCELLED for _ in prompts]
    rows: list[Kind] = []
    try:
        rows.extend(made(ids) for ids in prompts)
        decode(list(rows))
    except KeyboardInterrupt:
        ending.interrupted = True
        for row in rows:
            row.cancel()
    except Exception as error:
        if len(prompts) == 1:
            return [_failed(error)]
        release(error)  # its frames hold the batch, beside which single ones may not fit either
        give_back_memory()
        return [reply for ids in prompts for reply in _answer([ids], made, decode, ending)]
    return [*(row.reply() for row in rows), *(CANCELLED for _ in prompts[len(rows) :])]


Turns = TypeVar("Turns")


def answer_in_turn(
    stream: Callable[[Turns], Generator[Piece, None, None]],
    conversations: Sequence[Turns],
    stopped: Stopped,
) -> list[Reply]:
    """Return one reply for each conversation, asked one after another; a failed one says why.

    Args:
        stream: Opens the reply to one.
        conversations: What is asked.
        stopped: When it says so, those that are not begun are cancelled.

    Raises:
        ChildDiedError: The process that held the model is gone.
        Interrupted: Ctrl-C was pressed; it has the replies so far, the last one in part.
    """
    ending, replies = Ending(stopped), [CANCELLED for _ in conversations]
    for index, turns in enumerate(conversations):
        if ending():
            break
        pieces: list[Piece] = []
        try:
            with contextlib.closing(stream(turns)) as coming:
                pieces.extend(coming)
            replies[index] = Reply.joined(pieces)
        except KeyboardInterrupt:
            ending.interrupted = True
            if not (pieces and pieces[-1].finish_reason):
                pieces.append(Piece(finish_reason="cancelled"))
            replies[index] = Reply.joined(pieces)
        except ChildDiedError:
            raise
        except WorkbenchError as error:
            replies[index] = _failed(error)
    return ending.ended(replies)


def _failed(error: Exception) -> Reply:
    return Reply(text="", finish_reason="error", error=str(error) or type(error).__name__)
