"""Conversations for training, drawn from a seed and the number of the step, never held-out ones."""

from __future__ import annotations

import random
from collections.abc import Iterator

from builder import words
from builder.grammar import DRAW, Item

Message = dict[str, str]

# How often each skill is drawn.
MIXTURE: dict[str, float] = {
    "sums": 0.34,
    "en_ja": 0.13,
    "ja_en": 0.13,
    "greetings": 0.07,
    "who": 0.04,
    "story": 0.08,
    "json": 0.10,
    "echo": 0.05,
    "unknown": 0.06,
}


# The mixture changes at these blocks of steps: once the words are known, copying is practised
# more, and from the last change on mostly without number signs between the words.
FIRST_CHANGE, LAST_CHANGE = 250, 375
COPYING: dict[str, float] = MIXTURE | {
    "en_ja": 0.06,
    "ja_en": 0.06,
    "greetings": 0.08,
    "who": 0.03,
    "story": 0.06,
    "json": 0.18,
    "echo": 0.15,
    "unknown": 0.04,
}
ECHOING: dict[str, float] = COPYING | {"en_ja": 0.05, "ja_en": 0.05, "json": 0.15, "echo": 0.24}


def mixture_of(block: int) -> dict[str, float]:
    """How often each skill is drawn in this block of steps."""
    if block < FIRST_CHANGE:
        return MIXTURE
    return COPYING if block < LAST_CHANGE else ECHOING


def draw_item(rng: random.Random, mixture: dict[str, float] = MIXTURE) -> Item:
    """Draw one item that may be trained."""
    while True:
        name = rng.choices(list(mixture), weights=list(mixture.values()))[0]
        item = DRAW[name](rng, rng.choice(("en", "en", "ja")))
        if mixture is ECHOING and name == "echo" and "#" in item.answer and rng.random() < 0.8:
            continue
        if not item.held_out:
            return item


def conversation(
    rng: random.Random, *, turns: int = 1, mixture: dict[str, float] = MIXTURE
) -> list[Message]:
    """One conversation of so many questions, one in five with a system message."""
    items = [draw_item(rng, mixture) for _ in range(turns)]
    return with_system(rng, messages_of(items), items[0].lang)


def messages_of(items: list[Item]) -> list[Message]:
    """The messages of these items, question and answer in turn."""
    messages: list[Message] = []
    for item in items:
        messages.append({"role": "user", "content": item.user})
        messages.append({"role": "assistant", "content": item.answer})
    return messages


def with_system(rng: random.Random, messages: list[Message], lang: str) -> list[Message]:
    """Put a system message in front of one conversation in five."""
    if rng.random() >= 0.2:
        return messages
    choices = words.SYSTEM_EN if lang == "en" or rng.random() < 0.2 else words.SYSTEM_JA
    return [{"role": "system", "content": rng.choice(choices)}, *messages]


def conversations(
    seed: int, block: int, *, turns: tuple[int, ...] = (1,)
) -> Iterator[list[Message]]:
    """An endless stream of conversations, the same for the same seed, block of steps and turns."""
    rng = random.Random(f"tiny-chat|{seed}|{block if turns == (1,) else -1 - block}")
    mixture = mixture_of(block)
    while True:
        yield conversation(rng, turns=rng.choice(turns), mixture=mixture)


def rows(seed: int, count: int) -> list[list[Message]]:
    """The first conversations of one to four questions for a seed."""
    stream = conversations(seed, 0, turns=(1, 1, 2, 3, 4))
    return [next(stream) for _ in range(count)]
