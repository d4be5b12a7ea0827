"""The forms in which engines are held against one another, and the rule that they are held to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest

from workbench.catalog.capabilities import engine_facts
from workbench.catalog.flavour import Flavour
from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.messages import Reply

ENDS = {0, 2}
"""<|endoftext|> and <|im_end|> of the embedded model."""
END = 2
SLOTS, SERVED_CONTEXT = 16, 512
"""Requests at a time and tokens of each, of the servers."""
SUM = "What is 3 + 4?"
SUMS = tuple(f"What is {number} + {number % 3}?" for number in range(12))
QUESTIONS = (
    SUM,
    "How do you say cat in Japanese?",
    "「犬」は英語で何ですか？",
    "こんにちは",
    "Tell me a story.",
    "Hello! 🐈 Who are you?",
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi 猫"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "And now?"},
]
_Test = TypeVar("_Test", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """One way to load the embedded model.

    Attributes:
        name: As the tests' ids and the reasons name it.
        engine: What ``engine=`` says.
        isolated: Whether it runs in a process of its own.
        quantization: Form of its weights.
        flavour: Kind of the server, where it is one.
        tolerance: Most that the log-probability of any token may differ from the reference's,
            natural log. What is unlikely differs most, so this says little of likely tokens.
        gap: The bound of the logit-gap rule, natural log: see ``same_or_near``.
        context: Tokens that it was loaded for.
    """

    name: str
    engine: str
    isolated: bool = False
    quantization: str = "none"
    flavour: str | None = None
    tolerance: float = 0.0
    gap: float = 0.0
    context: int = 2048

    @property
    def powers(self) -> set[str]:
        """What the data say that it can do."""
        facts = engine_facts()
        if self.flavour is None or self.engine != "openai":
            return set(facts[self.engine].powers)
        found: Flavour = facts["openai"].flavours[self.flavour]
        return set(found.powers)


def _forms() -> list[Form]:
    found = [Form(name="transformers", engine="transformers", tolerance=1e-4, gap=1e-3)]
    found += [
        Form(name="llama.cpp", engine="llama.cpp", quantization="F32", tolerance=2e-2, gap=2e-2),
        Form(name="mlx", engine="mlx", tolerance=2e-3, gap=1e-3),
        Form(name="scripted", engine="scripted"),
    ]
    isolated = [
        dataclasses.replace(form, name=f"{form.name} isolated", isolated=True) for form in found
    ]
    packed = [
        Form(name="llama.cpp F16", engine="llama.cpp", quantization="F16", tolerance=0.1, gap=5e-2),
        Form(
            name="llama.cpp Q8_0", engine="llama.cpp", quantization="Q8_0", tolerance=1.0, gap=0.5
        ),
    ]
    served = [
        Form(
            name="llama-server",
            engine="llama-server",
            flavour="llama-server",
            tolerance=2e-2,
            gap=2e-2,
        ),
        Form(
            name="url of llama-server",
            engine="openai",
            flavour="llama-server",
            tolerance=2e-2,
            gap=2e-2,
        ),
        Form(name="vllm", engine="vllm", flavour="vllm", tolerance=5e-3, gap=2e-2),
        Form(name="url of vllm", engine="openai", flavour="vllm", tolerance=5e-3, gap=2e-2),
    ]
    served = [dataclasses.replace(form, context=SERVED_CONTEXT) for form in served]
    return [*found, *isolated, *packed, *served]


FORMS = {form.name: form for form in _forms()}


def without(*names: str, because: str) -> Callable[[_Test], _Test]:
    """Leave these forms, or all forms of these engines, out of a test, for a written reason."""
    known = {*FORMS, *(form.engine for form in FORMS.values())}
    assert because.endswith("."), "a reason is a sentence"
    assert known.issuperset(names), names

    def mark(test: _Test) -> _Test:
        test.left_out = {**getattr(test, "left_out", {}), **dict.fromkeys(names, because)}  # type: ignore[attr-defined]
        return test

    return mark


def needs(*powers: Power) -> Callable[[_Test], _Test]:
    """Leave out the forms that lack a power; why they do is data, ``lacks`` of the engine."""

    def mark(test: _Test) -> _Test:
        test.needed = powers  # type: ignore[attr-defined]
        return test

    return mark


def forms_of(test: Any) -> list[Any]:
    """Return the forms that a test runs over, as parameters."""
    left_out, needed = getattr(test, "left_out", {}), getattr(test, "needed", ())
    found = []
    for form in FORMS.values():
        if {form.name, form.engine} & set(left_out) or not form.powers.issuperset(needed):
            continue
        vllm = [pytest.mark.vllm, pytest.mark.timeout(600)] if form.flavour == "vllm" else []
        found.append(pytest.param(form, marks=vllm, id=form.name))
    return found


def ids_of(reply: Reply) -> list[int]:
    """Return the sampled ids of a reply, with one end token where it ended by itself."""
    ids = list(reply.token_ids)
    while ids and ids[-1] in ENDS:
        ids.pop()
    return [*ids, END] if reply.finish_reason == "stop" else ids


def greedy(model: Model, conversation: Any, max_tokens: int) -> list[int]:
    """Return the ids of a greedy reply, asked with candidates where a server tells none without."""
    reply = model.ask(conversation, max_tokens=max_tokens)
    if not reply.token_ids and reply.text:
        reply = model.ask(conversation, max_tokens=max_tokens, top_logprobs=1)
    return ids_of(reply)


def same_or_near(
    reference: Model, prompt: Sequence[int], one: Sequence[int], other: Sequence[int], gap: float
) -> bool:
    """Hold two greedy replies to one prompt to the logit-gap rule: whether they are the same.

    The rule: they are equal, or at the first place where they differ both tokens lie, by the
    log-probabilities of the reference (transformers, fp32, in this process), less than ``gap``
    below the likeliest one. What comes after that place is not compared, for it answers another
    text. Each form states its bound (``FORMS``): 0.001 where weights, cache and sums have 32 bits,
    0.02 where the cache is of 16 bits or requests are batched, 0.05 with weights of 16 bits, 0.5
    with weights of 8 bits.

    Raises:
        AssertionError: They part where the reference is sure.
    """
    place = next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        None,
    )
    if place is None:
        assert len(one) == len(other), (one, other)
        return True
    ids = [*prompt, *one[:place]]
    row = reference.log_probabilities([*ids, END])[-1]
    behind = float(row.max() - min(row[one[place]], row[other[place]]))
    assert behind < gap, (
        f"after {place} tokens {one[place]} and {other[place]} were chosen, where the reference "
        f"is sure by {behind:.4f}, and the bound is {gap:g}"
    )
    return False


def largest(difference: Any) -> float:
    """Return the largest absolute value."""
    return float(np.abs(difference).max())
