"""transformers on a CUDA device: the same answers as on the CPU, and all memory back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from engine_models import open_model

from workbench.engines.model import Model

pytestmark = pytest.mark.gpu


@pytest.fixture
def on_cuda() -> Iterator[Model]:
    with open_model("transformers", device="cuda") as model:
        yield model


def test_scores_and_replies_equal_those_of_the_cpu(
    on_cuda: Model, opened: Callable[..., Model]
) -> None:
    cpu = opened("transformers", False)
    assert on_cuda.raw.device.type == "cuda"
    ids = cpu.tokenize("One day, a quiet cat found a red ball. " * 60)[:700]
    np.testing.assert_allclose(on_cuda.score(ids), cpu.score(ids), atol=5e-3)
    for question in ("What is 3 + 4?", "Tell me a story.", "こんにちは"):
        assert on_cuda.ask(question).token_ids == cpu.ask(question).token_ids


def test_batches_and_sampling_repeat(on_cuda: Model) -> None:
    questions = ["What is 3 + 4?", "Tell me a story.", "Hi!", "How do you say cat in Japanese?"]
    singles = [on_cuda.ask(question).text for question in questions]
    assert [reply.text for reply in on_cuda.ask_many(questions)] == singles
    hot = {"temperature": 1.2, "top_p": 0.9, "seed": 4, "max_tokens": 24}
    assert on_cuda.ask("Hi!", **hot).token_ids == on_cuda.ask("Hi!", **hot).token_ids


@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": "bf16"},
        {"dtype": "fp16"},
        {"quantization": "int8", "dtype": "auto"},
        {"quantization": "nf4", "dtype": "auto"},
    ],
    ids=str,
)
def test_small_forms_stay_close(settings: dict[str, str], opened: Callable[..., Model]) -> None:
    exact = opened("transformers", False)
    ids = exact.prompt_ids("Tell me a story.") + exact.tokenize("A happy cat lived in a house.")
    expected = exact.log_probabilities(ids).astype(np.float64)
    with open_model("transformers", device="cuda", **settings) as model:
        found = model.log_probabilities(ids)
        assert (np.exp(expected) * (expected - found)).sum(-1).mean() < 0.2
        assert model.ask("What is 3 + 4?", max_tokens=12).text


def test_closing_gives_the_memory_back() -> None:
    import torch

    before = torch.cuda.memory_allocated()
    with open_model("transformers", device="cuda") as model:
        model.ask("Hi!", max_tokens=8)
        assert torch.cuda.memory_allocated() > before + 10_000_000
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.memory_reserved() <= before + 64_000_000


def test_a_child_holds_the_device_and_lets_go() -> None:
    with open_model("transformers", device="cuda", isolate=True) as model:
        assert model.ask("What is 3 + 4?", max_tokens=12).text
