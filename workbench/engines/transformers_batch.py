"""Answer several conversations at once: left-padded batches that give what single asks give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.engines import batch
from workbench.engines.base import Stopped, never
from workbench.engines.choice import Choice
from workbench.messages import Message, Reply, Sampling

if TYPE_CHECKING:
    from workbench.engines.transformers_session import TransformersSession


class _Row(batch.Row):
    """One conversation of a batch with its own choice of tokens."""

    def __init__(
        self, session: TransformersSession, ids: list[int], sampling: Sampling, began: float
    ) -> None:
        super().__init__(session, ids, sampling, began)
        self._of, self._count = session, sampling.top_logprobs
        self._choose = Choice(sampling, ids, session.device)

    def choose(self, logits: Any) -> int:
        """Choose the next token from the logits of this row and keep the piece it makes."""
        token = self._choose(logits)
        wanted = self._of.likelihood_of(logits, token, self._count) if self._count else None
        self.take(token, wanted)
        return token


def answer_batches(
    session: TransformersSession,
    conversations: Sequence[Sequence[Message]],
    sampling: Sampling,
    stopped: Stopped = never,
) -> list[Reply]:
    """Return one reply for each conversation, in order; a failed one says why.

    When ``stopped`` says so, what is not whole yet ends between two tokens.
    """
    return batch.answer_batches(
        session,
        conversations,
        sampling,
        made=lambda ids, began: _Row(session, ids, sampling, began),
        decode=lambda rows: _decode(session, rows, stopped),
        stopped=stopped,
    )


def _decode(session: TransformersSession, rows: list[_Row], stopped: Stopped) -> None:
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
            tokens = [0 if row.done else row.choose(logits[at, -1]) for at, row in enumerate(rows)]
        going = [at for at, row in enumerate(rows) if not row.done]
        if not going:
            return
        if stopped():
            for row in rows:
                row.cancel()
            return
        positions = positions[:, -1:] + 1
        if len(going) <= len(rows) // 2 and _can_drop_rows(cache):  # ended ones cost as much
            kept = torch.tensor(going)  # on the CPU: the cache may lie on several devices
            cache.batch_select_indices(kept)
            mask, positions = mask[kept], positions[kept]
            rows, tokens = [rows[at] for at in going], [tokens[at] for at in going]
        feed = torch.tensor([[token] for token in tokens], device=device)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)


def _can_drop_rows(cache: Any) -> bool:
    """Whether every layer can do without some rows; recurrent states of transformers cannot."""
    layers = getattr(cache, "layers", ())
    return bool(layers) and all(hasattr(layer, "batch_select_indices") for layer in layers)
