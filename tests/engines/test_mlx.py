"""The engine mlx: the same replies and scores as transformers, its choice of tokens, its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engine_models import open_model

from workbench.engines.mlx_choice import MlxChoice
from workbench.engines.model import Model
from workbench.messages import Sampling

mx = pytest.importorskip("mlx.core")
STORY = "Tell me a story."


@pytest.fixture
def mlx(opened: Callable[..., Model]) -> Model:
    return opened("mlx", False)


# Choosing


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"temperature": 1.5, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 1.0, "min_p": 0.2},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.8},
    ],
    ids=str,
)
def test_the_cut_is_that_of_transformers(settings: dict[str, Any]) -> None:
    import torch

    from workbench.engines.choice import _processors

    logits = np.random.default_rng(0).normal(0, 3, 200).astype(np.float32)
    sampling, prompt = Sampling(**settings), [3, 3, 50, int(logits.argmax())]
    processed = _processors(sampling)(torch.tensor([prompt]), torch.tensor(logits)[None])
    expected = torch.softmax(processed[0], -1).numpy()
    choice = MlxChoice(sampling, prompt, len(logits))
    drawn: list[Any] = []
    keep = choice._cut
    choice._cut = lambda scores: drawn.append(keep(scores)) or drawn[-1]  # type: ignore[method-assign]
    choice(mx.array(logits))
    np.testing.assert_allclose(np.array(mx.softmax(drawn[0])), expected, atol=1e-6)
    assert (expected == 0).sum() == np.isneginf(np.array(drawn[0])).sum()


def test_the_penalty_counts_what_was_chosen() -> None:
    choice = MlxChoice(Sampling(repetition_penalty=2.0), [0], 4)
    logits = mx.array([1.9, 1.8, 1.2, -3.0])
    assert [int(choice(logits)) for _ in range(3)] == [1, 2, 0]


def test_a_seed_draws_alike_past_a_row_of_keys_and_whatever_else_draws() -> None:
    logits = mx.zeros(1000)

    def draw(seed: int) -> list[int]:
        choice = MlxChoice(Sampling(temperature=1.0, seed=seed), [], 1000)
        return [int(choice(logits)) for _ in range(300)]

    first = draw(7)
    mx.random.uniform(shape=(5,))
    assert draw(7) == first
    assert draw(8) != first
    assert len(set(first[256:])) > 30  # the second row of keys is not one key


# Closing


def test_closing_gives_back_what_mlx_holds() -> None:
    before = mx.get_active_memory()
    model = open_model("mlx")
    model.ask(STORY, max_tokens=4)
    assert mx.get_active_memory() > before + 15_000_000
    model.close()
    assert mx.get_active_memory() <= before + 1_000_000
    assert mx.get_cache_memory() <= 1_000_000
