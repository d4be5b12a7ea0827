"""Speed from the timings that a model reports; none of these tests reads a clock."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest

from workbench.engines.base import Power
from workbench.errors import InputError
from workbench.evaluate.speed import Speed, measure_decode, measure_prefill, measure_speed
from workbench.messages import Message, Piece, Sampling, Timings, Usage


class Clocked:
    """Takes 10 ms and 1 ms a prompt token to the first token, then 5 ms a token."""

    def __init__(self, *, exact: bool, longest_reply: int = 1000) -> None:
        self.powers = frozenset({Power.COMPLETE, Power.TOKENIZE}) if exact else frozenset()
        self.longest_reply = longest_reply
        self.prompts: list[tuple[int, ...]] = []
        self.slow_first = True

    def tokenize(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def complete(
        self, prompt: Sequence[int], *, sampling: Sampling | None = None
    ) -> Iterator[Piece]:
        self.prompts.append(tuple(prompt))
        return self._reply(len(prompt), sampling or Sampling())

    def stream(
        self, conversation: Sequence[Message], *, sampling: Sampling | None = None
    ) -> Iterator[Piece]:
        words = conversation[-1].content.split()
        self.prompts.append(tuple(map(hash, words)))
        return self._reply(len(words), sampling or Sampling())

    def _reply(self, prompt: int, sampling: Sampling) -> Iterator[Piece]:
        tokens = min(sampling.max_tokens, self.longest_reply)
        ttft = 0.010 + 0.001 * prompt + (5.0 if self.slow_first else 0.0)
        self.slow_first = False
        usage = Usage(prompt_tokens=prompt, completion_tokens=tokens)
        total = ttft + 0.005 * (tokens - 1)
        timings = Timings.measured(ttft=ttft, total=total, usage=usage)
        yield Piece(text="x", finish_reason="length", usage=usage, timings=timings)


def test_medians_of_fixed_lengths_without_the_warm_up() -> None:
    model = Clocked(exact=True)
    speed = measure_speed(
        model, prompt_lengths=(40, 10), output_tokens=20, repetitions=3, progress=False
    )
    assert [entry.prompt_tokens for entry in speed.prefill] == [10, 40]
    assert speed.ttft.median == pytest.approx(0.020)  # the slow first reply was the warm-up
    assert speed.ttft.count == 3
    assert speed.prefill_rate.median == pytest.approx(40 / 0.050)
    assert speed.decode is not None
    assert speed.decode.median == pytest.approx(200.0)
    assert {len(prompt) for prompt in model.prompts} == {10, 40}


def test_no_two_prompts_in_a_row_begin_alike() -> None:
    model = Clocked(exact=True)
    measure_prefill(model, prompt_lengths=(16, 64), repetitions=4, progress=False)
    pairs = zip(model.prompts, model.prompts[1:], strict=False)
    assert all(a[:4] != b[:4] for a, b in pairs)


def test_short_replies_are_followed_by_others_until_enough_is_decoded() -> None:
    model = Clocked(exact=True, longest_reply=6)
    decode = measure_decode(
        model, prompt_length=8, output_tokens=20, repetitions=2, warmup=0, progress=False
    )
    assert len(model.prompts) == 2 * 4  # five tokens after the first, four times each
    assert decode is not None
    assert decode.median == pytest.approx(200.0)
    mute = Clocked(exact=True, longest_reply=1)
    assert measure_decode(mute, output_tokens=5, progress=False) is None


def test_a_model_without_raw_prompts_is_asked_in_chat() -> None:
    model = Clocked(exact=False)
    entries = measure_prefill(model, prompt_lengths=(30, 300), repetitions=2, progress=False)
    assert entries[1].prompt_tokens == pytest.approx(entries[0].prompt_tokens * 10, rel=0.2)
    assert all(a[:1] != b[:1] for a, b in zip(model.prompts, model.prompts[1:], strict=False))


def test_speed_travels_and_shows_itself() -> None:
    speed = measure_speed(
        Clocked(exact=True), prompt_lengths=(10,), output_tokens=5, progress=False
    )
    assert Speed.from_dict(json.loads(json.dumps(speed.as_dict()))) == speed
    assert "decode" in speed._repr_mimebundle_()["text/plain"]
    with pytest.raises(InputError, match="repetitions must be 1 or more, not 0"):
        measure_speed(Clocked(exact=True), repetitions=0, progress=False)
    with pytest.raises(InputError, match="prompt_lengths"):
        measure_speed(Clocked(exact=True), prompt_lengths=(0, 5), progress=False)
