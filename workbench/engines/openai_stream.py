"""A reply as it streams from an OpenAI-compatible server; closing it hangs up at once."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

from workbench.engines.http_exchange import Exchange
from workbench.engines.openai_reply import ReplyReader
from workbench.engines.sse import Event, EventParser
from workbench.errors import EngineError
from workbench.messages import Piece

Ask = Callable[[Callable[[Exchange], None]], Exchange]
"""Sends the request: hands each exchange to the callback before it starts, returns the answered."""


class OpenAIStream:
    """Yields the pieces of one reply; the request is sent when the first one is asked for.

    Args:
        ask: Sends the request.
        reader: Turns chunks into pieces.
        silence: Most seconds between two parts once the first token is there.
    """

    def __init__(self, ask: Ask, reader: ReplyReader, *, silence: float) -> None:
        self._ask, self._reader, self._silence = ask, reader, silence
        self._exchange: Exchange | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._pieces = self._read()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        if self._closed:
            raise StopIteration
        return next(self._pieces)

    def close(self) -> None:
        """Hang up, so that the server stops; from any thread, also while another one reads."""
        with self._lock:
            self._closed = True
            exchange = self._exchange
        if exchange is not None:
            exchange.close()
        with contextlib.suppress(ValueError):  # another thread is in it, and wakes by itself
            self._pieces.close()

    def __del__(self) -> None:
        self.close()

    def _hold(self, exchange: Exchange) -> None:
        with self._lock:
            self._exchange = exchange
            closed = self._closed
        if closed:
            exchange.close()

    def _read(self) -> Generator[Piece, None, None]:
        try:
            exchange = self._ask(self._hold)
            if exchange.kind in ("application/json", "text/json"):
                yield from self._whole(exchange)
            elif exchange.kind not in ("text/event-stream", "", "text/plain"):
                raise EngineError(
                    f"{exchange.url} answered with {exchange.kind}, which is no stream of events.",
                    hint="Is the URL right? Most end in /v1.",
                )
            else:
                yield from self._streamed(exchange)
        except EngineError:
            if not self._closed:
                raise
        finally:
            if self._exchange is not None:
                self._exchange.close()

    def _whole(self, exchange: Exchange) -> Iterator[Piece]:
        """Yield the reply of a server that does not stream."""
        text = exchange.text()
        if not self._closed:
            yield from self._reader.feed(self._chunk(text))
            yield from self._reader.finish(complete=self._reader.over)

    def _streamed(self, exchange: Exchange) -> Iterator[Piece]:
        patient, done = True, False
        for event in _events(exchange, self._reader):
            if event.data.strip() == "[DONE]":
                done = True
                break
            yield from self._reader.feed(self._chunk(event.data, event.kind))
            if self._reader.stopped:
                break
            if patient and self._reader.first is not None:
                exchange.wait_at_most(self._silence)
                patient = False
        if self._closed:
            return
        yield from self._reader.finish(complete=done)
        if done:
            exchange.drain()

    def _chunk(self, data: str, kind: str = "message") -> dict[str, Any]:
        try:
            found = json.loads(data)
        except ValueError:
            shown = data if len(data) < 200 else f"{data[:197]}..."
            raise self._reader.broken_off(f"what came is no JSON: {shown}") from None
        if not isinstance(found, dict):
            raise self._reader.broken_off(f"what came is no chunk of a reply: {str(found)[:200]}")
        if kind == "error" and "error" not in found:
            return {"error": found}
        return found


def _events(exchange: Exchange, reader: ReplyReader) -> Iterator[Event]:
    """Yield the events of an answer.

    Raises:
        EngineError: The server hung up in the middle, or was silent for too long.
    """
    parser = EventParser()
    while True:
        try:
            part = exchange.part()
        except EngineError as error:
            if reader.over:  # all is said but the last line
                return
            raise reader.broken_off(error.message.rstrip(".")) from None
        if not part:
            break
        yield from parser.feed(part)
    if not exchange.ended:
        for event in parser.finish():
            if event.data.strip() == "[DONE]" or _is_json(event.data):
                yield event


def _is_json(data: str) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True
