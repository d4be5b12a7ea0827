"""The KV cache between turns in llama.cpp: only what is new is prefilled, and nothing changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_models import open_model
from random_gguf import random_gguf

import workbench as wb
from workbench.engines.llama_cpp_cache import KeptPrefix
from workbench.engines.model import Model
from workbench.errors import InputError

STORY = "Tell me a story."


@pytest.fixture(scope="module")
def models() -> Iterator[tuple[Model, Model]]:
    """One that keeps its cache, and one that computes everything anew."""
    kept, plain = open_model("llama.cpp"), open_model("llama.cpp", prefix_reuse=False)
    yield kept, plain
    kept.close()
    plain.close()


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompt tokens were reused, for each request."""
    found: list[int] = []
    original = KeptPrefix.take

    def taken(self: KeptPrefix, ids: Any) -> int:
        found.append(original(self, ids))
        return found[-1]

    monkeypatch.setattr(KeptPrefix, "take", taken)
    return found


def answers(model: Model, ids: list[int], count: int = 12) -> tuple[int, ...]:
    pieces = list(model.complete(ids, max_tokens=count, ignore_end=True))
    return tuple(piece.token_id for piece in pieces if piece.token_id is not None)


def turns(model: Model) -> list[list[int]]:
    """Prompts of a talk: grown, cut in the middle, unrelated, the same again, a part of it."""
    first = model.prompt_ids(STORY)
    long = [*first, *model.tokenize(" One day, a quiet cat found a red ball." * 60)]
    return [first, long, [*long, 5, 6, 7], [*long[:200], 9, 9, 9], [7, 8, 9], [7, 8, 9], [7, 8]]


def test_what_is_reused_equals_what_is_computed_token_by_token(
    models: tuple[Model, Model], fed: list[int]
) -> None:
    kept, plain = models
    prompts = turns(plain)
    found = [answers(kept, ids) for ids in prompts]
    reused, shared = list(fed), [len(prompts[0]), len(prompts[1]), 200, 0, 2, 1]
    assert found == [answers(plain, ids) for ids in prompts]
    assert reused[1:] == shared
    assert fed[len(prompts) :] == [0] * len(prompts)


def test_a_second_turn_prefills_only_what_is_new(
    models: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch, fed: list[int]
) -> None:
    kept, plain = models
    talk: list[dict[str, str]] = [{"role": "user", "content": STORY}]
    said = kept.ask(talk, max_tokens=40)
    first = len(plain.prompt_ids(talk))
    talk += [{"role": "assistant", "content": said.text}, {"role": "user", "content": "Again!"}]
    sizes: list[int] = []
    original = kept._session._decode
    monkeypatch.setattr(
        kept._session, "_decode", lambda batch: (sizes.append(batch.n_tokens), original(batch))
    )
    again = kept.ask(talk, max_tokens=20)
    whole = plain.prompt_ids(talk)
    assert fed[1] >= first + len(said.token_ids) - 1
    assert sizes[0] == len(whole) - fed[1] < len(whole) // 2
    assert again.token_ids == plain.ask(talk, max_tokens=20).token_ids


def test_an_interrupted_or_failed_turn_leaves_nothing_wrong(
    models: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, plain = models
    prompt = plain.prompt_ids(STORY)
    stream = kept.complete(prompt, max_tokens=30)
    for _ in range(4):
        next(stream)
    stream.close()
    expected = answers(plain, [*prompt, 77, 78])
    assert answers(kept, [*prompt, 77, 78]) == expected

    original, steps = kept._session._decode, []

    def breaking(batch: Any) -> None:
        steps.append(1)
        if len(steps) == 3:
            original(batch)  # the cache has the token, yet nobody was told
            raise KeyboardInterrupt
        original(batch)

    with monkeypatch.context() as patch:
        patch.setattr(kept._session, "_decode", breaking)
        with pytest.raises(KeyboardInterrupt):
            answers(kept, prompt)
    assert answers(kept, [*prompt, 77, 78]) == expected


def test_scoring_between_two_turns_changes_nothing(models: tuple[Model, Model]) -> None:
    kept, plain = models
    prompt = plain.prompt_ids(STORY)
    answers(kept, prompt)
    kept.score([1, 2, 3, 4])
    assert answers(kept, [*prompt, 40]) == answers(plain, [*prompt, 40])


def test_the_raw_object_ends_the_reuse(fed: list[int]) -> None:
    with open_model("llama.cpp") as model:
        answers(model, [5, 6, 7, 8])
        model.raw.eval([1, 2, 3])
        found = answers(model, [5, 6, 7, 8, 9])
        assert fed == [0, 0]
        assert answers(model, [5, 6, 7, 8, 9]) == found


def test_the_switch_is_a_truth_value() -> None:
    with pytest.raises(InputError, match="prefix_reuse is True or False"):
        open_model("llama.cpp", prefix_reuse="no")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3_text", "mamba"])
def test_where_the_cache_cannot_be_cut_all_is_computed_anew(
    family: str, tmp_path: Path, fed: list[int]
) -> None:
    """A sliding window loses what lies before it; a recurrent state has no positions at all."""
    path = random_gguf(family, tmp_path)
    settings: dict[str, Any] = {"threads": 1, "context": 1024, "swa_full": False, "n_batch": 32}
    with (
        wb.load(path, **settings) as kept,
        wb.load(path, **settings, prefix_reuse=False) as plain,
    ):
        first = list(range(10, 300))
        prompts = [first]
        prompts.append([*first, *answers(plain, first), 41, 42])  # grown: goes on
        prompts.append([*first[:20], 9])  # cut far back: lost
        prompts.append([*first[:20], 9, *range(30, 60)])
        found = [answers(kept, ids) for ids in prompts]
        reused = list(fed[1:5])
        assert found == [answers(plain, ids) for ids in prompts]
    goes_on = [0, len(prompts[1]) - 3, 0, 21]
    assert reused == ([0] * 4 if family == "mamba" else goes_on)


def test_counting_what_is_loaded_leaves_the_reuse_alone(
    models: tuple[Model, Model], fed: list[int]
) -> None:
    kept, _ = models
    kept.ask(STORY, max_tokens=2)
    assert "tiny-chat" in repr(wb.loaded())
    kept.ask(STORY, max_tokens=2)
    assert fed[1] > 0
    assert kept.raw is not None  # whoever has it may write into the cache
    kept.ask(STORY, max_tokens=2)
    assert fed[2] == 0
