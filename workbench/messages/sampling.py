"""How the next token is chosen, and what the reply is held to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from workbench.errors import InputError, did_you_mean


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen; the default is greedy, so that results repeat.

    Attributes:
        max_tokens: Most new tokens, 1 or more.
        temperature: 0 is greedy; above 0 samples from softmax(logits / temperature).
        top_p: Nucleus mass in (0, 1]; 1 keeps all.
        top_k: Candidates kept, 0 keeps all.
        min_p: Least probability relative to the best token, in [0, 1]; 0 keeps all.
        repetition_penalty: 1 is none; above 1 discourages tokens seen so far.
        seed: Seed of the sampler, or None for a fresh one each time.
        stop: Strings that end the reply; they are not part of it.
        ignore_end: Go on after an end token, up to ``max_tokens``: to measure speed.
        schema: JSON schema that the reply must follow, where the engine can constrain it.
        grammar: GBNF grammar that the reply must follow, where the engine can constrain it.
        tools: Tools that the model may call, in OpenAI's form.
        think: Whether a model that can should think first; None leaves it to its template.
        top_logprobs: Likeliest alternatives told with each token, 0 for none.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    schema: Mapping[str, Any] | None = None
    grammar: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    think: bool | None = None
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        stop: object = self.stop
        object.__setattr__(self, "stop", (stop,) if isinstance(stop, str) else tuple(self.stop))
        checks = (
            ("max_tokens", self.max_tokens >= 1, "1 or more"),
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("top_logprobs", 0 <= self.top_logprobs <= 100, "in [0, 100]"),
            ("grammar", self.grammar is None or self.schema is None, "left out beside a schema"),
            ("stop", all(isinstance(s, str) and s for s in self.stop), "non-empty strings"),
        )
        for name, holds, rule in checks:
            if not holds:
                raise InputError(f"{name} must be {rule}, not {getattr(self, name)!r}.")

    @classmethod
    def of(cls, base: Sampling | None = None, **changes: Any) -> Sampling:
        """Return ``base`` (or the default) with ``changes``; an unknown name is refused.

        Raises:
            InputError: A name is not a sampling setting, or a value is out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name in changes:
            if name not in known:
                raise InputError(
                    f"{name!r} is not a sampling setting.", hint=did_you_mean(name, known)
                )
        given = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(base or cls(), **given)
