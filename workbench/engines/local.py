"""What sessions that sample here share: a prompt's ids go in, pieces of text come out."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Sequence

from workbench.engines.base import Power, check_ids, reply_limit
from workbench.engines.text import pieces
from workbench.errors import UnsupportedError
from workbench.messages import Likelihood, Message, Piece, Sampling


class LocalSession(ABC):
    """A model whose tokens are sampled in this process, one by one.

    Attributes:
        powers: What this loaded model can do.
        context: Tokens that prompt and reply may take together.
        vocabulary: Rows of the output matrix; ids run below it.
        ends: Ids that end a reply.
    """

    powers: frozenset[Power]
    context: int
    vocabulary: int
    ends: Container[int]

    @abstractmethod
    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's token ids, exactly as ``stream`` feeds them."""

    @abstractmethod
    def _with_start(self, text: str) -> list[int]:
        """Return the ids of a raw text, with the start token where the model wants one."""

    @abstractmethod
    def _tokens(self, ids: list[int], sampling: Sampling) -> Iterator[int]:
        """Yield sampled ids; the next is computed when it is asked for."""

    @abstractmethod
    def _visible(self, token: int) -> bytes:
        """Return the bytes that a sampled token adds to the text."""

    def _likelihood(self) -> tuple[float, tuple[Likelihood, ...]]:
        """Return log-probability and candidates of the token that ``_tokens`` yielded last."""
        raise UnsupportedError("This engine does not tell log-probabilities.")

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Piece]:
        """Yield the reply to a conversation in pieces."""
        began = time.perf_counter()
        return self._reply(self.prompt_ids(messages), sampling, began)

    def complete(self, prompt: str | Sequence[int], sampling: Sampling) -> Iterator[Piece]:
        """Continue a raw prompt; a text gets the model's own start token, if it wants one."""
        began = time.perf_counter()
        ids = self._with_start(prompt) if isinstance(prompt, str) else list(prompt)
        if ids:  # its length is judged below, together with the room that a reply needs
            ids = check_ids(ids, vocabulary=self.vocabulary, context=len(ids))
        return self._reply(ids, sampling, began)

    def _reply(self, ids: list[int], sampling: Sampling, began: float) -> Iterator[Piece]:
        limit = reply_limit(len(ids), sampling, self.context)
        return pieces(
            self._tokens(ids, sampling),
            prompt_tokens=len(ids),
            limit=limit,
            ends=() if sampling.ignore_end else self.ends,
            to_bytes=self._visible,
            stop=sampling.stop,
            began=began,
            likelihood=self._likelihood if sampling.top_logprobs else None,
        )
