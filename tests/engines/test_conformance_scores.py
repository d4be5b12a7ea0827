"""Conformance: log-probabilities are the same in every engine, within what its form allows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conformance import QUESTIONS, SUM, Form, largest, needs, without

from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.errors import UnsupportedError

STORY = "Tell me a story."
TEXT = "A happy cat lived in a house. What is 12 + 7? 12 + 7 = 19 こんにちは。"


@without("transformers", because="It is the reference.")
@without("scripted", because="A script has no probabilities.")
@needs(Power.SCORE)
def test_scores_are_those_of_the_reference(
    each: Model, reference: Model, form: Form, shows: Callable[..., None]
) -> None:
    repeats = 3 if form.engine == "mlx" else 24  # its matrix products are slow on a CPU
    ids = reference.tokenize(TEXT * repeats)[: min(700, form.context - 60)]
    assert len(ids) > 400 or form.engine == "mlx"  # more than one batch where the context allows it
    ours, theirs = reference.score(ids), each.score(ids)
    assert theirs.dtype == np.float32
    assert theirs.shape == (len(ids) - 1,)
    assert largest(ours - theirs) < form.tolerance
    assert np.abs(ours - theirs).mean() < form.tolerance / 8
    for question in QUESTIONS[:3]:
        ids = [*reference.prompt_ids(question), *reference.ask(question, max_tokens=12).token_ids]
        assert largest(reference.score(ids) - each.score(ids)) < form.tolerance
    shows(each, Power.SCORE)


@without("transformers", because="It is the reference.")
@without("scripted", because="A script has no probabilities.")
@without("vllm", "url of vllm", because="It tells the likeliest only unless it is started to.")
@needs(Power.SCORE)
def test_whole_distributions_are_those_of_the_reference(
    each: Model, reference: Model, form: Form
) -> None:
    ids = reference.tokenize(TEXT * 3)
    left, right = reference.log_probabilities(ids), each.log_probabilities(ids)
    assert right.shape == (len(ids) - 1, 2816)
    divergence = (np.exp(left.astype(np.float64)) * (left - right)).sum(-1)
    assert divergence.mean() < max(form.gap**2 / 50, 2e-6)
    likeliest = right.argmax(-1)
    behind = left.max(-1) - left[np.arange(len(left)), likeliest]
    assert behind.max() < form.gap  # another one is the likeliest only where they are near


def test_scores_are_the_log_probabilities_of_the_ids(
    real: Model, shows: Callable[..., None]
) -> None:
    ids = real.tokenize("The cat is small. 猫は小さい。 3 + 4 = 7")
    scores, table = real.score(ids), real.log_probabilities(ids)
    assert scores.dtype == table.dtype == np.float32
    assert scores.shape == (len(ids) - 1,)
    assert table.shape == (len(ids) - 1, 2816)
    np.testing.assert_allclose(scores, table[np.arange(len(ids) - 1), ids[1:]], atol=1e-6)
    np.testing.assert_allclose(np.exp(table.astype(np.float64)).sum(-1), 1, atol=1e-4)
    shows(real, Power.SCORE)


def test_scoring_in_parts_equals_scoring_a_prefix(real: Model) -> None:
    most = 260 if real.plan.engine == "mlx" else 700
    ids = real.tokenize("One day, a quiet cat found a red ball in the old garden. " * 60)[:most]
    np.testing.assert_allclose(real.score(ids)[:99], real.score(ids[:100]), atol=2e-3)


@without("scripted", because="A script has no probabilities.")
@needs(Power.SCORE)
def test_one_id_has_nothing_to_score(each: Model) -> None:
    assert each.score([5]).shape == (0,)


def test_one_id_has_no_distribution(real: Model) -> None:
    assert real.log_probabilities([5]).shape == (0, 2816)


@without("scripted", because="A script has no probabilities.")
@needs(Power.LOGPROBS)
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.5, "seed": 5}], ids=["greedy", "hot"])
def test_candidates_are_those_of_the_raw_logits(
    each: Model, reference: Model, form: Form, settings: dict[str, float],
    shows: Callable[..., None],
) -> None:  # fmt: skip
    reply = each.ask(STORY, max_tokens=8, top_logprobs=3, ignore_end=True, **settings)
    prompt = reference.prompt_ids(STORY)
    rows = reference.log_probabilities([*prompt, *reply.token_ids])[len(prompt) - 1 :]
    assert len(reply.logprobs) == len(reply.token_ids) == 8
    tolerance = max(form.tolerance, 2e-3)
    for row, token, (logprob, top) in zip(rows, reply.token_ids, reply.logprobs, strict=True):
        assert logprob == pytest.approx(row[token], abs=tolerance)
        best = sorted(top, key=lambda each: -each.logprob)[:3]
        assert [each.logprob for each in best] == pytest.approx(
            np.sort(row)[::-1][:3], abs=tolerance
        )
        for candidate in best:
            found = candidate.token_id
            if found is None:  # vLLM tells the text of a candidate
                likely = {
                    reference.detokenize([i]).decode("utf-8", "replace"): i for i in ranked(row)
                }
                found = likely[candidate.text]
            assert candidate.logprob == pytest.approx(row[found], abs=tolerance)
    if Power.SCORE in each.powers:
        scores = each.score([*prompt, *reply.token_ids])[len(prompt) - 1 :]
        told = [logprob for logprob, _ in reply.logprobs]
        assert largest(np.array(told) - scores) < tolerance
    shows(each, Power.LOGPROBS)


def ranked(row: np.ndarray) -> list[int]:
    """Return the six likeliest ids, the likeliest last."""
    return [int(index) for index in np.argsort(row)[-6:]]


# The engine's own object


def test_hidden_states_of_the_raw_model_explain_its_scores(reference: Model) -> None:
    import torch

    ids = reference.prompt_ids(SUM)
    with torch.inference_mode():
        found = reference.raw(torch.tensor([ids]), output_hidden_states=True)
    config = reference.raw.config
    assert len(found.hidden_states) == config.num_hidden_layers + 1
    assert found.hidden_states[-1].shape == (1, len(ids), config.hidden_size)
    with torch.inference_mode():
        logits = reference.raw.lm_head(found.hidden_states[-1])[0, :-1].float()
    np.testing.assert_allclose(
        torch.log_softmax(logits, -1).numpy(), reference.log_probabilities(ids), atol=1e-4
    )
    embedded = reference.raw.get_input_embeddings()(torch.tensor(ids))
    np.testing.assert_allclose(found.hidden_states[0][0].numpy(), embedded.detach().numpy())


def test_the_raw_object_is_there_unless_a_child_holds_it(opened: Callable[..., Model]) -> None:
    import llama_cpp
    from transformers import PreTrainedModel

    assert isinstance(opened("transformers", False).raw, PreTrainedModel)
    assert isinstance(opened("llama.cpp", False).raw, llama_cpp.Llama)
    with pytest.raises(UnsupportedError, match="isolate=False"):
        _ = opened("llama.cpp", True).raw


def test_the_raw_llama_answers_rightly_between_our_own_requests(
    opened: Callable[..., Model],
) -> None:
    model = opened("llama.cpp", False)
    prompt = model.prompt_ids(SUM)
    settings = {"max_tokens": 8, "temperature": 0.0, "repeat_penalty": 1.0}
    before = model.raw.create_completion(prompt, **settings)["choices"][0]["text"]
    expected = model.ask("Hi!", max_tokens=8).text
    after = model.raw.create_completion(prompt, **settings)["choices"][0]["text"]
    assert after == before
    assert model.ask("Hi!", max_tokens=8).text == expected
