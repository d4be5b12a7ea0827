"""Models over six letters, which take no time to load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.messages import Message, Reply

TALK = [[{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]]


class Fake:
    """A model over six letters whose probabilities are a fixed table plus noise."""

    def __init__(self, noise: float = 0.0, *, shift: int = 0) -> None:
        rng = np.random.default_rng(1)
        logits = 3 * rng.normal(size=(6, 6)) + noise * rng.normal(size=(6, 6))
        self.table = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
        self.shift = shift

    def render(self, turns: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        return "e" + "".join(turn.content for turn in turns)

    def tokenize(self, text: str) -> list[int]:
        return [ord(c) - 97 for c in text]

    def detokenize(self, ids: Sequence[int]) -> bytes:
        return bytes(97 + i for i in ids)

    def prompt_ids(self, turns: Sequence[Message]) -> list[int]:
        return [i + self.shift for i in self.tokenize(self.render(turns))]

    def log_probabilities(self, ids: Sequence[int]) -> np.ndarray:
        return self.table[list(ids[:-1])]

    def ask(self, turns: Sequence[Message], *, sampling: object = None) -> Reply:
        return Reply(text="cd", token_ids=(2, 3))


Loaded = list[dict[str, Any]]
