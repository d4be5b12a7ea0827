"""The recipe that ships for the embedded model is the one that its notebook trains by.

What it teaches and what it costs is measured where that notebook runs, in tests/notebooks.
"""

from __future__ import annotations

from workbench.finetune.job import prepare
from workbench.finetune.recipe import Recipe


def test_the_model_and_the_dataset_choose_the_tiny_recipe() -> None:
    def settings(recipe: Recipe) -> dict[str, object]:
        return recipe.model_dump(exclude={"source": {"time", "command"}})

    named = prepare("tiny", {})
    chosen = prepare(None, {"model": "tiny-chat", "dataset": "hashtags", "seed": 0})
    assert settings(chosen.recipe) == settings(named.recipe)
    assert chosen.out == named.out
