"""Task accuracy: asks a model every prompt of a set and judges each reply."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from workbench.engines.base import Power
from workbench.errors import ChildDiedError, InputError, WorkbenchError
from workbench.evaluate.prompts import Prompt, load_prompts, prompt_sets, read_prompts
from workbench.evaluate.scorers import Judgement, judge
from workbench.evaluate.statistics import Interval, wilson
from workbench.figures import Table
from workbench.messages import Message, Reply, Sampling
from workbench.progress import progress as show_progress

__all__ = [
    "Prompt",
    "TaskResults",
    "TaskRow",
    "evaluate_tasks",
    "load_prompts",
    "prompt_sets",
    "read_prompts",
]
MAX_TOKENS = 96
"""Most tokens of a reply to a prompt of a set, unless the sampling says otherwise."""
BATCH = 48
"""Prompts asked at once where the model can batch."""


class Asked(Protocol):
    """The part of a model that is needed here."""

    @property
    def powers(self) -> frozenset[Power]:
        """What it can do."""
        ...

    def ask(self, conversation: Sequence[Message], *, sampling: Sampling | None = None) -> Reply:
        """Return the whole reply."""
        ...

    def ask_many(
        self, conversations: Sequence[Sequence[Message]], *, sampling: Sampling | None = None
    ) -> list[Reply]:
        """Return the replies to many conversations, in order."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """One prompt with the reply and its judgement.

    Attributes:
        id: The prompt's id.
        skill: Its skill.
        lang: Its language.
        reply: What the model said; empty when the engine failed.
        right: Whether the scorer finds it right.
        why: The scorer's reason.
        error: The engine's error on this prompt, or None.
        prompt_tokens: Tokens of the prompt, where the engine counts them.
        completion_tokens: Tokens of the reply, likewise.
        ttft: Time to first token in seconds; of the whole batch where prompts were batched.
        seconds: From the request to the end; of the whole batch likewise.
        finish_reason: ``stop`` or ``length`` ...
    """

    id: str
    skill: str
    lang: str
    reply: str
    right: bool
    why: str
    error: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    ttft: float | None = None
    seconds: float | None = None
    finish_reason: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TaskResults:
    """All rows of one model on a list of prompts; displays itself as a table of accuracies."""

    rows: tuple[TaskRow, ...]
    sampling: Mapping[str, Any]

    @property
    def right(self) -> int:
        """Prompts answered right."""
        return sum(row.right for row in self.rows)

    @property
    def failed(self) -> int:
        """Prompts on which the engine failed; they count as wrong."""
        return sum(row.error is not None for row in self.rows)

    def accuracy(self, *, skill: str | None = None, lang: str | None = None) -> Interval:
        """Return the share of right replies with its Wilson 95 % interval.

        Args:
            skill: Only prompts of this skill.
            lang: Only prompts of this language.

        Raises:
            InputError: There is no such prompt.
        """
        rows = [
            row
            for row in self.rows
            if (skill is None or row.skill == skill) and (lang is None or row.lang == lang)
        ]
        if not rows:
            raise InputError(f"No result has the skill {skill!r} and the language {lang!r}.")
        return wilson(sum(row.right for row in rows), len(rows))

    def table(self) -> list[dict[str, Any]]:
        """Return one row a skill and language, and the total last, as plain data."""
        groups: dict[tuple[str, str], list[TaskRow]] = {}
        for row in self.rows:
            groups.setdefault((row.skill, row.lang), []).append(row)
        found = [_line(skill, lang, rows) for (skill, lang), rows in groups.items()]
        return [*found, _line("all", "all", self.rows)]

    def wrong(self) -> list[TaskRow]:
        """Return the rows that are not right."""
        return [row for row in self.rows if not row.right]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data; ``from_dict`` reads it back."""
        return {
            "sampling": dict(self.sampling),
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskResults:
        """Return the results that ``as_dict`` made plain."""
        return cls(
            rows=tuple(TaskRow(**row) for row in values["rows"]),
            sampling=dict(values["sampling"]),
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return Table(
            self.table(),
            columns={
                "skill": "skill",
                "lang": "language",
                "right": "right",
                "count": "of",
                "accuracy": "accuracy",
                "low": "95 % CI from",
                "high": "to",
            },
            formats={"accuracy": ".1%", "low": ".1%", "high": ".1%"},
        )._repr_mimebundle_()


def _line(skill: str, lang: str, rows: Sequence[TaskRow]) -> dict[str, Any]:
    right = sum(row.right for row in rows)
    share = wilson(right, len(rows))
    return {
        "skill": skill,
        "lang": lang,
        "right": right,
        "count": len(rows),
        "accuracy": share.estimate,
        "low": share.low,
        "high": share.high,
        "failed": sum(row.error is not None for row in rows),
    }


def evaluate_tasks(
    model: Asked,
    prompts: Sequence[Prompt],
    *,
    sampling: Sampling | None = None,
    progress: bool = True,
    batched: bool = True,
) -> TaskResults:
    """Ask every prompt and judge the replies.

    An error of the engine on one prompt stays in the results as a failed row and counts as wrong.

    Args:
        model: A loaded model.
        prompts: What ``load_prompts`` returns.
        sampling: Default is greedy with at most 96 new tokens.
        progress: Show a bar.
        batched: Ask several at once where the model has the power BATCH.

    Raises:
        InputError: There is no prompt.
    """
    if not prompts:
        raise InputError("There is no prompt to ask.", hint="load_prompts() reads those that ship.")
    chosen = sampling or Sampling(max_tokens=MAX_TOKENS)
    size = BATCH if batched and Power.BATCH in model.powers else 1
    answers: list[Reply | str] = []
    with show_progress(
        "Tasks", total=len(prompts), unit="prompts", quiet=None if progress else True
    ) as bar:
        for chunk in _chunks(prompts, size):
            answers += _ask(model, chunk, chosen, dead=_death(answers))
            bar.advance(len(chunk))
    texts = [answer.text if isinstance(answer, Reply) else "" for answer in answers]
    judged = judge(texts, [prompt.scorer for prompt in prompts])
    rows = tuple(map(_row, prompts, answers, judged))
    return TaskResults(rows=rows, sampling=dataclasses.asdict(chosen))


def _chunks(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]


class _Death(str):
    """The error of an engine that is gone: nothing after it needs to be asked."""


def _death(answers: Sequence[Reply | str]) -> _Death | None:
    last = answers[-1] if answers else None
    return last if isinstance(last, _Death) else None


def _ask(
    model: Asked, chunk: Sequence[Prompt], sampling: Sampling, *, dead: _Death | None
) -> list[Reply | str]:
    """Ask a chunk at once, and one by one where that fails, so that one bad prompt stays one."""
    if len(chunk) > 1 and dead is None:
        with contextlib.suppress(WorkbenchError):
            return list(model.ask_many([prompt.messages for prompt in chunk], sampling=sampling))
    answers: list[Reply | str] = []
    for prompt in chunk:
        if dead is not None:
            answers.append(dead)
            continue
        try:
            answers.append(model.ask(prompt.messages, sampling=sampling))
        except ChildDiedError as error:
            dead = _Death(str(error))
            answers.append(dead)
        except WorkbenchError as error:
            answers.append(str(error))
    return answers


def _row(prompt: Prompt, answer: Reply | str, judgement: Judgement) -> TaskRow:
    row = TaskRow(
        id=prompt.id,
        skill=prompt.skill,
        lang=prompt.lang,
        reply="",
        right=False,
        why="the engine failed",
    )
    if isinstance(answer, str):
        return dataclasses.replace(row, error=answer)
    if answer.finish_reason == "error":  # one conversation of a batch
        return dataclasses.replace(row, error=answer.error or "the engine gave no reason")
    usage, timings = answer.usage, answer.timings
    return dataclasses.replace(
        row,
        reply=answer.text,
        right=judgement.right,
        why=judgement.why,
        prompt_tokens=usage.prompt_tokens if usage else None,
        completion_tokens=usage.completion_tokens if usage else None,
        ttft=timings.ttft if timings else None,
        seconds=timings.total if timings else None,
        finish_reason=answer.finish_reason,
    )
