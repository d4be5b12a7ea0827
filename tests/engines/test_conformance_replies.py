"""Conformance: greedy replies, streams, stop strings, limits and batches are alike everywhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conformance import (
    ENDS,
    QUESTIONS,
    SUM,
    SUMS,
    TALK,
    Form,
    greedy,
    ids_of,
    needs,
    same_or_near,
    without,
)
from engine_models import SCRIPT

from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.messages import Sampling

STORY = "Tell me a story."
SCRIPTED_SAYS = "A script has no weights: what it says is checked by its own tests."


def visible(model: Model, ids: tuple[int, ...]) -> str:
    """The text of ids by the engine's own bytes, control tokens left out."""
    control = {256} if model.plan.engine == "scripted" else {0, 1, 2}
    data = b"".join(model.detokenize([index]) for index in ids if index not in control)
    return data.decode("utf-8", "replace")


@without("transformers", because="It is the reference.")
@without("scripted", because=SCRIPTED_SAYS)
def test_greedy_replies_are_those_of_the_reference(
    each: Model, reference: Model, form: Form
) -> None:
    parted = 0
    for conversation in (*QUESTIONS, *SUMS[:4], TALK):
        ours, theirs = (greedy(model, conversation, 24) for model in (reference, each))
        prompt = reference.prompt_ids(conversation)
        if not same_or_near(reference, prompt, ours, theirs, form.gap):
            parted += 1
            continue
        one, other = (model.ask(conversation, max_tokens=24) for model in (reference, each))
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        assert one.usage == other.usage
    assert parted <= 3, "most replies are the same"


def test_greedy_is_the_best_token_each_time(real: Model) -> None:
    prompt = real.prompt_ids(SUM)
    reply = real.ask(SUM, max_tokens=20)
    table = real.log_probabilities([*prompt, *reply.token_ids])
    best = table[len(prompt) - 1 :].argmax(-1)
    assert tuple(best.tolist()) == reply.token_ids


def test_streamed_pieces_equal_the_whole_reply(each: Model) -> None:
    for question in (SUM, "Greet.", "How do you say cat in Japanese?", STORY):
        streamed = list(each.stream(question, max_tokens=32))
        whole = each.ask(question, max_tokens=32)
        assert whole.text
        assert "".join(piece.text for piece in streamed) == whole.text
        ids = tuple(piece.token_id for piece in streamed if piece.token_id is not None)
        assert ids == whole.token_ids
        *early, last = streamed
        assert all(piece.finish_reason is None and piece.usage is None for piece in early)
        assert last.finish_reason == whole.finish_reason
        assert last.usage == whole.usage


def test_text_is_the_bytes_of_its_ids(model: Model) -> None:
    for question in (SUM, "Greet.", "How do you say cat in Japanese?"):
        whole = model.ask(question, max_tokens=40)
        assert visible(model, whole.token_ids) == whole.text


def test_every_character_arrives_whole(each: Model) -> None:
    found = ""
    for question in (
        "「犬」は英語で何ですか？",
        "こんにちは",
        "How do you say cat in Japanese?",
        "Greet.",
    ):
        for piece in each.stream(question, max_tokens=60):
            assert "\ufffd" not in piece.text
            found += piece.text
    assert any(ord(letter) > 0x3000 for letter in found), "something was Japanese"


def test_random_tokens_never_show_what_the_whole_does_not_have(real: Model) -> None:
    for seed in range(4):
        hot = Sampling(max_tokens=120, temperature=50.0, seed=seed)
        streamed = list(real.complete("あ", hot))
        ids = tuple(piece.token_id for piece in streamed if piece.token_id is not None)
        assert "".join(piece.text for piece in streamed) == visible(real, ids)
        assert len(set(ids)) > 1


def test_the_last_piece_tells_usage_and_timings(each: Model, form: Form) -> None:
    *_, last = each.stream(SUM, max_tokens=40)
    assert last.finish_reason == "stop"
    assert last.usage is not None
    assert last.timings is not None
    assert last.usage.prompt_tokens == len(each.prompt_ids(SUM))
    known = len(each.ask(SUM, max_tokens=40).token_ids)
    assert last.usage.completion_tokens == known or not known
    assert 0 < last.timings.ttft <= last.timings.total


@without("scripted", because="A script has no end tokens that it could show.")
def test_an_end_token_ends_the_reply_and_is_no_text(each: Model) -> None:
    reply = each.ask(SUM, max_tokens=40)
    assert reply.finish_reason == "stop"
    assert "<|" not in reply.text
    assert not ENDS & set(reply.token_ids[:-1])
    assert reply.usage is not None
    assert reply.usage.completion_tokens < 40


def test_every_end_token_of_the_model_ends_it(here: Model) -> None:
    ends = here._session.ends
    assert [index for index in range(2816) if index in ends] == sorted(ENDS)


def test_max_tokens_cuts_the_same_reply(each: Model) -> None:
    whole, cut = each.ask(SUM, max_tokens=40), each.ask(SUM, max_tokens=3)
    assert cut.finish_reason == "length"
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 3
    assert whole.text.startswith(cut.text)
    assert whole.token_ids[: len(cut.token_ids)] == cut.token_ids


def test_a_stop_string_ends_the_reply_and_nothing_of_it_is_shown(each: Model) -> None:
    question = "Count." if each.plan.engine == "scripted" else STORY
    whole = each.ask(question, max_tokens=24).text
    pieces = [piece.text for piece in each.stream(question, max_tokens=24)]
    border = len("".join(pieces[:4]))
    places = [(0, 1), (1, 3), (2, 5), (border - 2, 4), (len(whole) - 3, 2)]
    for start, length in places:  # the fourth lies across the border of two tokens
        stop = whole[start : start + length]
        shown = list(each.stream(question, max_tokens=24, stop=(stop, "never said")))
        assert "".join(piece.text for piece in shown) == whole[: whole.index(stop)]
        assert shown[-1].finish_reason == "stop"


def test_a_reply_may_be_empty(each: Model, reference: Model) -> None:
    if each.plan.engine == "scripted":
        empty = each.ask("Nothing.")
    else:
        said = [token for token in reference.ask(SUM, max_tokens=24).token_ids if token not in ENDS]
        pieces = list(each.complete([*reference.prompt_ids(SUM), *said], max_tokens=8))
        assert "".join(piece.text for piece in pieces) == ""
        assert pieces[-1].finish_reason == "stop"
        empty = each.ask(SUM, max_tokens=8, stop=reference.ask(SUM).text[0])
    assert (empty.text, empty.finish_reason) == ("", "stop")
    assert empty.usage is not None


def test_end_tokens_can_be_ignored_to_measure_speed(each: Model) -> None:
    reply = each.ask(SUM, max_tokens=50, ignore_end=True)
    assert reply.finish_reason == "length"
    if each.plan.engine == "scripted":
        assert reply.text == next(rule["say"] for rule in SCRIPT if "regex" in rule)
    else:
        assert reply.usage.completion_tokens == 50


def test_max_tokens_is_cut_to_what_the_context_leaves(real: Model) -> None:
    ids = real.tokenize("One day, a quiet cat found a red ball. " * 300)[:2040]
    ban_the_end = {"temperature": 8.0, "seed": 3}
    reply = list(real.complete(ids, max_tokens=500, **ban_the_end))[-1]
    assert reply.usage is not None
    total = reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert (reply.finish_reason, total) == ("length", 2048) or reply.finish_reason == "stop"
    assert total <= 2048


# Several conversations


def test_many_conversations_are_answered_as_each_alone(
    each: Model, reference: Model, form: Form
) -> None:
    questions = [*QUESTIONS[:5], TALK, *SUMS[:8]]
    singles = [each.ask(question, max_tokens=16) for question in questions]
    batch = each.ask_many(questions, max_tokens=16)
    for question, one, other in zip(questions, singles, batch, strict=True):
        if one.text != other.text and form.tolerance:
            prompt = reference.prompt_ids(question)
            assert not same_or_near(reference, prompt, ids_of(one), ids_of(other), form.gap)
            continue
        assert (one.text, one.usage) == (other.text, other.usage)
    assert {reply.model for reply in batch} == {each.label}


@without("scripted", because="A script has no batches.")
@needs(Power.BATCH)
def test_a_batch_is_answered_by_the_engine(
    each: Model, monkeypatch: pytest.MonkeyPatch, shows: Callable[..., None]
) -> None:
    asked: list[int] = []
    session = each._session
    original = session.ask_many

    def seen(conversations, *more, **named):
        asked.append(len(conversations))
        return original(conversations, *more, **named)

    monkeypatch.setattr(session, "ask_many", seen)
    replies = each.ask_many([SUM, "Hi!", STORY], max_tokens=4)
    assert asked == [3]
    assert [reply.text for reply in replies] == [
        each.ask(question, max_tokens=4).text for question in (SUM, "Hi!", STORY)
    ]
    shows(each, Power.BATCH)


@without("scripted", because="A script answers prompts of any length.")
def test_a_conversation_that_fails_does_not_take_the_others(each: Model) -> None:
    replies = each.ask_many([SUM, "x " * (2 * each.plan.context), "Hi!"], max_tokens=8)
    assert [reply.finish_reason == "error" for reply in replies] == [False, True, False]
    assert str(each.plan.context) in replies[1].error
    assert replies[0].text == each.ask(SUM, max_tokens=8).text


def test_a_batch_that_fails_as_a_whole_is_answered_one_by_one(
    opened: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened("transformers", False)
    questions = [SUM, "Hi!", STORY]
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
