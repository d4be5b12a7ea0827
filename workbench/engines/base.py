"""The contract of every back end: an Engine opens a plan, a Session streams and closes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from workbench.errors import ContextLengthError, InputError
from workbench.messages import Message, Piece, Reply, Sampling
from workbench.planning import Plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


Stopped = Callable[[], bool]
"""Asked between two tokens of a batch: whether somebody wants it to end."""


def never() -> bool:
    """Return that nobody wants it to end."""
    return False


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in ``ask_many``: a KeyboardInterrupt that has the replies so far.

    Attributes:
        replies: One for each conversation, in order, as ``model.stop()`` leaves them: what is not
            whole says ``cancelled`` and has what came of it.
    """

    def __init__(self, replies: Sequence[Reply]) -> None:
        self.replies = list(replies)
        whole = sum(reply.finish_reason != "cancelled" for reply in self.replies)
        super().__init__(
            f"{whole} of {len(self.replies)} replies are whole. "
            "All are in this exception: import sys; sys.last_value.replies"
        )


class Ending:
    """Whether many replies are to end before they are whole; asked as ``stopped`` is.

    Attributes:
        interrupted: Whether Ctrl-C was pressed.
    """

    def __init__(self, stopped: Stopped = never) -> None:
        self._stopped = stopped
        self.interrupted = False

    def __call__(self) -> bool:
        """Return whether they are to end."""
        return self.interrupted or self._stopped()

    def interrupt(self) -> None:
        """Take a Ctrl-C while others answer, who need a moment to end.

        Raises:
            KeyboardInterrupt: It is the second one, from somebody who does not want to wait.
        """
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def ended(self, replies: list[Reply]) -> list[Reply]:
        """Return the replies.

        Raises:
            Interrupted: Ctrl-C was pressed; it has them.
        """
        if self.interrupted:
            raise Interrupted(replies)
        return replies


class Power(StrEnum):
    """What a loaded model can do beyond ``stream`` and ``close``."""

    TOKENIZE = "tokenize"
    """``tokenize(text) -> list[int]`` and ``detokenize(ids) -> bytes``."""
    RENDER = "render"
    """``render(messages) -> str`` and ``prompt_ids(messages) -> list[int]``."""
    COMPLETE = "complete"
    """``complete(prompt, sampling) -> Iterator[Piece]`` for a raw text or token ids."""
    SCORE = "score"
    """``score(ids) -> float32[n - 1]`` and ``log_probabilities(ids) -> float32[n - 1, vocab]``."""
    BATCH = "batch"
    """``ask_many(conversations, sampling) -> list[Reply]``, faster than one after another."""
    ADAPTERS = "adapters"
    """``use_adapter(folder or None)``: a LoRA adapter on top, switched without loading again."""
    LOGPROBS = "logprobs"
    """``Sampling.top_logprobs`` is honoured: each piece tells its candidates."""
    SCHEMA = "schema"
    """``Sampling.schema`` is honoured: the reply follows a JSON schema."""
    GRAMMAR = "grammar"
    """``Sampling.grammar`` is honoured: the reply follows a GBNF grammar."""
    TOOLS = "tools"
    """``Sampling.tools`` is honoured: the reply may carry tool calls."""
    THINKING = "thinking"
    """The thinking part of a reply is told apart from the answer."""
    IMAGES = "images"
    """Messages may carry images."""
    EMBED = "embed"
    """``embed(texts, normalize) -> float32[texts, width]``."""
    RERANK = "rerank"
    """``rerank(query, documents) -> float32[documents]``, larger is more relevant."""
    CONCURRENT = "concurrent"
    """Several streams at once, batched by the engine."""
    SLEEP = "sleep"
    """``sleep()`` gives the device's memory back for a while, ``wake()`` takes it again."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """What loading took.

    Attributes:
        seconds: From the call to the ready model.
        weight_bytes: Size of the weight files on disk.
        rss_bytes: Growth of the resident memory of the process that holds the model.
    """

    seconds: float
    weight_bytes: int
    rss_bytes: int


@runtime_checkable
class Session(Protocol):
    """A loaded model inside an engine; ``stream`` and ``close`` are required, powers are extra."""

    powers: frozenset[Power]

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Piece]:
        """Yield the reply in pieces; the last one carries finish reason, usage and timings.

        Closing the generator stops the model between two tokens. An exception in the engine is
        raised here, to the reader.
        """
        ...

    def close(self) -> None:
        """Free the model's memory; safe to call twice."""
        ...


class Engine(Protocol):
    """A back end: turns a plan into a session.

    An engine may also have ``prepare(plan) -> plan``: slow work that is done once, such as a
    conversion, before ``open``; it always runs in the caller's own process.
    """

    name: str

    def open(self, plan: Plan) -> Session:
        """Load the plan's model.

        Raises:
            EngineError: Loading failed; the message carries the engine's own reason.
        """
        ...


class TokenizingSession(Session, Protocol):
    """Sessions with TOKENIZE and RENDER."""

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text``; special tokens written in it are parsed, none is added."""
        ...

    def detokenize(self, ids: Sequence[int]) -> bytes:
        """Return the exact bytes of the ids, special tokens included."""
        ...

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the prompt as this engine's chat template renders it."""
        ...

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's token ids, exactly as ``stream`` feeds them."""
        ...


class CompletingSession(Session, Protocol):
    """Sessions with COMPLETE."""

    def complete(self, prompt: str | Sequence[int], sampling: Sampling) -> Iterator[Piece]:
        """Continue a raw prompt, a text or token ids, without a chat template."""
        ...


class ScoringSession(Session, Protocol):
    """Sessions with SCORE."""

    def score(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return log p(ids[i] | ids[:i]) for i = 1 .. n-1, natural log, float32, shape [n - 1]."""
        ...

    def log_probabilities(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the log-softmax over the vocabulary after each id but the last, [n - 1, vocab]."""
        ...


class BatchingSession(Session, Protocol):
    """Sessions with BATCH."""

    def ask_many(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        stopped: Stopped = never,
    ) -> list[Reply]:
        """Return one reply for each conversation, in order.

        A conversation that fails gets a reply with ``finish_reason="error"``; greedy replies
        equal those of single asks, up to near ties in the arithmetic. When ``stopped`` says so,
        replies in progress end with ``finish_reason="cancelled"`` and what they have, those not
        begun with nothing; whole ones stay.

        Raises:
            Interrupted: Ctrl-C was pressed; it has the replies as ``stopped`` leaves them.
        """
        ...


class RawSession(Session, Protocol):
    """Sessions that hand out the engine's own object."""

    @property
    def raw(self) -> Any:
        """The engine's own object, for research."""
        ...


def reply_limit(prompt_tokens: int, sampling: Sampling, context: int) -> int:
    """Return how many tokens a reply may have: ``max_tokens``, cut to what the context leaves.

    Raises:
        ContextLengthError: The prompt leaves no room for a single token.
        InputError: The prompt is empty.
    """
    if prompt_tokens == 0:
        raise InputError("The prompt is empty.", hint="Give at least one token.")
    room = context - prompt_tokens
    if room < 1:
        raise ContextLengthError(
            f"The prompt has {prompt_tokens} tokens, the context holds {context}.",
            hint="Shorten the prompt, or load the model with a larger context=.",
        )
    return min(sampling.max_tokens, room)


def check_ids(ids: Sequence[int], *, vocabulary: int, context: int) -> list[int]:
    """Return the ids as plain integers.

    Raises:
        InputError: There is none, or one lies outside the vocabulary.
        ContextLengthError: They do not fit into the context.
    """
    plain = [int(index) for index in ids]
    if not plain:
        raise InputError("There are no token ids to score.", hint="Give at least one.")
    outside = next((index for index in plain if not 0 <= index < vocabulary), None)
    if outside is not None:
        raise InputError(f"The token id {outside} is not in the vocabulary of {vocabulary} ids.")
    if len(plain) > context:
        raise ContextLengthError(
            f"There are {len(plain)} token ids, the context holds {context}.",
            hint="Score them in parts, or load the model with a larger context=.",
        )
    return plain


class EmbeddingSession(Session, Protocol):
    """Sessions with EMBED."""

    def embed(self, texts: Sequence[str], normalize: bool) -> NDArray[np.float32]:
        """Return one vector a text, float32, shape [texts, width], pooled as the model wants."""
        ...


class RerankingSession(Session, Protocol):
    """Sessions with RERANK."""

    def rerank(self, query: str, documents: Sequence[str]) -> NDArray[np.float32]:
        """Return the relevance of each document to the query, float32, shape [documents]."""
        ...


class AdaptingSession(Session, Protocol):
    """Sessions with ADAPTERS."""

    def use_adapter(self, folder: Path | None) -> None:
        """Answer with this LoRA adapter from now on, or with the base model."""
        ...


class SleepingSession(Session, Protocol):
    """Sessions with SLEEP."""

    def sleep(self) -> None:
        """Give the device's memory back; the model stays known."""
        ...

    def wake(self) -> None:
        """Take the memory again, so that the model answers."""
        ...
