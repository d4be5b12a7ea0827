"""Answer several conversations at once: left-padded batches that give what single asks give."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from workbench.engines.base import reply_limit
from workbench.engines.choice import Choice
from workbench.engines.text import pieces
from workbench.errors import WorkbenchError
from workbench.messages import Likelihood, Message, Piece, Reply, Sampling

if TYPE_CHECKING:
    from workbench.engines.transformers_session import TransformersSession

ROWS_AT_ONCE = 16


class _Row:
    """One conversation of a batch: its prompt, its own choice of tokens, its pieces."""

    def __init__(self, session: TransformersSession, ids: list[int], sampling: Sampling) -> None:
        self.ids = ids
        self.taken: list[Piece] = []
        self._waiting: deque[int] = deque()
        self._session, self._count = session, sampling.top_logprobs
        self._likelihood: tuple[float, tuple[Likelihood, ...]] = (0.0, ())
        self._choose = Choice(sampling, ids, session.device)
        self._pieces = pieces(
            self._tokens(),
            prompt_tokens=len(ids),
            limit=reply_limit(len(ids), sampling, session.context),
            ends=() if sampling.ignore_end else session.ends,
            to_bytes=session.shown,
            stop=sampling.stop,
            began=time.perf_counter(),
            likelihood=(lambda: self._likelihood) if self._count else None,
        )

    def _tokens(self) -> Iterator[int]:
        while True:
            yield self._waiting.popleft()

    def take(self, logits: Any) -> int:
        """Choose the next token from the logits of this row and keep the piece it makes."""
        token = self._choose(logits)
        if self._count:
            self._likelihood = self._session.likelihood_of(logits, token, self._count)
        self._waiting.append(token)
        self.taken.append(next(self._pieces))
        return token

    @property
    def done(self) -> bool:
        """Whether the reply has come to its end."""
        return bool(self.taken) and self.taken[-1].finish_reason is not None


def answer_batches(
    session: TransformersSession,
    conversations: Sequence[Sequence[Message]],
    sampling: Sampling,
) -> list[Reply]:
    """Return one reply for each conversation, in order; a failed one says why."""
    replies: dict[int, Reply] = {}
    rows: list[tuple[int, _Row]] = []
    for index, messages in enumerate(conversations):
        try:
            ids = session.prompt_ids_for(messages, sampling)
            rows.append((index, _Row(session, ids, sampling)))
        except WorkbenchError as error:
            replies[index] = _failed(error)
    rows.sort(key=lambda pair: len(pair[1].ids))  # similar lengths need little padding
    for start in range(0, len(rows), ROWS_AT_ONCE):
        chunk = rows[start : start + ROWS_AT_ONCE]
        for (index, _), reply in zip(
            chunk, _answer(session, [row for _, row in chunk], sampling), strict=True
        ):
            replies[index] = reply
    return [replies[index] for index in range(len(conversations))]


def _failed(error: Exception) -> Reply:
    return Reply(text="", finish_reason="error", error=str(error) or type(error).__name__)


def _answer(session: TransformersSession, rows: list[_Row], sampling: Sampling) -> list[Reply]:
    """Answer one batch; when it fails as a whole (memory), go on with one row at a time."""
    try:
        _decode(session, rows)
    except Exception as error:
        if len(rows) == 1:
            return [_failed(error)]
        again = [_Row(session, row.ids, sampling) for row in rows]
        return [reply for row in again for reply in _answer(session, [row], sampling)]
    return [Reply.joined(session.divided(iter(row.taken), row.ids, sampling)) for row in rows]


def _decode(session: TransformersSession, rows: list[_Row]) -> None:
    import torch

    width = max(len(row.ids) for row in rows)
    padding = [width - len(row.ids) for row in rows]
    device = session.device
    feed = torch.tensor(
        [[0] * pad + row.ids for pad, row in zip(padding, rows, strict=True)], device=device
    )
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache: Any = None
    while True:
        logits, cache = session.step(feed, cache, attention_mask=mask, position_ids=positions)
        with torch.inference_mode():
            tokens = [0 if row.done else row.take(logits[at, -1]) for at, row in enumerate(rows)]
        going = [at for at, row in enumerate(rows) if not row.done]
        if not going:
            return
        positions = positions[:, -1:] + 1
        if len(going) <= len(rows) // 2:  # rows that have ended cost as much as the others
            kept = torch.tensor(going, device=device)
            cache.batch_select_indices(kept)
            mask, positions = mask[kept], positions[kept]
            rows, tokens = [rows[at] for at in going], [tokens[at] for at in going]
        feed = torch.tensor([[token] for token in tokens], device=device)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
