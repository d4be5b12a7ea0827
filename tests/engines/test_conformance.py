"""What every engine must do alike, in this process and in a child."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from engine_models import AHEAD, SCRIPT, STEP, open_model

from workbench.engines.model import Model
from workbench.errors import (
    ContextLengthError,
    EngineError,
    InputError,
    UnsupportedError,
)
from workbench.messages import Message, Sampling

SUM = "What is 3 + 4?"
LONG = "Count."
ENDS = {0, 2}
"""<|endoftext|> and <|im_end|> of the embedded model."""


def visible(model: Model, ids: tuple[int, ...]) -> str:
    """The text of ids by the engine's own bytes, control tokens left out."""
    data = b"".join(model.detokenize([index]) for index in ids if index not in control(model))
    return data.decode("utf-8", "replace")


def control(model: Model) -> set[int]:
    return {256} if model.plan.engine == "scripted" else {0, 1, 2}


def test_streamed_pieces_equal_the_whole_reply_byte_for_byte(model: Model) -> None:
    for question in (SUM, "Greet.", "How do you say cat in Japanese?", "Tell me a story."):
        streamed = list(model.stream(question, max_tokens=60))
        whole = model.ask(question, max_tokens=60)
        assert whole.text
        assert "".join(piece.text for piece in streamed) == whole.text
        ids = tuple(piece.token_id for piece in streamed if piece.token_id is not None)
        assert ids == whole.token_ids
        assert visible(model, ids) == whole.text


def test_random_tokens_never_show_what_the_whole_does_not_have(real: Model) -> None:
    for seed in range(4):
        hot = Sampling(max_tokens=120, temperature=50.0, seed=seed)
        streamed = list(real.complete("あ", hot))
        ids = tuple(piece.token_id for piece in streamed if piece.token_id is not None)
        assert "".join(piece.text for piece in streamed) == visible(real, ids)
        assert len(set(ids)) > 1


def test_the_last_piece_alone_carries_reason_usage_and_timings(model: Model) -> None:
    *early, last = model.stream(SUM, max_tokens=40)
    assert all(piece.finish_reason is None and piece.usage is None for piece in early)
    assert last.finish_reason == "stop"
    assert last.usage is not None
    assert last.timings is not None
    assert last.usage.prompt_tokens == len(model.prompt_ids(SUM))
    assert last.usage.completion_tokens == len(model.ask(SUM, max_tokens=40).token_ids)
    assert 0 < last.timings.ttft <= last.timings.total


def test_an_end_token_ends_the_reply_and_is_no_text(real: Model) -> None:
    reply = real.ask(SUM, max_tokens=60)
    assert reply.finish_reason == "stop"
    assert reply.token_ids[-1] in ENDS
    assert "<|" not in reply.text
    cut = real.ask(SUM, max_tokens=3)
    assert cut.finish_reason == "length"
    assert cut.token_ids == reply.token_ids[:3]


def test_every_end_token_of_the_model_ends_it(here: Model) -> None:
    ends = here._session.ends
    assert [index for index in range(2816) if index in ends] == sorted(ENDS)


def test_a_stop_string_ends_the_reply_and_nothing_of_it_is_shown(model: Model) -> None:
    whole = model.ask(LONG if model.plan.engine == "scripted" else SUM, max_tokens=60).text
    for start, length in ((0, 1), (1, 3), (2, 5), (len(whole) - 2, 2)):
        stop = whole[start : start + length]
        question = LONG if model.plan.engine == "scripted" else SUM
        shown = [piece.text for piece in model.stream(question, max_tokens=60, stop=(stop,))]
        assert "".join(shown) == whole[: whole.index(stop)]
        assert model.ask(question, max_tokens=60, stop=stop).finish_reason == "stop"


def test_a_closed_stream_stops_the_model_and_leaves_it_usable(model: Model) -> None:
    before = model.ask(SUM, max_tokens=30)
    stream = model.stream("Greet.", max_tokens=60)
    first = next(stream)
    stream.close()
    assert first.finish_reason is None
    assert list(stream) == []
    after = model.ask(SUM, max_tokens=30)
    assert (after.text, after.token_ids) == (before.text, before.token_ids)


def test_closing_stops_between_two_tokens(here: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    session = here._session
    name = STEP[here.plan.engine]
    steps, original = [], getattr(session, name)

    def counted(*args, **more):
        steps.append(1)
        return original(*args, **more)

    monkeypatch.setattr(session, name, counted)
    stream = here.stream("Tell me a story.", max_tokens=60)
    for _ in range(3):
        next(stream)
    stream.close()
    # the prompt and two tokens, and what the engine computes ahead
    assert len(steps) == 3 + AHEAD[here.plan.engine]


def test_an_exception_in_the_engine_reaches_the_reader(
    here: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = here._session
    name = STEP[here.plan.engine]
    original, steps = getattr(session, name), []

    def breaking(*args, **more):
        steps.append(1)
        if len(steps) == 4:
            raise RuntimeError("the arithmetic unit is on fire")
        return original(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(session, name, breaking)
        shown = []
        with pytest.raises(EngineError, match="arithmetic unit is on fire") as caught:
            shown.extend(here.stream("Tell me a story.", max_tokens=60))
    assert len(shown) == 3 - AHEAD[here.plan.engine]
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert here.ask(SUM, max_tokens=30).finish_reason == "stop"


def test_an_exception_in_a_child_reaches_the_reader(opened: Callable[..., Model]) -> None:
    for isolated in (False, True):
        scripted = opened("scripted", isolated)
        shown = []
        with pytest.raises(EngineError, match="broke on purpose"):
            shown.extend(piece.text for piece in scripted.stream("Fail."))
        assert "".join(shown) == "as far as here"
        assert scripted.ask("Greet.").finish_reason == "stop"


def test_scores_are_the_log_probabilities_of_the_ids(real: Model) -> None:
    ids = real.tokenize("The cat is small. 猫は小さい。 3 + 4 = 7") * 3
    scores, table = real.score(ids), real.log_probabilities(ids)
    assert scores.dtype == table.dtype == np.float32
    assert scores.shape == (len(ids) - 1,)
    assert table.shape == (len(ids) - 1, 2816)
    np.testing.assert_allclose(scores, table[np.arange(len(ids) - 1), ids[1:]], atol=1e-6)
    np.testing.assert_allclose(np.exp(table.astype(np.float64)).sum(-1), 1, atol=1e-4)


def test_scores_of_both_engines_agree(opened: Callable[..., Model]) -> None:
    one, two = opened("transformers", False), opened("llama.cpp", False)
    text = "A happy cat lived in a house. What is 12 + 7? 12 + 7 = 19 こんにちは。" * 24
    ids = one.tokenize(text)
    assert len(ids) > 600  # more than one batch in both engines
    assert two.tokenize(text) == ids
    first, second = one.score(ids), two.score(ids)
    assert np.abs(first - second).max() < 5e-3
    assert np.abs(first - second).mean() < 2e-4
    left, right = one.log_probabilities(ids), two.log_probabilities(ids)
    divergence = (np.exp(left.astype(np.float64)) * (left - right)).sum(-1)
    assert divergence.mean() < 2e-6
    assert (left.argmax(-1) == right.argmax(-1)).mean() > 0.998


def test_scoring_in_parts_equals_scoring_a_prefix(real: Model) -> None:
    ids = real.tokenize("One day, a quiet cat found a red ball in the old garden. " * 60)[:700]
    np.testing.assert_allclose(real.score(ids)[:99], real.score(ids[:100]), atol=2e-3)


def test_one_id_has_nothing_to_score(real: Model) -> None:
    assert real.score([5]).shape == (0,)
    assert real.log_probabilities([5]).shape == (0, 2816)


def test_greedy_is_the_best_token_each_time(real: Model) -> None:
    prompt = real.prompt_ids(SUM)
    reply = real.ask(SUM, max_tokens=20)
    table = real.log_probabilities([*prompt, *reply.token_ids])
    best = table[len(prompt) - 1 :].argmax(-1)
    assert tuple(best.tolist()) == reply.token_ids


def test_sampling_repeats_with_a_seed_and_differs_without(real: Model) -> None:
    story = "Tell me a story."
    hot = {"temperature": 1.5, "max_tokens": 24}
    one, again = real.ask(story, seed=7, **hot), real.ask(story, seed=7, **hot)
    assert one.token_ids == again.token_ids
    others = {real.ask(story, seed=seed, **hot).token_ids for seed in range(5)}
    assert len(others) > 1
    assert len({real.ask(story, **hot).token_ids for _ in range(6)}) > 1


def test_top_k_of_one_and_a_tiny_top_p_are_greedy(real: Model) -> None:
    greedy = real.ask(SUM, max_tokens=12).token_ids
    for settings in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-4}):
        sampling = {"temperature": 3.0, "seed": 1, **settings}
        assert real.ask(SUM, max_tokens=12, **sampling).token_ids == greedy


def test_sampling_follows_the_probabilities(real: Model) -> None:
    prompt = real.prompt_ids("Tell me a story.")
    best = int(real.log_probabilities([*prompt, 0])[-1].argmax())
    share = float(np.exp(real.log_probabilities([*prompt, 0])[-1][best]))
    drawn = [
        next(iter(real.complete(prompt, max_tokens=1, temperature=1.0, seed=seed))).token_id
        for seed in range(150)
    ]
    found = drawn.count(best) / len(drawn)
    assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / len(drawn)) + 0.01


def test_repetition_penalty_counts_the_prompt_alike(opened: Callable[..., Model]) -> None:
    questions = [SUM, "Tell me a story.", "Say: a a a a a a"]
    found = {}
    for penalty in (1.0, 4.0):
        settings = {"max_tokens": 16, "repetition_penalty": penalty}
        one, two = (
            [opened(name, False).ask(question, **settings).token_ids for question in questions]
            for name in ("transformers", "llama.cpp")
        )
        assert one == two
        found[penalty] = one
    assert found[1.0] != found[4.0]


def test_batched_replies_equal_single_ones(real: Model) -> None:
    questions = [
        SUM,
        "How do you say cat in Japanese?",
        "Tell me a story.",
        [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."},
         {"role": "user", "content": "Who are you? Tell me in one sentence, please."}],
        "こんにちは",
        *[f"What is {number} + 5?" for number in range(14)],
    ]  # fmt: skip
    singles = [real.ask(question, max_tokens=30) for question in questions]
    batch = real.ask_many(questions, max_tokens=30)
    assert [reply.token_ids for reply in batch] == [reply.token_ids for reply in singles]
    assert [reply.text for reply in batch] == [reply.text for reply in singles]
    assert [reply.usage for reply in batch] == [reply.usage for reply in singles]
    assert {reply.model for reply in batch} == {real.label}


def test_sampled_batches_equal_single_ones_with_a_seed(here: Model) -> None:
    questions = [SUM, "Tell me a story.", "Hi!"]
    settings = {"max_tokens": 12, "temperature": 0.9, "top_p": 0.9, "seed": 11, "stop": "."}
    singles = [here.ask(question, **settings).text for question in questions]
    assert [reply.text for reply in here.ask_many(questions, **settings)] == singles


def test_a_conversation_that_fails_does_not_take_the_others(real: Model) -> None:
    replies = real.ask_many([SUM, "x " * 4000, "Hi!"], max_tokens=8)
    assert [reply.finish_reason == "error" for reply in replies] == [False, True, False]
    assert "2048" in replies[1].error
    assert replies[0].text == real.ask(SUM, max_tokens=8).text


def test_prompts_longer_than_the_context_are_refused_with_both_numbers(real: Model) -> None:
    ids = [445] * 3000
    for refused in (
        lambda: next(iter(real.complete(ids, max_tokens=1))),
        lambda: real.score(ids),
        lambda: real.log_probabilities(ids),
    ):
        with pytest.raises(ContextLengthError, match=r"3000.*2048"):
            refused()
    with pytest.raises(ContextLengthError, match=r"2048 tokens.*2048"):
        next(iter(real.complete(ids[:2048], max_tokens=1)))


def test_max_tokens_is_cut_to_what_the_context_leaves(real: Model) -> None:
    ids = real.tokenize("One day, a quiet cat found a red ball. " * 300)[:2040]
    ban_the_end = {"temperature": 8.0, "seed": 3}
    reply = list(real.complete(ids, max_tokens=500, **ban_the_end))[-1]
    assert reply.usage is not None
    total = reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert (reply.finish_reason, total) == ("length", 2048) or reply.finish_reason == "stop"
    assert total <= 2048


def test_ids_outside_the_vocabulary_are_refused(real: Model) -> None:
    for ids in ([1, 99_999], [-1, 5]):
        with pytest.raises(InputError, match="vocabulary"):
            real.score(ids)
        with pytest.raises(InputError, match="vocabulary"):
            next(iter(real.complete(ids)))
    with pytest.raises(InputError, match="no token ids"):
        real.score([])
    with pytest.raises(InputError, match="prompt is empty"):
        next(iter(real.complete([])))


def test_ids_and_bytes_are_exact(model: Model) -> None:
    for text in ("plain", "猫🐈‍⬛ é", "  two  blanks\n\n", "a\tb\x00c", "12345 + 67", ""):
        ids = model.tokenize(text)
        assert model.detokenize(ids) == text.encode()
        assert all(isinstance(index, int) for index in ids)


def test_special_tokens_in_text_are_parsed_and_none_is_added(real: Model) -> None:
    assert real.tokenize("<|im_start|>user") == [1, *real.tokenize("user")]
    assert real.detokenize([1, 2, 0]) == b"<|im_start|><|im_end|><|endoftext|>"
    assert real.detokenize([10**6, -5]) == b""


def test_the_prompt_is_what_the_template_writes(real: Model) -> None:
    turns = [Message("system", "Be brief."), Message("user", SUM)]
    text = real.render(turns)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert not real.render(turns, add_generation_prompt=False).endswith("assistant\n")
    assert real.prompt_ids(turns) == real.tokenize(text)


def test_a_raw_prompt_is_continued_like_the_same_ids(real: Model) -> None:
    text = real.render(SUM)
    by_text = [piece.token_id for piece in real.complete(text, max_tokens=10)]
    by_ids = [piece.token_id for piece in real.complete(real.prompt_ids(SUM), max_tokens=10)]
    assert by_text == by_ids == list(real.ask(SUM, max_tokens=10).token_ids)


def test_a_power_that_is_lacking_names_the_engines_that_have_it(
    opened: Callable[..., Model],
) -> None:
    for isolated in (False, True):
        with pytest.raises(UnsupportedError, match=r"cannot score.*transformers, llama\.cpp"):
            opened("scripted", isolated).score([1, 2])


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


def test_wrong_arguments_are_refused_before_anything_runs(model: Model) -> None:
    with pytest.raises(InputError, match="Did you mean 'temperature'"):
        model.stream(SUM, temperatur=1)
    with pytest.raises(InputError, match="role"):
        model.ask([{"role": "robot", "content": "x"}])
    with pytest.raises(InputError, match="max_tokens"):
        model.ask(SUM, max_tokens=0)
    assert model.ask(SUM, Sampling(max_tokens=2)).finish_reason == "length"
    assert len(model.ask(SUM, Sampling(max_tokens=9), max_tokens=1).token_ids) == 1


# One request at a time


def test_the_same_thread_gets_an_error_instead_of_waiting_for_itself(model: Model) -> None:
    stream = model.stream(SUM, max_tokens=60)
    next(stream)
    with pytest.raises(EngineError, match="busy"):
        model.ask(SUM, max_tokens=3)
    assert model.tokenize("meanwhile")  # needs no turn
    rest = list(stream)
    assert rest[-1].finish_reason == "stop"
    assert model.ask(SUM, max_tokens=3).text


def test_another_thread_waits_for_its_turn(model: Model) -> None:
    expected = model.ask(SUM, max_tokens=30).text
    found: list[str] = []
    stream = model.stream(SUM, max_tokens=30)
    next(stream)
    thread = threading.Thread(target=lambda: found.append(model.ask(SUM, max_tokens=30).text))
    thread.start()
    time.sleep(0.05)
    assert found == []
    for _ in stream:
        pass
    thread.join(60)
    assert found == [expected]


def test_stop_ends_a_stream_that_nobody_reads(model: Model) -> None:
    abandoned = model.stream("Greet.", max_tokens=60)
    next(abandoned)
    model.stop()
    assert model.ask(SUM, max_tokens=3).text
    assert [piece.finish_reason for piece in abandoned] == ["cancelled"]


def test_closing_ends_a_stream_of_another_thread() -> None:
    for isolate in (False, True):
        model = open_model("scripted", isolate=isolate, script="a " * 500, tokens_per_second=100)
        stream = model.stream("x", max_tokens=1000)
        reasons: list[str | None] = []
        began = threading.Event()

        def read() -> None:
            for piece in stream:  # noqa: B023
                reasons.append(piece.finish_reason)  # noqa: B023
                began.set()  # noqa: B023

        thread = threading.Thread(target=read)
        thread.start()
        assert began.wait(60)
        model.close()
        thread.join(60)
        assert not thread.is_alive()
        assert reasons[-1] == "cancelled"
        assert len(reasons) < 1000


def test_a_batch_that_fails_as_a_whole_is_answered_one_by_one(
    opened: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened("transformers", False)
    questions = [SUM, "Hi!", "Tell me a story."]
    expected = [model.ask(question, max_tokens=8).text for question in questions]
    session, sizes = model._session, []
    original = session.step

    def small_only(feed, cache, **more):
        sizes.append(len(feed))
        if len(feed) > 1 and len(sizes) > 2:
            raise MemoryError("too many rows")
        return original(feed, cache, **more)

    monkeypatch.setattr(session, "step", small_only)
    assert [reply.text for reply in model.ask_many(questions, max_tokens=8)] == expected
    assert max(sizes) == 3

    def never(feed, cache, **more):
        raise MemoryError("no rows at all")

    monkeypatch.setattr(session, "step", never)
    replies = model.ask_many(questions, max_tokens=8)
    assert [(reply.finish_reason, reply.error) for reply in replies] == [
        ("error", "no rows at all")
    ] * 3


def test_end_tokens_can_be_ignored_to_measure_speed(model: Model) -> None:
    reply = model.ask(SUM, max_tokens=50, ignore_end=True)
    if model.plan.engine == "scripted":
        assert reply.text == SCRIPT[3]["say"]
    else:
        assert len(reply.token_ids) == 50
    assert reply.finish_reason == "length"


def test_stop_ends_a_stream_of_another_thread(opened: Callable[..., Model]) -> None:
    model = opened("transformers", False)
    reasons: list[str | None] = []
    began = threading.Event()

    def read() -> None:
        for piece in model.complete([5, 6, 7], max_tokens=2000, temperature=9.0, seed=1):
            began.set()
            reasons.append(piece.finish_reason)

    original = model._session.ends
    model._session.ends = frozenset()  # so that it would go on to the end of the context
    try:
        thread = threading.Thread(target=read)
        thread.start()
        assert began.wait(60)
        model.stop()
        thread.join(60)
    finally:
        model._session.ends = original
    assert not thread.is_alive()
    assert reasons[-1] == "cancelled"
    assert len(reasons) < 2000
    assert model.ask(SUM, max_tokens=3).text
