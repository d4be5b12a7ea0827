"""Conformance: sampling repeats with a seed and follows the probabilities, in every engine."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conformance import SUM, Form, without

from workbench.engines.model import Model

STORY = "Tell me a story."
NO_SAMPLING = "A script says what it says."


@without("scripted", because=NO_SAMPLING)
def test_sampling_repeats_with_a_seed_and_differs_without(each: Model) -> None:
    hot = {"temperature": 1.5, "max_tokens": 16, "ignore_end": True}
    one, again = (each.ask(STORY, seed=7, **hot) for _ in range(2))
    assert (one.text, one.token_ids) == (again.text, again.token_ids)
    assert len({each.ask(STORY, seed=seed, **hot).text for seed in range(4)}) > 1
    assert len({each.ask(STORY, **hot).text for _ in range(5)}) > 1


@pytest.mark.parametrize("seed", [-1, 2**32 - 1, 2**70])
def test_every_whole_number_is_a_seed(seed: int, here: Model) -> None:
    """llama.cpp draws a fresh seed for 2**32 - 1, and PyTorch takes none of more than 64 bits."""
    hot = {"temperature": 1.5, "max_tokens": 12, "ignore_end": True, "seed": seed}
    assert len({here.ask(STORY, **hot).token_ids for _ in range(3)}) == 1


@without("scripted", because=NO_SAMPLING)
def test_top_k_of_one_and_a_tiny_top_p_are_greedy(each: Model, form: Form) -> None:
    greedy = each.ask(SUM, max_tokens=8).text
    for settings in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-4}):
        sampling = {"temperature": 2.0, "seed": 1, **settings}
        assert each.ask(SUM, max_tokens=8, **sampling).text == greedy, settings


def test_sampling_follows_the_probabilities(real: Model) -> None:
    prompt = real.prompt_ids(STORY)
    row = real.log_probabilities([*prompt, 0])[-1]
    best = int(row.argmax())
    share = float(np.exp(row[best]))
    drawn = [
        next(iter(real.complete(prompt, max_tokens=1, temperature=1.0, seed=seed))).token_id
        for seed in range(80)
    ]
    found = drawn.count(best) / len(drawn)
    assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / len(drawn)) + 0.01


@without("transformers", because="It is the reference.")
@without("scripted", because=NO_SAMPLING)
@without("llama.cpp Q8_0", because="A penalty makes near ties, which 8 bit decide otherwise.")
def test_repetition_penalty_counts_the_prompt_alike(each: Model, reference: Model) -> None:
    questions = [SUM, STORY, "Say: a a a a a a"]
    found = {}
    for penalty in (1.0, 4.0):
        settings = {"max_tokens": 12, "repetition_penalty": penalty}
        one, two = (
            [model.ask(question, **settings).text for question in questions]
            for model in (reference, each)
        )
        assert one == two
        found[penalty] = one
    assert found[1.0] != found[4.0]


def test_sampled_batches_equal_single_ones_with_a_seed(here: Model) -> None:
    questions = [SUM, STORY, "Hi!"]
    settings = {"max_tokens": 12, "temperature": 0.9, "top_p": 0.9, "seed": 11, "stop": "."}
    singles = [here.ask(question, **settings).text for question in questions]
    assert [reply.text for reply in here.ask_many(questions, **settings)] == singles
