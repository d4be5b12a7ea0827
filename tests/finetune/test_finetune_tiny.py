"""The recipe that ships for the embedded model teaches the skill and keeps the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.finetune import finetune
from workbench.finetune.recipe import Recipe, recipe_file


@pytest.mark.slow
def test_the_tiny_recipe_teaches_the_skill_and_keeps_the_others(tmp_path: Path) -> None:
    training = finetune(recipe="tiny", out=tmp_path / "adapter")
    before, after = training.before.accuracy(), training.after.accuracy()
    assert before is not None
    assert after is not None
    assert before <= 0.10
    assert after >= 0.90
    assert training.points_lost is not None
    assert training.points_lost <= 5
    assert training.before.skill_names() == [
        "greetings",
        "json",
        "story",
        "sums",
        "who",
        "words",
    ]
    assert training.after.skills is not None
    assert training.after.skills.failed == 0
    written = Recipe.read(recipe_file(training.adapter))
    assert written == training.recipe
    assert written.source is not None
