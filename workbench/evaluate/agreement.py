"""How far two forms of one model agree: token ids, top-1, KL divergence, perplexity, answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError
from workbench.evaluate.reference import (
    GREEDY_ITEMS,
    Mask,
    Reference,
    Scored,
    conversation_ids,
    greedy_answer,
    held_out,
    question_of,
    rows_kept,
    write_reference,
)
from workbench.messages import Conversation, as_messages
from workbench.progress import progress as show_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Agreement",
    "Divergence",
    "Reference",
    "agreement",
    "compare_references",
    "compare_to_reference",
    "held_out",
    "write_reference",
]
_ROWS = 64  # rows of log-probabilities in float64 at once


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first place where two greedy answers part.

    Attributes:
        item: Index of the conversation.
        position: Index of the first token that differs.
        expected: The reference's token there, as text, or ``<end>``.
        found: The candidate's token there, as text, or ``<end>``.
    """

    item: int
    position: int
    expected: str
    found: str

    def __str__(self) -> str:
        return f"item {self.item}, token {self.position}: {self.expected!r} / {self.found!r}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How a candidate agrees with a reference over the same token ids.

    Attributes:
        tokens: Positions compared.
        prompts: Conversations whose prompt ids were compared.
        prompts_equal: Those with equal prompt ids.
        top1: Share of positions with the same most probable token, in [0, 1].
        mean_kl: Mean of KL(reference || candidate) per position, in nats.
        p99_kl: Its 99th percentile.
        max_kl: Its greatest value.
        reference_perplexity: exp of the reference's mean negative log-likelihood per token.
        perplexity: The candidate's.
        answers: Greedy answers compared.
        answers_equal: Those equal token by token.
        first_divergence: Where the first unequal answer parts, or None.
    """

    tokens: int
    prompts: int
    prompts_equal: int
    top1: float
    mean_kl: float
    p99_kl: float
    max_kl: float
    reference_perplexity: float
    perplexity: float
    answers: int = 0
    answers_equal: int = 0
    first_divergence: Divergence | None = None

    @property
    def perplexity_ratio(self) -> float:
        """Candidate's perplexity / reference's."""
        return self.perplexity / self.reference_perplexity

    @property
    def prompt_ids_equal(self) -> bool:
        """Whether every prompt has the same ids in both forms."""
        return self.prompts_equal == self.prompts

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        values = dataclasses.asdict(self)
        values["perplexity_ratio"] = self.perplexity_ratio
        values["first_divergence"] = str(self.first_divergence) if self.first_divergence else None
        return values


def compare_to_reference(model: Scored, reference: Reference | Path) -> Agreement:
    """Score the reference's token ids with ``model`` and return how far they agree.

    Raises:
        InputError: The two vocabularies differ in size.
    """
    known = reference if isinstance(reference, Reference) else Reference.read(reference)
    total = _Total()
    parts = zip(known.ids, known.keep, known.rows(), strict=True)
    with show_progress("Agreement", total=len(known.ids), unit="conversations") as bar:
        for ids, keep, expected in parts:
            total.add(expected, model.log_probabilities(ids), ids=ids, keep=keep)
            bar.advance()
    prompts = [tuple(model.prompt_ids(question_of(messages))) for messages in known.conversations]
    questions = known.conversations[: len(known.answers)]
    answers = [greedy_answer(model, question_of(messages)) for messages in questions]
    return total.agreement(known, prompts, answers)


def compare_references(reference: Reference, candidate: Reference) -> Agreement:
    """Compare what two models wrote about the same conversations; no model is needed.

    Raises:
        InputError: They are not about the same token ids.
    """
    if reference.ids != candidate.ids:
        raise InputError("The two references hold different token ids; write both from one list.")
    total = _Total()
    for ids, keep, expected, found in zip(
        reference.ids, reference.keep, reference.rows(), candidate.rows(), strict=True
    ):
        total.add(expected, found, ids=ids, keep=keep)
    return total.agreement(reference, candidate.prompts, candidate.answers)


def agreement(
    reference: Scored,
    candidate: Scored,
    conversations: Sequence[Conversation],
    *,
    mask: Mask = "all",
) -> Agreement:
    """Compare two loaded models conversation by conversation; nothing is written.

    Raises:
        InputError: The two vocabularies differ in size.
    """
    total = _Total()
    turns = [as_messages(conversation) for conversation in conversations]
    ids = [conversation_ids(reference, messages) for messages in turns]
    for messages, each in zip(turns, ids, strict=True):
        keep = rows_kept(reference, messages, each, mask)
        expected = reference.log_probabilities(each)
        total.add(expected, candidate.log_probabilities(each), ids=each, keep=keep)
    questions = [question_of(messages) for messages in turns]
    known = Reference(
        path=Path(),
        ids=tuple(map(tuple, ids)),
        keep=(),
        prompts=tuple(tuple(reference.prompt_ids(q)) for q in questions),
        conversations=tuple(turns),
        answers=tuple(tuple(greedy_answer(reference, q)) for q in questions[:GREEDY_ITEMS]),
    )
    prompts = [tuple(candidate.prompt_ids(q)) for q in questions]
    return total.agreement(
        known, prompts, [greedy_answer(candidate, q) for q in questions[:GREEDY_ITEMS]]
    )


class _Total:
    """Sums in float64 over conversations; keeps one number per position."""

    def __init__(self) -> None:
        self.divergences: list[NDArray[np.float64]] = []
        self.same = self.tokens = 0
        self.expected_nll = self.found_nll = 0.0

    def add(
        self,
        expected: NDArray[np.floating[Any]],
        found: NDArray[np.floating[Any]],
        *,
        ids: Sequence[int],
        keep: Sequence[bool],
    ) -> None:
        """Add one conversation: log-probabilities [n - 1, vocab] of both and the n ids."""
        import numpy as np

        if expected.shape != found.shape:
            raise InputError(
                f"The vocabularies differ: {expected.shape[1]} and {found.shape[1]} tokens.",
                hint="Compare two forms of one model.",
            )
        kept = np.flatnonzero(np.asarray(keep, dtype=bool))
        for start in range(0, len(kept), _ROWS):
            rows = kept[start : start + _ROWS]
            a, b = (np.asarray(side[rows], dtype=np.float64) for side in (expected, found))
            targets = np.asarray(ids)[rows + 1]
            self.divergences.append(divergences(a, b))
            self.same += int(np.sum(a.argmax(-1) == b.argmax(-1)))
            self.tokens += len(rows)
            at = np.arange(len(rows))
            self.expected_nll -= float(a[at, targets].sum())
            self.found_nll -= float(b[at, targets].sum())

    def agreement(
        self,
        known: Reference,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[tuple[int, str]]],
    ) -> Agreement:
        """Return the figures."""
        import numpy as np

        if self.tokens == 0:
            raise InputError("No token was left to compare.", hint='Use mask="all".')
        kl = np.concatenate(self.divergences)
        pairs = list(zip(known.prompts, prompts, strict=True))
        equal = [tuple(a) == tuple(b) for a, b in zip(known.answers, answers, strict=True)]
        return Agreement(
            tokens=self.tokens,
            prompts=len(pairs),
            prompts_equal=sum(tuple(a) == tuple(b) for a, b in pairs),
            top1=self.same / self.tokens,
            mean_kl=float(kl.mean()),
            p99_kl=float(np.quantile(kl, 0.99)),
            max_kl=float(kl.max()),
            reference_perplexity=_exp(self.expected_nll / self.tokens),
            perplexity=_exp(self.found_nll / self.tokens),
            answers=len(equal),
            answers_equal=sum(equal),
            first_divergence=_first_divergence(known.answers, answers),
        )


def divergences(expected: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return KL(expected || found) of each row in nats (Kullback and Leibler, 1951).

    Args:
        expected: Log-probabilities, float64 [rows, vocab].
        found: The same of the candidate.

    Returns:
        float64 [rows]; what rounding makes slightly negative is 0.
    """
    import numpy as np

    weights = np.exp(expected)
    with np.errstate(invalid="ignore"):
        terms = np.where(weights > 0, weights * (expected - found), 0.0)
    rows: NDArray[np.float64] = np.maximum(terms.sum(-1), 0.0)
    return rows


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _first_divergence(
    expected: Sequence[Sequence[tuple[int, str]]], found: Sequence[Sequence[tuple[int, str]]]
) -> Divergence | None:
    for item, (left, right) in enumerate(zip(expected, found, strict=True)):
        for position in range(max(len(left), len(right))):
            a = left[position] if position < len(left) else None
            b = right[position] if position < len(right) else None
            if a is None or b is None or a[0] != b[0]:
                return Divergence(item=item, position=position, expected=_said(a), found=_said(b))
    return None


def _said(token: tuple[int, str] | None) -> str:
    return "<end>" if token is None else (token[1] or f"#{token[0]}")
