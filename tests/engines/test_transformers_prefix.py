"""The KV cache of the last turn: reused only where it equals recomputing."""

from __future__ import annotations

from typing import Any

import pytest
from engine_models import open_model
from random_models import FAMILIES, WINDOW, random_session

from workbench.engines.model import Model
from workbench.engines.transformers_session import TransformersSession
from workbench.errors import EngineError
from workbench.messages import Sampling

SLIDING = ("gemma2", "gemma3_text", "gpt_oss", "mistral")
EXTENDED = [name for name in FAMILIES if name not in ("granitemoehybrid", "phi3")]
"""Families whose cache goes on when a prompt only grows."""
TURN = [5, 300, 41, 77, 1200, 9, 2000, 64, 31, 8, 555, 12, 90, 1001, 33, 7, 21, 22, 23, 600]


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each forward pass got."""
    sizes: list[int] = []
    original = TransformersSession.step

    def counted(self: Any, feed: Any, cache: Any, **more: Any) -> Any:
        sizes.append(int(feed.shape[-1]))
        return original(self, feed, cache, **more)

    monkeypatch.setattr(TransformersSession, "step", counted)
    return sizes


def replied(session: TransformersSession, ids: list[int], count: int) -> list[Any]:
    wanted = Sampling(max_tokens=count, ignore_end=True, top_logprobs=3)
    return list(session.complete(ids, wanted))


def check_equal(family: str, turns: list[list[int]]) -> TransformersSession:
    """Every turn's greedy tokens and log-probabilities equal those of a session that keeps none."""
    kept, plain = random_session(family), random_session(family, prefix_reuse=False)
    for ids in turns:
        one, two = replied(kept, ids, 12), replied(plain, ids, 12)
        assert [piece.token_id for piece in one] == [piece.token_id for piece in two]
        for left, right in zip(one, two, strict=True):
            assert left.logprob == pytest.approx(right.logprob, abs=2e-4)
            assert [each.token_id for each in left.top] == [each.token_id for each in right.top]
    return kept


def grown(family: str) -> list[list[int]]:
    """Three turns, each the one before, its reply, and more; longer than every window."""
    plain = random_session(family, prefix_reuse=False)
    turns = [TURN]
    for more in ([50, 60, 70], [80] * 5):
        said = [piece.token_id for piece in replied(plain, turns[-1], 12)]
        turns.append([*turns[-1], *said, *more])
    assert len(turns[-1]) > 2 * WINDOW
    return turns


@pytest.mark.parametrize("family", FAMILIES)
def test_a_growing_conversation_is_answered_as_if_nothing_were_kept(family: str) -> None:
    check_equal(family, grown(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_history_is_answered_as_if_nothing_were_kept(family: str) -> None:
    first, second, third = grown(family)
    changed = [*third[:-4], 1500, 1501]
    check_equal(family, [third, changed, [*first[:18], 4, 5], second, second])


@pytest.mark.parametrize("family", EXTENDED)
def test_only_what_is_new_is_computed(family: str, fed: list[int]) -> None:
    session = random_session(family)
    turns = grown(family)
    for before, ids in zip([None, *turns], turns, strict=False):
        fed.clear()
        replied(session, ids, 12)
        # all but the last sampled token of the turn before is kept
        assert fed[0] == (len(ids) if before is None else len(ids) - len(before) - 11)
        assert fed[1:] == [1] * 11


@pytest.mark.parametrize("family", [name for name in EXTENDED if name not in SLIDING])
def test_full_attention_is_cut_to_what_is_shared(family: str, fed: list[int]) -> None:
    session = random_session(family)
    replied(session, TURN, 12)
    fed.clear()
    replied(session, [*TURN[:17], 9, 9], 2)
    assert fed[0] == 2


@pytest.mark.parametrize("family", SLIDING)
def test_a_window_that_has_moved_on_is_not_cut(family: str, fed: list[int]) -> None:
    session = random_session(family)
    ids = TURN[:17]
    replied(session, ids, 3)  # shorter than the window: nothing is forgotten yet
    fed.clear()
    replied(session, [*ids, 9, 9], 12)
    assert fed[0] == 2
    fed.clear()
    replied(session, [*ids, 9, 8], 2)
    assert fed[0] == 19


def test_recurrent_states_are_computed_anew(fed: list[int]) -> None:
    session = random_session("granitemoehybrid")
    first, second, _ = grown("granitemoehybrid")
    replied(session, first, 12)
    assert session.prefix.tokens == 0
    fed.clear()
    replied(session, second, 1)
    assert fed == [len(second)]


def test_a_rotary_embedding_that_changes_with_the_length_is_computed_anew(fed: list[int]) -> None:
    session = random_session("phi3")
    first, second, third = grown("phi3")
    replied(session, first, 12)
    fed.clear()
    replied(session, second, 12)
    assert fed[0] < len(second) < 64
    long = [*third, *range(100, 120)]
    fed.clear()
    replied(session, long, 1)
    assert fed[0] == len(long) > 64


def test_scores_of_a_hybrid_in_parts_equal_those_of_the_whole() -> None:
    import numpy as np
    import torch

    for family in ("granitemoehybrid", "gemma2", "gpt_oss"):
        session = random_session(family)
        ids = [(7 * at * at + 3 * at) % 2800 + 3 for at in range(700)]
        with torch.inference_mode():
            logits = session.raw(input_ids=torch.tensor([ids])).logits[0]
            logs = torch.log_softmax(logits.float(), -1)[:-1]
        expected = logs.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
        np.testing.assert_allclose(session.score(ids), expected, atol=2e-3, err_msg=family)


def test_the_chat_of_the_embedded_model_is_the_same_and_shorter(fed: list[int]) -> None:
    with (
        open_model("transformers") as kept,
        open_model("transformers", prefix_reuse=False) as not_kept,
    ):
        told: list[dict[str, str]] = []
        for question in (
            "Tell me a story about a cat.",
            "What is 3 + 4?",
            "こんにちは、元気ですか？",
        ):
            told.append({"role": "user", "content": question})
            fed.clear()
            answer = kept.ask(told, max_tokens=40)
            first = fed[0]
            assert not_kept.ask(told, max_tokens=40).token_ids == answer.token_ids
            if len(told) > 1:
                assert first < 40
                assert answer.usage is not None
                assert answer.usage.prompt_tokens > 2 * first
            told.append({"role": "assistant", "content": answer.text})


def test_a_failed_forward_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_model("transformers") as model:
        session = model._session
        question = "Tell me a long story about a cat."
        expected = model.ask(question, max_tokens=20).token_ids
        assert session.prefix.tokens > 20
        for error in (RuntimeError("the arithmetic unit is on fire"), KeyboardInterrupt()):
            forward, calls = session._forward.forward, []

            def broken(*args, error=error, forward=forward, calls=calls, **more):
                calls.append(1)
                found = forward(*args, **more)  # the cache has been written to by then
                if len(calls) == 3:
                    raise error
                return found

            with monkeypatch.context() as patch:
                patch.setattr(session._forward, "forward", broken)
                with pytest.raises((EngineError, KeyboardInterrupt)):
                    model.ask(question, max_tokens=20)
            assert session.prefix.tokens == 0
            assert model.ask(question, max_tokens=20).token_ids == expected


def test_an_unread_stream_keeps_what_it_has_computed(fed: list[int]) -> None:
    with open_model("transformers") as model:
        stream = model.stream("Tell me a long story about a cat.", max_tokens=40)
        for _ in range(5):
            next(stream)
        stream.close()
        length = len(model.prompt_ids("Tell me a long story about a cat."))
        assert model._session.prefix.tokens == length + 4
        fed.clear()
        model.ask("Tell me a long story about a cat.", max_tokens=1)
        assert fed == [1]


def test_batches_scores_and_closing_leave_nothing_kept() -> None:
    model = open_model("transformers")
    session = model._session
    long = "Tell me a long story about a cat and a dog."
    model.ask(long, max_tokens=8)
    assert session.prefix.tokens > 20
    model.ask_many([long, "Hi."], max_tokens=4)
    assert session.prefix.tokens == 0
    model.ask(long, max_tokens=8)
    model.score([5, 6, 7])
    assert session.prefix.tokens == 0
    model.ask(long, max_tokens=8)
    kept: Model = model
    kept.close()
    assert session.prefix.tokens == 0
    session.prefix.keep([1] * 30, object())
    assert session.prefix.tokens == 0
