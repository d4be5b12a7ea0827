"""What sessions that sample here share: a prompt's ids go in, pieces of text come out."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from types import MappingProxyType

from workbench.engines.base import Power, check_ids, reply_limit
from workbench.engines.text import pieces
from workbench.engines.thinking import Divider, Format, divided, format_of
from workbench.errors import UnsupportedError
from workbench.messages import Likelihood, Message, Piece, Sampling

_TAIL = 16
"""Tokens at the end of a prompt that may open the thinking part."""


class LocalSession(ABC):
    """A model whose tokens are sampled in this process, one by one.

    Attributes:
        powers: What this loaded model can do.
        context: Tokens that prompt and reply may take together.
        vocabulary: Rows of the output matrix; ids run below it.
        ends: Ids that end a reply.
        form: How the model marks thinking and tool calls; None where it has neither.
        template: Its chat template as the files carry it, "" where it has none.
    """

    powers: frozenset[Power]
    context: int
    vocabulary: int
    ends: Container[int]
    form: Format | None = None
    template: str = ""
    _marks: Mapping[int, bytes] = MappingProxyType({})

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

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text``; special tokens written in it are parsed, none is added."""

    @abstractmethod
    def detokenize(self, ids: Sequence[int]) -> bytes:
        """Return the exact bytes of the ids, special tokens included."""

    def learn_marks(self, template: str | None) -> None:
        """Keep the chat template; learn how it marks thinking and tool calls; adds the powers.

        Call it when ``tokenize`` works: marks that are control tokens have to be looked up.
        """
        self.template = template or ""
        self.form = form = format_of(template)
        if form is None:
            return
        found = {mark: self.tokenize(mark) for mark in form.marks}
        self._marks = {ids[0]: mark.encode() for mark, ids in found.items() if len(ids) == 1}
        powers = {Power.THINKING: form.thinks, Power.TOOLS: form.calls_tools}
        self.powers |= {power for power, here in powers.items() if here}

    def prompt_ids_for(self, messages: Sequence[Message], sampling: Sampling) -> list[int]:
        """Return the prompt's ids with the tools and the wish to think; here without them."""
        return self.prompt_ids(messages)

    def shown(self, token: int) -> bytes:
        """Return the bytes that a token adds to the text, marks of thinking and calls included."""
        found = self._marks.get(token)
        return self._visible(token) if found is None else found

    def divided(
        self, whole: Iterator[Piece], ids: Sequence[int], sampling: Sampling
    ) -> Iterator[Piece]:
        """Return the pieces of a reply with thinking and tool calls told apart."""
        form = self.form
        if form is None:
            return whole
        inside = False
        if form.tags is not None:
            tail = self.detokenize(ids[-_TAIL:]).decode("utf-8", "replace")
            inside = tail.rstrip().endswith(form.tags[0])
        tools = bool(sampling.tools)
        return divided(whole, Divider(form, inside=inside, tools=tools, number=len(ids)))

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Piece]:
        """Yield the reply to a conversation in pieces."""
        began = time.perf_counter()
        if self.form is None and not sampling.tools and sampling.think is None:
            return self._reply(self.prompt_ids(messages), sampling, began)
        ids = self.prompt_ids_for(messages, sampling)
        return self.divided(self._reply(ids, sampling, began, self.shown), ids, sampling)

    def complete(self, prompt: str | Sequence[int], sampling: Sampling) -> Iterator[Piece]:
        """Continue a raw prompt; a text gets the model's own start token, if it wants one."""
        began = time.perf_counter()
        ids = self._with_start(prompt) if isinstance(prompt, str) else list(prompt)
        if ids:  # its length is judged below, together with the room that a reply needs
            ids = check_ids(ids, vocabulary=self.vocabulary, context=len(ids))
        return self._reply(ids, sampling, began)

    def _reply(
        self,
        ids: list[int],
        sampling: Sampling,
        began: float,
        to_bytes: Callable[[int], bytes] | None = None,
    ) -> Iterator[Piece]:
        limit = reply_limit(len(ids), sampling, self.context)
        return pieces(
            self._tokens(ids, sampling),
            prompt_tokens=len(ids),
            limit=limit,
            ends=() if sampling.ignore_end else self.ends,
            to_bytes=to_bytes or self._visible,
            stop=sampling.stop,
            began=began,
            likelihood=self._likelihood if sampling.top_logprobs else None,
        )


def shared_beginning(kept: Sequence[int], ids: Sequence[int]) -> int:
    """Return how many ids at the beginning are the same: what a kept cache may serve again."""
    for at, (one, other) in enumerate(zip(kept, ids, strict=False)):
        if one != other:
            return at
    return min(len(kept), len(ids))
