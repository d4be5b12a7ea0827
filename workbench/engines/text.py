"""Turn sampled tokens into pieces of text: whole characters, stop strings cut, ends recognised."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Container, Iterator, Sequence

from workbench.messages import FinishReason, Likelihood, Piece, Timings, Usage


class TextAssembler:
    """Takes the bytes of tokens and gives whole characters that no stop string can still claim.

    An incomplete UTF-8 sequence is held back until it is complete; bytes that can no longer become
    a character turn into U+FFFD, as ``bytes.decode("utf-8", "replace")`` would do for the whole.
    The text ends before the stop string that is complete first (of two that are complete at the
    same character, before the longer one), however the bytes were split.

    Args:
        stop: Strings that end the text; none of them appears in it, not even in part.

    Attributes:
        stopped: Whether a stop string was met; what is fed afterwards is ignored.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""
        self.stopped = False

    def feed(self, data: bytes) -> str:
        """Take the next bytes and return the text that is certain, perhaps none."""
        if not self._stop:
            return self._decode(data)
        return self._cut(self._decode(data))

    def finish(self) -> str:
        """Return what is left when no more bytes come."""
        rest = self._decode(b"", True)
        if not self._stop:
            return rest
        text = self._cut(rest)
        left, self._held = self._held, ""
        return text + left

    def _cut(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        ends = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return text[: min(ends)[1]]
        kept = self._may_begin_a_stop(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def _may_begin_a_stop(self, text: str) -> int:
        """Return the length of the longest end of ``text`` that begins a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stop):
                return length
        return 0


def pieces(
    tokens: Iterator[int],
    *,
    prompt_tokens: int,
    limit: int,
    ends: Container[int],
    to_bytes: Callable[[int], bytes],
    stop: Sequence[str] = (),
    began: float,
    likelihood: Callable[[], tuple[float, tuple[Likelihood, ...]]] | None = None,
) -> Iterator[Piece]:
    """Yield one piece for each sampled token; the last carries finish reason, usage and timings.

    The next token is computed when the next piece is asked for, so closing this generator stops
    the model between two tokens. The end token counts as sampled, but adds no text.

    Args:
        tokens: Sampled token ids, computed one by one as they are asked for.
        prompt_tokens: Length of the prompt.
        limit: Most tokens to take, 1 or more.
        ends: Ids that end the reply.
        to_bytes: The bytes that a token adds to the text.
        stop: Strings that end the reply.
        began: ``time.perf_counter()`` of the request.
        likelihood: Log-probability and candidates of the token taken last, where asked for.
    """
    text = TextAssembler(stop)
    finish: FinishReason = "length"
    token: int | None = None
    first, count, delta = began, 0, ""
    logprob: float | None = None
    top: tuple[Likelihood, ...] = ()
    try:
        for token in tokens:
            count += 1
            if count == 1:
                first = time.perf_counter()
            if likelihood is not None:
                logprob, top = likelihood()
            if token in ends:
                delta, finish = "", "stop"
                break
            delta = text.feed(to_bytes(token))
            if text.stopped or count == limit:
                break
            if likelihood is None:
                yield Piece(text=delta, token_id=token)
            else:
                yield Piece(text=delta, token_id=token, logprob=logprob, top=top)
            delta, token, logprob, top = "", None, None, ()
        total = time.perf_counter()
        usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=count)
        delta += text.finish()
        if text.stopped:
            finish = "stop"
        yield Piece(
            text=delta,
            token_id=token,
            logprob=logprob,
            top=top,
            finish_reason=finish,
            usage=usage,
            timings=Timings.measured(ttft=first - began, total=total - began, usage=usage),
        )
    finally:
        close = getattr(tokens, "close", None)
        if close is not None:
            close()
