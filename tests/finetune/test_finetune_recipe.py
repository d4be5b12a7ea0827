"""Recipes: precedence, presets, refusals, and the file that repeats a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from workbench.catalog import Architecture, Card
from workbench.errors import InputError, NotFoundError
from workbench.finetune.recipe import (
    Recipe,
    Source,
    check_source,
    preset_names,
    preset_of,
    recipe_file,
    resolve_recipe,
)


def test_argument_wins_over_file_over_default(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("rank: 4\nseed: 3\n")
    recipe, origins = resolve_recipe(path, {"rank": 8, "alpha": None})
    assert (recipe.rank, recipe.seed, recipe.alpha) == (8, 3, Recipe().alpha)
    assert (origins["rank"], origins["seed"], origins["alpha"]) == (
        "argument",
        "mine.yaml",
        "default",
    )


def test_every_preset_reads_and_says_how_it_is_used() -> None:
    assert preset_names() == ["30b-70b", "7b-14b", "tiny", "up-to-3b"]
    for name in preset_names():
        text = recipe_file(name).read_text(encoding="utf-8")
        assert text.startswith("# wb.finetune(")
        recipe, _ = resolve_recipe(name, {})
        settings = [line for line in text.splitlines() if line and not line.startswith("#")]
        explained = [line for line in settings if "#" in line]
        assert len(explained) >= len(settings) - 3, name
        assert recipe.rank >= 1


@pytest.mark.parametrize(
    ("parameters", "preset"),
    [
        (5_000_000, "tiny"),
        (1_500_000_000, "up-to-3b"),
        (8_000_000_000, "7b-14b"),
        (70_000_000_000, "30b-70b"),
    ],
)
def test_the_preset_follows_the_models_size(parameters: float, preset: str) -> None:
    assert preset_of(Card(id="m", architecture=Architecture(parameters=int(parameters)))) == preset


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rnk": 8}, "unknown key 'rnk'. Did you mean 'rank'"),
        ({"rank": 0}, "rank = 0"),
        ({"learning_rate": "fast"}, "learning_rate = 'fast'"),
        ({"method": "dora"}, "method = 'dora'"),
        ({"quantization": "nf4"}, "method 'lora' does not go with quantization 'nf4'"),
        ({"method": "qlora", "quantization": "none"}, "does not go with"),
    ],
)
def test_a_wrong_setting_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_recipe("tiny", changes)
    assert said in str(caught.value)


def test_a_wrong_file_names_itself(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text("epoch: 3\n")
    with pytest.raises(InputError, match=r"odd\.yaml: unknown key 'epoch'. Did you mean 'epochs'"):
        resolve_recipe(path, {})
    with pytest.raises(NotFoundError, match="Did you mean 'tiny'"):
        resolve_recipe("tny", {})


def test_qlora_takes_nf4_and_lora_takes_it_back() -> None:
    recipe, _ = resolve_recipe("tiny", {"method": "qlora"})
    assert recipe.quantization == "nf4"
    back, _ = resolve_recipe(recipe, {"method": "lora"})
    assert back.quantization == "none"


def test_the_written_recipe_reads_back_equal_and_says_where_values_came_from() -> None:
    source = Source(dataset_sha256="a" * 64, model_sha256="b" * 64, versions={"torch": "1"})
    recipe, origins = resolve_recipe("tiny", {"rank": 8, "target_modules": ("q_proj", "v_proj")})
    recipe = recipe.changed(source=source)
    text = recipe.as_yaml(origins)
    assert Recipe.of(yaml.safe_load(text)) == recipe
    lines = {line.split(":")[0]: line for line in text.splitlines()}
    assert lines["rank"].endswith("# argument")
    assert lines["epochs"].endswith("# tiny.yaml")
    assert lines["dropout"].endswith("# default")


def test_a_repeat_checks_what_it_is_made_of() -> None:
    first = Source(dataset_sha256="a", model_sha256="b", versions={"torch": "1", "trl": "2"})
    recipe = Recipe(dataset="d", source=first)
    assert check_source(recipe, first) == []
    assert check_source(recipe, first.changed(versions={"torch": "1", "trl": "3"})) == [
        "trl was 2, is 3"
    ]
    with pytest.raises(InputError, match="dataset d is not the one"):
        check_source(recipe, first.changed(dataset_sha256="c"))
    with pytest.raises(InputError, match="base model tiny-chat is not the one"):
        check_source(recipe, first.changed(model_sha256="c"))


def test_naming_another_dataset_makes_it_a_new_training(tmp_path: Path) -> None:
    recipe = Recipe(dataset="d", source=Source(dataset_sha256="a", model_sha256="b"))
    again, _ = resolve_recipe(recipe, {"seed": 1})
    other, _ = resolve_recipe(recipe, {"dataset": "e"})
    assert again.source is not None
    assert other.source is None
