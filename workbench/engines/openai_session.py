"""A model behind an OpenAI-compatible URL: streams, completes, embeds, tokenizes where it can."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from workbench.engines import openai_tokens
from workbench.engines.base import Ending, Power, Stopped, never
from workbench.engines.demand import SAID
from workbench.engines.http import Http, Key, Waits
from workbench.engines.http_exchange import Exchange
from workbench.engines.openai_probe import (
    flavour_named,
    flavour_of,
    listed_models,
    look,
    name_in,
    no_such_model,
    served_name,
)
from workbench.engines.openai_reply import ReplyReader
from workbench.engines.openai_request import chat_body, completion_body
from workbench.engines.openai_stream import OpenAIStream
from workbench.errors import (
    ContextLengthError,
    EngineError,
    InputError,
    NotFoundError,
    UnsupportedError,
    WorkbenchError,
)
from workbench.messages import Message, Piece, Reply, Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONCURRENT = 16
_LOOK_SECONDS = 0.05


class OpenAISession:
    """Speaks to one model of a server; safe for several threads.

    Args:
        base_url: As ``http://127.0.0.1:8000/v1``.
        model: The server's name of the model.
        key: Sent as a bearer token, to this host only.
        context: Tokens that prompt and reply may take together; None asks the server.
        powers: Replaces what is found out about the model; None finds out.
        flavour: What kind of server it is: ``openai``, ``vllm``, ``llama-server``, ``sglang``,
            ``tensorrt-llm``, ``llama-cpp-python``, ``ollama``, ``lmstudio``, ``compatible``; None
            finds out.
        names: Other names that the model may have there, tried after ``model``.
        waits: How long the server may take.
        concurrent: Most requests at a time in ``ask_many``.
        extra: Further keys for the body of every request.
        label: What errors call the server; default is its kind and address.

    Attributes:
        powers: What the model can do there.
        context: Tokens that prompt and reply may take together, or None.
        flavour: What kind of server it is.
        model: The server's name of the model.
        version: Of the server, "" where it does not say.
        chats: Whether it answers messages.

    Raises:
        NotFoundError: The server has no such model.
        EngineError: It is not reached, or does not accept the key.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key: Key | None = None,
        context: int | None = None,
        powers: Iterable[Power] | None = None,
        flavour: str | None = None,
        names: Sequence[str] = (),
        waits: Waits | None = None,
        concurrent: int = CONCURRENT,
        extra: Mapping[str, Any] | None = None,
        label: str | None = None,
    ) -> None:
        self.http = Http(base_url, key=key, waits=waits)
        rows = listed_models(self.http)
        self.model = served_name((model, *names), rows, self.http.url)
        self.flavour = flavour or flavour_of(rows, base_url)
        self.facts = flavour_named(self.flavour)
        row = next((row for row in rows or () if name_in(row) == self.model), None)
        found = look(self.http, self.flavour, self.model, row)
        self.powers = found.powers if powers is None else frozenset(powers)
        self.context = context or found.context
        self.version, self.chats, self.concurrent = found.version, found.chats, concurrent
        self.extra = dict(extra or {})
        self.label = label or f"{self.flavour} at {self.http.url}"
        self._optional = {"stream_options", *self.facts.chat}
        self._refused: set[str] = set()
        self._streams: weakref.WeakSet[OpenAIStream] = weakref.WeakSet()
        self._lock = threading.Lock()

    @property
    def raw(self) -> Http:
        """The connection, to ask the server what is not covered here."""
        return self.http

    def add_powers(self, tasks: Collection[str]) -> None:
        """Add what a card says that the model can do: few servers tell."""
        if "vision" in tasks:
            self.powers |= {Power.IMAGES}
        if "embedding" in tasks:
            self.powers |= {Power.EMBED}
        if "rerank" in tasks:
            self.powers |= {Power.RERANK}

    def models(self) -> list[str]:
        """Return the names of the models that the server has.

        Raises:
            UnsupportedError: It has no list of them.
        """
        rows = listed_models(self.http)
        if rows is None:
            raise UnsupportedError(f"{self.label} lists no models.")
        return sorted(name_in(row) for row in rows)

    # Asking

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Piece]:
        """Yield the reply in pieces; closing the iterator hangs up, from any thread.

        Raises:
            UnsupportedError: A setting that the server would ignore, or a model that does not chat.
        """
        if not self.chats:
            raise UnsupportedError(
                f"{self.model} does not chat: {self.label} has no such path for it.",
                hint=f"It can {', '.join(sorted(SAID[power] for power in self.powers))}.",
            )
        body = chat_body(
            self.label, self.facts, model=self.model, messages=messages, sampling=sampling
        )
        counted: Callable[[], int] | None = None
        if Power.RENDER in self.powers and not any(message.images for message in messages):
            tools = sampling.tools
            counted = lambda: len(self._prompt_ids(messages, tools))  # noqa: E731
        inside = self._opens_thought(sampling.think)
        return self._stream("/chat/completions", body, sampling, counted, inside=inside)

    def complete(self, prompt: str | Sequence[int], sampling: Sampling) -> Iterator[Piece]:
        """Continue a raw prompt; a text gets the model's own start token from the server."""
        if not len(prompt) and not isinstance(prompt, str):
            raise InputError("The prompt is empty.", hint="Give at least one token.")
        body = completion_body(
            self.label, self.facts, model=self.model, prompt=prompt, sampling=sampling
        )
        counted: Callable[[], int] | None = None
        if not isinstance(prompt, str):
            counted = lambda: len(prompt)  # noqa: E731
        elif Power.TOKENIZE in self.powers:
            counted = lambda: len(openai_tokens.tokenize(self, prompt, start=True))  # noqa: E731
        return self._stream("/completions", body, sampling, counted)

    def ask_many(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        stopped: Stopped = never,
    ) -> list[Reply]:
        """Return one reply for each conversation, several asked at a time."""
        if not conversations:
            return []
        workers = max(1, min(self.concurrent, len(conversations)))
        pool, ending = ThreadPoolExecutor(workers, thread_name_prefix="ask"), Ending(stopped)
        try:
            asked = [pool.submit(self._reply, turns, sampling, ending) for turns in conversations]
            while _waits(asked, ending):
                if ending():  # a server that is silent would not let its reader look
                    self.stop()
            return ending.ended([each.result() for each in asked])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            self.stop()
            raise
        finally:
            pool.shutdown()

    def _reply(self, messages: Sequence[Message], sampling: Sampling, stopped: Stopped) -> Reply:
        try:
            if stopped():
                return Reply(text="", finish_reason="cancelled")
            with contextlib.closing(self.stream(messages, sampling)) as pieces:  # type: ignore[type-var]
                return Reply.joined(_until_stopped(pieces, stopped))
        except WorkbenchError as error:
            return Reply(text="", finish_reason="error", error=str(error))

    def stop(self) -> None:
        """Hang up on every stream in progress."""
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.close()

    def close(self) -> None:
        """End what runs and close the connections; the server goes on."""
        self.stop()
        self.http.close()

    # Text, ids, probabilities

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text``; special tokens written in it are parsed, none is added."""
        return openai_tokens.tokenize(self, text)

    def detokenize(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of the ids, special tokens included.

        Raises:
            EngineError: They end within a character: a server tells text, not bytes.
        """
        return openai_tokens.detokenize(self, ids)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the prompt as the server's chat template renders it."""
        return openai_tokens.render(self, messages, add_generation_prompt=add_generation_prompt)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's token ids, exactly as ``stream`` feeds them."""
        return self._prompt_ids(messages, ())

    def score(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return log p(ids[i] | ids[:i]) for i = 1 .. n-1, natural log, float32, shape [n - 1]."""
        return openai_tokens.score(self, ids)

    def log_probabilities(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the log-softmax over the vocabulary after each id but the last, [n - 1, vocab].

        Raises:
            UnsupportedError: The server tells only the likeliest: ``score`` works there.
        """
        return openai_tokens.log_probabilities(self, ids)

    def embed(self, texts: Sequence[str], normalize: bool) -> NDArray[np.float32]:
        """Return one vector a text, float32, shape [texts, width]."""
        return openai_tokens.embed(self, texts, normalize)

    def rerank(self, query: str, documents: Sequence[str]) -> NDArray[np.float32]:
        """Return the relevance of each document to the query, float32, shape [documents]."""
        return openai_tokens.rerank(self, query, documents)

    def _opens_thought(self, think: bool | None) -> bool:
        """Whether the prompt begins a thought that the server does not tell apart."""
        return False

    def _prompt_ids(self, messages: Sequence[Message], tools: Sequence[Any]) -> list[int]:
        return openai_tokens.prompt_ids(self, messages, tools)

    # Sending

    def _stream(
        self,
        path: str,
        body: dict[str, Any],
        sampling: Sampling,
        counted: Callable[[], int] | None,
        *,
        inside: bool = False,
    ) -> OpenAIStream:
        body |= self.extra
        thinks = path == "/chat/completions" and Power.THINKING in self.powers
        reader = ReplyReader(
            stop=sampling.stop, began=time.perf_counter(), thinks=thinks, inside=inside
        )

        def ask(hold: Callable[[Exchange], None]) -> Exchange:
            return self._accepted(path, body, hold, counted)

        stream = OpenAIStream(ask, reader, silence=self.http.waits.silence)
        with self._lock:
            self._streams.add(stream)
        return stream

    def _accepted(
        self,
        path: str,
        body: dict[str, Any],
        hold: Callable[[Exchange], None],
        counted: Callable[[], int] | None,
    ) -> Exchange:
        """Send a request, and again where the server refuses a part that it can do without."""
        for name in self._refused:
            body.pop(name, None)
        while True:
            exchange = self.http.exchange("POST", path, body)
            hold(exchange)
            try:
                exchange.start()
            except ContextLengthError:
                if not self._shortened(body, counted):
                    raise
            except NotFoundError as error:
                raise self._named(error) from None
            except (InputError, EngineError) as error:
                refused = self._refusable(error, body)
                if refused is None:
                    raise
                self._refused.add(refused)
                del body[refused]
            else:
                return exchange

    def _refusable(self, error: WorkbenchError, body: Mapping[str, Any]) -> str | None:
        """Return the part of the body that a refusal names and that can be left out."""
        said = error.message.replace(" ", "_")
        return next((name for name in self._optional if name in said and name in body), None)

    def _shortened(self, body: dict[str, Any], counted: Callable[[], int] | None) -> bool:
        """Whether the reply, not the prompt, was too long: its limit is cut to what is left."""
        if counted is None or self.context is None:
            return False
        with contextlib.suppress(WorkbenchError):
            room = self.context - counted()
            limit = "max_tokens" if "max_tokens" in body else self.facts.limit
            if 0 < room < body[limit]:
                body[limit] = room
                return True
        return False

    def _named(self, error: NotFoundError) -> WorkbenchError:
        """Return the error of a 404 with the models there are, where the model is what lacks."""
        with contextlib.suppress(WorkbenchError):
            there = self.models()
            if self.model not in there:
                return no_such_model(self.model, there, self.http.url)
        return EngineError(error.message, hint=error.hint)

    def __repr__(self) -> str:
        return f"<OpenAISession {self.model} of {self.label}>"


def _waits(asked: list[Future[Reply]], ending: Ending) -> bool:
    """Wait for a moment; return whether a reply is still to come."""
    try:
        return bool(wait(asked, timeout=_LOOK_SECONDS).not_done)
    except KeyboardInterrupt:
        ending.interrupt()
        return True


def _until_stopped(pieces: Iterator[Piece], stopped: Stopped) -> Iterator[Piece]:
    """Yield the pieces of one reply of many; it is cut off, and says so, when that is wanted."""
    last = Piece()
    for last in pieces:
        yield last
        if last.finish_reason is None and stopped():
            break
    if last.finish_reason is None and stopped():
        yield Piece(finish_reason="cancelled")
