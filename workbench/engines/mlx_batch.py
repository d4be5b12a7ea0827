"""Answer several conversations at once in MLX: each prompt is read alone, all are decoded together.

A prompt that is read alone gives what a single ask gives, and no padding has to be computed; the
caches are then merged, which mlx-lm's own batches do too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.engines import batch
from workbench.engines.base import Stopped
from workbench.engines.mlx_choice import MlxChoice
from workbench.engines.mlx_library import begin, check_finite, on_device, states
from workbench.messages import Message, Reply, Sampling

if TYPE_CHECKING:
    from workbench.engines.mlx_session import MlxSession


class _Row(batch.Row):
    """One conversation of a batch with its own choice of tokens and, at first, its own cache."""

    def __init__(
        self, session: MlxSession, ids: list[int], sampling: Sampling, began: float
    ) -> None:
        super().__init__(session, ids, sampling, began)
        self._of, self._count = session, sampling.top_logprobs
        self.choose = MlxChoice(sampling, ids, session.vocabulary)

    def keep(self, token: int, logits: Any, at: int) -> None:
        """Keep the piece that a token makes, chosen from one row of these logits [rows, vocab]."""
        wanted = self._of.likelihood_of(logits[at], token, self._count) if self._count else None
        self.take(token, wanted)


def can_batch(cache: Sequence[Any]) -> bool:
    """Return whether the prompt caches of a model can be merged, layer by layer."""
    return all(hasattr(layer, "merge") for layer in cache)


def answer_batches(
    session: MlxSession,
    conversations: Sequence[Sequence[Message]],
    sampling: Sampling,
    stopped: Stopped,
) -> list[Reply]:
    """Return one reply for each conversation, in order; a failed one says why."""
    return batch.answer_batches(
        session,
        conversations,
        sampling,
        made=lambda ids, began: _Row(session, ids, sampling, began),
        decode=lambda rows: _decode(session, rows, stopped),
        stopped=stopped,
    )


def _decode(session: MlxSession, rows: list[_Row], stopped: Stopped) -> None:
    """Bring all rows to their end; the next step is under way while one is looked at."""
    import mlx.core as mx

    try:
        read = _read_all(session, rows, stopped)
        if read is not None:
            _decode_together(session, rows, *read, stopped)
    finally:
        mx.synchronize()
        for row in rows:
            row.cancel()


def _read_all(session: MlxSession, rows: list[_Row], stopped: Stopped) -> tuple[Any, Any] | None:
    """Return the logits [rows, vocab] after the prompts and the merged cache, None when stopped."""
    import mlx.core as mx

    found, caches = [], []
    for row in rows:
        if stopped():
            return None
        cache = session.new_cache()
        with on_device(session.device):
            logits = session.read(row.ids, cache)
            finite = mx.isfinite(mx.max(logits))
            begin(logits, finite, states(cache))
        check_finite(finite)
        found.append(logits)
        caches.append(cache)
    with on_device(session.device):
        merged = [layers[0].merge(list(layers)) for layers in zip(*caches, strict=True)]
        return mx.stack(found), merged


def _decode_together(
    session: MlxSession, rows: list[_Row], logits: Any, cache: list[Any], stopped: Stopped
) -> None:
    tokens = _chosen(session, rows, logits, cache)
    while not stopped():
        with on_device(session.device):
            ahead = session.step_many(tokens[:, None], cache)
        following = _chosen(session, rows, ahead, cache)
        for at, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            if not row.done:
                row.keep(token, logits, at)
        going = [at for at, row in enumerate(rows) if not row.done]
        if not going:
            return
        if len(going) <= len(rows) // 2:  # rows that have ended cost as much as the others
            rows = [rows[at] for at in going]
            with on_device(session.device):
                following, ahead = following[going], ahead[going]
                for layer in cache:
                    layer.filter(going)
                begin(following, ahead, states(cache))
        tokens, logits = following, ahead


def _chosen(session: MlxSession, rows: list[_Row], logits: Any, cache: list[Any]) -> Any:
    """Have the next token of each row chosen and computed meanwhile, shape [rows]."""
    import mlx.core as mx

    with on_device(session.device):
        if all(row.choose.is_plain for row in rows):
            tokens = mx.argmax(logits, axis=-1)
        else:
            tokens = mx.stack([row.choose(logits[at]) for at, row in enumerate(rows)])
        begin(tokens, logits, [row.choose.state for row in rows], states(cache))
    return tokens
