"""Before and after: what the model answers on the held-out rows, and what else it still can do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.engines import load
from workbench.evaluate.tasks import Prompt, TaskResults, evaluate_tasks, load_prompts
from workbench.finetune.data import TrainingData
from workbench.finetune.job import Job
from workbench.messages import Sampling

UNDETERMINED = "und"
"""ISO 639-2 code of a language that nobody named."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a model can do, before or after a fine-tuning.

    Attributes:
        loss: Nats per supervised token on the held-out rows, or None without any.
        token_accuracy: Share of these tokens that were the most likely one.
        answers: Generated answers to the held-out rows, compared exactly, or None.
        skills: Replies to the prompt sets that measure what else it can do, or None.
    """

    loss: float | None = None
    token_accuracy: float | None = None
    answers: TaskResults | None = None
    skills: TaskResults | None = None

    def accuracy(self) -> float | None:
        """Return the share of held-out rows answered exactly, or None."""
        return self.answers.accuracy().estimate if self.answers else None

    def skill_accuracy(self, skill: str | None = None) -> float | None:
        """Return the share of right replies to the other skills, or to one of them."""
        return self.skills.accuracy(skill=skill).estimate if self.skills else None

    def skill_names(self) -> list[str]:
        """Return the other skills, in order."""
        rows = self.skills.rows if self.skills else ()
        return list(dict.fromkeys(row.skill for row in rows))

    def numbers(self) -> dict[str, Any]:
        """Return the figures as plain data, without the replies."""
        return {
            "held_out_loss": self.loss,
            "held_out_token_accuracy": self.token_accuracy,
            "held_out_right": self.answers.right if self.answers else None,
            "held_out_answers": len(self.answers.rows) if self.answers else None,
            "held_out_accuracy": self.accuracy(),
            "skill_accuracy": self.skill_accuracy(),
            "skills": {name: self.skill_accuracy(name) for name in self.skill_names()},
        }

    def as_dict(self) -> dict[str, Any]:
        """Return plain data with all replies; ``from_dict`` reads it back."""
        return {
            "loss": self.loss,
            "token_accuracy": self.token_accuracy,
            "answers": self.answers.as_dict() if self.answers else None,
            "skills": self.skills.as_dict() if self.skills else None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measured:
        """Return what ``as_dict`` made plain."""
        return cls(
            loss=values["loss"],
            token_accuracy=values["token_accuracy"],
            answers=TaskResults.from_dict(values["answers"]) if values["answers"] else None,
            skills=TaskResults.from_dict(values["skills"]) if values["skills"] else None,
        )


def measure(job: Job, *, adapter: Path | None = None, progress: bool = True) -> Measured:
    """Load the base model, with the adapter where given, and ask it everything.

    Args:
        job: What is fine-tuned.
        adapter: Folder of the adapter, or None for the base model alone.
        progress: Show a bar.

    Returns:
        Answers and skills; the loss is measured by the trainer.
    """
    recipe = job.recipe
    new = _held_out_prompts(job.evaluation, recipe.evaluation_items)
    others = load_prompts(recipe.skills, limit=recipe.skill_items) if recipe.skill_items else []
    if not new and not others:
        return Measured()
    with load(
        job.card,
        engine="transformers",
        quantization=recipe.quantization,
        dtype=job.dtype,
        device=job.device,
        threads=recipe.threads,
        adapter=adapter,
    ) as model:
        short = Sampling(max_tokens=recipe.evaluation_tokens)
        return Measured(
            answers=evaluate_tasks(model, new, sampling=short, progress=progress) if new else None,
            skills=evaluate_tasks(model, others, progress=progress) if others else None,
        )


def _held_out_prompts(evaluation: TrainingData | None, items: int) -> list[Prompt]:
    if evaluation is None:
        return []
    return [
        Prompt(
            id=f"{evaluation.path.stem}.{example.line}",
            skill=evaluation.path.stem.removesuffix(".eval"),
            lang=UNDETERMINED,
            messages=example.question,
            scorer={"type": "exact", "answer": example.answer},
        )
        for example in evaluation.examples[:items]
        if example.question
    ]
