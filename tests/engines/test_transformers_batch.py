"""Batches of transformers: what fails as a whole, and models whose caches keep all their rows."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from random_models import random_session

from workbench.messages import Reply, Sampling, as_messages

QUESTIONS = [
    as_messages(text)
    for text in ("Hi.", "What is the capital of France?", "Count to ten, please.", "Tell a story.")
]


def test_a_batch_that_fails_is_gone_before_its_rows_are_tried_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = random_session("llama")
    original, caches, alive = session.step, [], []

    def step(feed: Any, cache: Any, **more: Any) -> Any:
        if len(feed) > 1 and caches:
            raise RuntimeError("CUDA error: something that is not memory")
        if len(feed) == 1:
            gc.collect()
            alive.append(caches[0]() is not None)
        logits, cache = original(feed, cache, **more)
        caches.append(weakref.ref(cache))
        return logits, cache

    monkeypatch.setattr(session, "step", step)
    replies = session.ask_many(QUESTIONS[:2], Sampling(max_tokens=3, ignore_end=True))
    assert [reply.finish_reason for reply in replies] == ["length", "length"]
    assert alive
    assert not any(alive)


@pytest.mark.parametrize("family", ["granitemoehybrid", "gpt_oss"])
def test_rows_that_end_early_are_computed_once(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = random_session(family)
    free = [Reply.joined(session.stream(each, Sampling(max_tokens=12))) for each in QUESTIONS]
    sampling = Sampling(max_tokens=20, stop=tuple(reply.text[6:12] for reply in free[:3]))
    alone = [Reply.joined(session.stream(each, sampling)).token_ids for each in QUESTIONS]
    assert sum(len(ids) < 20 for ids in alone) >= 2
    steps: list[int] = []
    original = session.step

    def step(feed: Any, *given: Any, **more: Any) -> Any:
        steps.append(len(feed))
        return original(feed, *given, **more)

    monkeypatch.setattr(session, "step", step)
    replies = session.ask_many(QUESTIONS, sampling)
    assert [reply.token_ids for reply in replies] == alone
    assert len(steps) == max(map(len, alone))


def test_a_model_whose_first_layers_lie_in_ram_answers_alike() -> None:
    """As accelerate places them beside a GPU that has no room: without memory until they run."""
    import torch
    from accelerate.hooks import attach_align_device_hook_on_blocks, remove_hook_from_submodules

    session = random_session("llama")
    sampling = Sampling(max_tokens=6, ignore_end=True)
    expected = [Reply.joined(session.stream(each, sampling)).token_ids for each in QUESTIONS]
    parts = ("model.embed_tokens", "model.layers", "model.norm", "lm_head")
    attach_align_device_hook_on_blocks(
        session.raw,
        execution_device={"": "cpu", **dict.fromkeys(parts, "cpu")},
        offload={name: name == "model.embed_tokens" for name in parts},
        weights_map=dict(session.raw.state_dict()),
    )
    try:
        assert session.raw.device.type == "meta"
        assert session.device == torch.device("cpu")
        found = [Reply.joined(session.stream(each, sampling)).token_ids for each in QUESTIONS]
        assert found == expected
        assert [each.token_ids for each in session.ask_many(QUESTIONS, sampling)] == expected
    finally:
        remove_hook_from_submodules(session.raw)  # other tests share the model
    assert session.raw.device.type == "cpu"
