"""Speed of one loaded model: TTFT, prefill and decode tokens per second, medians with spread."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from workbench.engines.base import Power
from workbench.errors import InputError
from workbench.evaluate.statistics import Spread, spread
from workbench.figures import Table
from workbench.messages import Message, Piece, Reply, Sampling
from workbench.progress import progress as show_progress

PROMPT_LENGTHS = (32, 256)
"""Tokens of the prompts: the shortest gives TTFT, the longest the prefill rate."""
OUTPUT_TOKENS = 64
"""Tokens decoded in one repetition."""
_MOST_REPLIES = 16
_FILLER = (
    "The station clock showed nine when the last train came in, and the rain had stopped. "
    "駅の時計は九時をさし、雨はもうやんでいました。"
    "A boy with a green bag asked for the way to the harbour; nobody there knew it. "
    "港への道を知っている人は、そこにはいませんでした。"
)


class Measured(Protocol):
    """The part of a model that is needed here; ``tokenize`` and ``complete`` where it has them."""

    powers: frozenset[Power]

    def stream(
        self, conversation: Sequence[Message], *, sampling: Sampling | None = None
    ) -> Iterator[Piece]:
        """Yield the reply in pieces."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text."""
        ...

    def complete(
        self, prompt: Sequence[int], *, sampling: Sampling | None = None
    ) -> Iterator[Piece]:
        """Continue token ids."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """What one prompt length costs.

    Attributes:
        prompt_tokens: Length of the prompt, as the engine counted it.
        ttft: Time to first token in seconds.
        tokens_per_second: Prompt tokens / TTFT.
    """

    prompt_tokens: int
    ttft: Spread
    tokens_per_second: Spread


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Speed of one model; displays itself as a table.

    Attributes:
        prefill: One entry a prompt length, shortest first.
        decode: Decode tokens per second, or None where every reply ended at its first token.
        output_tokens: Tokens decoded in one repetition.
    """

    prefill: tuple[Prefill, ...]
    decode: Spread | None
    output_tokens: int

    @property
    def ttft(self) -> Spread:
        """Time to first token in seconds, of the shortest prompt."""
        return self.prefill[0].ttft

    @property
    def prefill_rate(self) -> Spread:
        """Prefill tokens per second, of the longest prompt."""
        return self.prefill[-1].tokens_per_second

    def as_dict(self) -> dict[str, Any]:
        """Return plain data; ``from_dict`` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Speed:
        """Return the speed that ``as_dict`` made plain."""
        decode = values["decode"]
        return cls(
            prefill=tuple(
                Prefill(
                    prompt_tokens=entry["prompt_tokens"],
                    ttft=Spread(**entry["ttft"]),
                    tokens_per_second=Spread(**entry["tokens_per_second"]),
                )
                for entry in values["prefill"]
            ),
            decode=Spread(**decode) if decode else None,
            output_tokens=values["output_tokens"],
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        rows = []
        for entry in self.prefill:
            where = f"prompt of {entry.prompt_tokens} tokens"
            rows.append(_line(f"TTFT, {where}", entry.ttft, 1000, "ms"))
            rows.append(_line(f"prefill, {where}", entry.tokens_per_second, 1, "tokens/s"))
        if self.decode is not None:
            rows.append(_line("decode", self.decode, 1, "tokens/s"))
        return Table(rows)._repr_mimebundle_()


def _line(name: str, value: Spread, scale: float, unit: str) -> dict[str, Any]:
    return {
        "measure": name,
        "median": value.median * scale,
        "first quartile": value.low * scale,
        "third quartile": value.high * scale,
        "unit": unit,
        "repetitions": value.count,
    }


def measure_speed(
    model: Measured,
    *,
    prompt_lengths: Sequence[int] = PROMPT_LENGTHS,
    output_tokens: int = OUTPUT_TOKENS,
    repetitions: int = 3,
    warmup: int = 1,
    progress: bool = True,
) -> Speed:
    """Measure TTFT, prefill and decode of one loaded model, one request at a time.

    No two prompts begin alike, so that an engine's prefix cache does not flatter the prefill.

    Args:
        model: A loaded model.
        prompt_lengths: Tokens of the prompts; without the power COMPLETE only nearly so.
        output_tokens: Tokens to decode in one repetition; short replies are followed by others.
        repetitions: Measured repetitions of each length, 1 or more.
        warmup: Repetitions before those, not counted.
        progress: Show a bar.

    Raises:
        InputError: A length or a count is below 1.
    """
    return Speed(
        prefill=measure_prefill(
            model,
            prompt_lengths=prompt_lengths,
            repetitions=repetitions,
            warmup=warmup,
            progress=progress,
        ),
        decode=measure_decode(
            model,
            prompt_length=min(prompt_lengths),
            output_tokens=output_tokens,
            repetitions=repetitions,
            warmup=warmup,
            progress=progress,
        ),
        output_tokens=output_tokens,
    )


def measure_prefill(
    model: Measured,
    *,
    prompt_lengths: Sequence[int] = PROMPT_LENGTHS,
    repetitions: int = 3,
    warmup: int = 1,
    progress: bool = True,
) -> tuple[Prefill, ...]:
    """Measure the time to the first token of prompts of fixed lengths; arguments as above."""
    _require(prompt_lengths=min(prompt_lengths, default=0), repetitions=repetitions)
    found = []
    prompts = _Prompts(model)
    total = len(prompt_lengths) * (warmup + repetitions)
    with show_progress("Prefill", total=total, quiet=None if progress else True) as bar:
        for length in sorted(prompt_lengths):
            replies = []
            for _ in range(warmup + repetitions):
                replies.append(prompts.reply(length, max_tokens=1))
                bar.advance()
            found.append(_prefill(length, replies[warmup:]))
    return tuple(found)


def _prefill(length: int, replies: Sequence[Reply]) -> Prefill:
    times = [reply.timings.ttft for reply in replies if reply.timings]
    counts = [reply.usage.prompt_tokens if reply.usage else length for reply in replies]
    ttft = spread(times)
    rate = spread(
        [count / seconds for count, seconds in zip(counts, times, strict=True) if seconds]
    )
    if ttft is None or rate is None:
        raise InputError("This engine reports no timings, so its speed cannot be measured.")
    return Prefill(
        prompt_tokens=sorted(counts)[len(counts) // 2], ttft=ttft, tokens_per_second=rate
    )


def measure_decode(
    model: Measured,
    *,
    prompt_length: int = PROMPT_LENGTHS[0],
    output_tokens: int = OUTPUT_TOKENS,
    repetitions: int = 3,
    warmup: int = 1,
    progress: bool = True,
) -> Spread | None:
    """Measure decode tokens per second: tokens after the first / time after the first."""
    _require(prompt_length=prompt_length, output_tokens=output_tokens, repetitions=repetitions)
    prompts = _Prompts(model)
    rates = []
    with show_progress(
        "Decode", total=warmup + repetitions, quiet=None if progress else True
    ) as bar:
        for _ in range(warmup + repetitions):
            rates.append(_decode_rate(prompts, prompt_length, output_tokens))
            bar.advance()
    return spread([rate for rate in rates[warmup:] if rate is not None])


def _decode_rate(prompts: _Prompts, length: int, wanted: int) -> float | None:
    """Decode ``wanted`` tokens; a reply that ends early is followed by another one."""
    tokens, seconds = 0, 0.0
    for _ in range(_MOST_REPLIES):
        reply = prompts.reply(length, max_tokens=wanted - tokens + 1)
        if reply.usage and reply.timings and reply.usage.completion_tokens > 1:
            tokens += reply.usage.completion_tokens - 1
            seconds += reply.timings.total - reply.timings.ttft
        if tokens >= wanted:
            break
    return tokens / seconds if tokens and seconds > 0 else None


class _Prompts:
    """Makes prompts of a fixed length, each beginning differently, and asks them."""

    def __init__(self, model: Measured) -> None:
        self._model = model
        self._asked = 0
        exact = {Power.COMPLETE, Power.TOKENIZE} <= model.powers
        self._ids = model.tokenize(_FILLER) if exact else []

    def reply(self, length: int, *, max_tokens: int) -> Reply:
        sampling = Sampling(max_tokens=max_tokens)
        self._asked += 1
        if self._ids:
            ids = _repeated(self._ids, length, start=self._asked * 7)
            return Reply.joined(self._model.complete(ids, sampling=sampling))
        words = (f"{self._asked}. {_FILLER * (length // 40 + 1)}").split(" ")
        text = " ".join(words[: max(2, length * 2 // 3)])
        return Reply.joined(self._model.stream([Message("user", text)], sampling=sampling))


def filler_ids(model: Measured, length: int) -> list[int]:
    """Return ``length`` token ids of plain text, for a prompt of exactly this length."""
    return _repeated(model.tokenize(_FILLER), length, start=0)


def _repeated(ids: list[int], length: int, *, start: int) -> list[int]:
    start %= len(ids)
    return (ids * (length // len(ids) + 2))[start : start + length]


def _require(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} must be 1 or more, not {value}.")
