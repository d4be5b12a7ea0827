"""MLX answers several conversations at once as it answers them alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_models import open_model
from tiny_copy import windowed

import workbench as wb
from workbench.engines.base import Power
from workbench.engines.model import Model

pytest.importorskip("mlx.core")
QUESTIONS = ["What is 3 + 4?", "Tell me a story.", "Hi!", "こんにちは", "How do you say cat?"]


@pytest.fixture
def mlx(opened: Callable[..., Model]) -> Model:
    return opened("mlx", False)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 1.0, "seed": 3, "repetition_penalty": 1.3},
        {"top_logprobs": 2, "stop": "."},
    ],
    ids=str,
)
def test_many_are_answered_as_one_is(mlx: Model, settings: dict[str, Any]) -> None:
    settings = {"max_tokens": 24, **settings}
    singles = [mlx.ask(question, **settings) for question in QUESTIONS]
    many = mlx.ask_many(QUESTIONS, **settings)
    assert [reply.token_ids for reply in many] == [reply.token_ids for reply in singles]
    assert [reply.text for reply in many] == [reply.text for reply in singles]
    reasons = [reply.finish_reason for reply in singles]
    assert [reply.finish_reason for reply in many] == reasons
    for one, other in zip(many, singles, strict=True):
        assert [own for own, _ in one.logprobs] == pytest.approx(
            [own for own, _ in other.logprobs], abs=2e-3
        )
        assert one.usage == other.usage


def test_one_that_does_not_fit_leaves_the_others(mlx: Model) -> None:
    replies = mlx.ask_many(["Hi!", "x " * 4000, "What is 3 + 4?"], max_tokens=8)
    assert [reply.finish_reason == "error" for reply in replies] == [False, True, False]
    assert "2048" in replies[1].error
    assert replies[2].text.startswith("3 + 4 = 7")


def test_a_child_answers_many(opened: Callable[..., Model], mlx: Model) -> None:
    there = opened("mlx", True)
    assert there.powers == mlx.powers
    expected = [reply.text for reply in mlx.ask_many(QUESTIONS, max_tokens=12)]
    assert [reply.text for reply in there.ask_many(QUESTIONS, max_tokens=12)] == expected


@pytest.mark.parametrize("window", [24, 512])
def test_sliding_windows_are_merged_exactly(window: int, tmp_path: Path) -> None:
    """Prompts on both sides of the window, and rows that end early and are taken out."""
    long = "A happy cat lived in a house. " * 4
    with wb.load(windowed(tmp_path, window), engine="mlx", dtype="fp32") as model:
        assert Power.BATCH in model.powers
        assert 24 < len(model.tokenize(long)) < 512
        questions = ["Hi!", long, "What is 3 + 4?", long + long]
        for settings in ({"ignore_end": True}, {"temperature": 2.0, "seed": 1}):
            singles = [model.ask(each, max_tokens=30, **settings) for each in questions]
            many = model.ask_many(questions, max_tokens=30, **settings)
            assert [reply.token_ids for reply in many] == [reply.token_ids for reply in singles]


def test_numbers_that_are_none_are_told_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core as mx

    with open_model("mlx") as model:
        weight = model.raw.model.norm.weight
        model.raw.model.norm.weight = mx.full(weight.shape, float("nan"))
        replies = model.ask_many(["Hi!", "What is 3 + 4?"], max_tokens=4)
        assert {reply.finish_reason for reply in replies} == {"error"}
        assert "not a number" in replies[0].error
