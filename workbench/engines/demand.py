"""What a request demands of a loaded model, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from workbench.catalog.capabilities import engine_facts
from workbench.engines.base import Power
from workbench.errors import InputError, UnsupportedError
from workbench.messages import Message, Sampling


def demanded(messages: Sequence[Message], sampling: Sampling) -> Iterator[Power]:
    """Yield the powers that this conversation and these settings need."""
    if any(message.images for message in messages):
        yield Power.IMAGES
    yield from demanded_by(sampling)


def demanded_by(sampling: Sampling) -> Iterator[Power]:
    """Yield the powers that these settings need."""
    if sampling.schema is not None:
        yield Power.SCHEMA
    if sampling.grammar is not None:
        yield Power.GRAMMAR
    if sampling.tools:
        yield Power.TOOLS
    if sampling.top_logprobs:
        yield Power.LOGPROBS
    if sampling.think:
        yield Power.THINKING


def require(
    power: Power, powers: Collection[Power], *, label: str, engine: str, why: str = ""
) -> None:
    """Refuse what a loaded model cannot do.

    Args:
        power: What is asked for.
        powers: What the loaded model can do.
        label: The model's name.
        engine: Its engine, which the hint leaves out.
        why: A sentence that says more; default is the engine's own reason.

    Raises:
        UnsupportedError: The model lacks the power; the hint names the engines that have it.
    """
    if power in powers:
        return
    known = engine_facts()
    if not why and engine in known:
        why = known[engine].lacks.get(power, "")
    able = [name for name, facts in known.items() if power in facts.powers]
    others = ", ".join(name for name in able if name != engine)
    raise UnsupportedError(
        f"{label} cannot {SAID[power]}.{f' {why}' if why else ''}",
        hint=f"Engines that can: {others}." if others else "No other engine here can.",
    )


def texts_of(given: str | Sequence[str]) -> list[str]:
    """Return one text or several as a list.

    Raises:
        InputError: There is none, or one is no string.
    """
    texts = [given] if isinstance(given, str) else list(given)
    if not texts:
        raise InputError("There is no text.", hint="Give at least one.")
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise InputError(f"A text is a string, not {type(wrong).__name__}.")
    return texts


SAID = {
    Power.TOKENIZE: "tokenize",
    Power.RENDER: "render a prompt",
    Power.COMPLETE: "complete a raw prompt",
    Power.SCORE: "score token ids",
    Power.BATCH: "answer in batches",
    Power.ADAPTERS: "switch adapters",
    Power.LOGPROBS: "tell log-probabilities of what it samples",
    Power.SCHEMA: "hold its reply to a JSON schema",
    Power.GRAMMAR: "hold its reply to a grammar",
    Power.TOOLS: "call tools",
    Power.THINKING: "tell thinking from answer",
    Power.IMAGES: "see images",
    Power.EMBED: "embed",
    Power.RERANK: "rerank",
    Power.CONCURRENT: "answer several requests at once",
    Power.SLEEP: "sleep",
}
"""What a power is called in a sentence: the model cannot ..."""
