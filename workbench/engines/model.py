"""The model a user holds: ask, stream, score, tokenize, close, over any engine."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from workbench.catalog import Card
from workbench.engines.base import Interrupted, Loading, Power, Session
from workbench.engines.batch import CANCELLED, answer_in_turn
from workbench.engines.death import memory_hint
from workbench.engines.demand import demanded, demanded_by, require, texts_of
from workbench.engines.fallback import Failed
from workbench.engines.memory import Grown, give_back_memory
from workbench.engines.shown import bundle_of
from workbench.engines.turn import Turns
from workbench.engines.unload import Unload, Unloading
from workbench.errors import (
    EngineError,
    UnsupportedError,
    WorkbenchError,
)
from workbench.messages import Conversation, Message, Piece, Reply, Sampling, as_messages
from workbench.planning import Plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_numbers = itertools.count(1)


class Model:
    """A loaded model.

    One stream runs at a time: a second thread waits for its turn; the same thread gets an error
    instead of waiting for itself.

    Attributes:
        plan: How it was loaded, and why so.
        loading: What loading took.
        receipt: File of the load's receipt, or None when none could be written.
        isolated: Whether it runs in a process of its own.
        grown: What loading added to the memory, by place.
        fallbacks: The cards that failed to load before this one, with ``fallback=True``.
        unloaded: The proof of the unloading, once it is closed.
        since: ``time.monotonic()`` of its loading.
        number: Counts the models of this process in the order of loading.
    """

    def __init__(
        self,
        session: Session,
        plan: Plan,
        *,
        loading: Loading,
        receipt: Path | None = None,
        isolated: bool = False,
        grown: Grown | None = None,
        fallbacks: tuple[Failed, ...] = (),
    ) -> None:
        self._session: Session | None = session
        self.plan, self.loading, self.receipt, self.isolated = plan, loading, receipt, isolated
        self.grown, self.fallbacks = grown, fallbacks
        self.unloaded: Unload | None = None
        self.since = time.monotonic()
        self._dropped = weakref.finalize(self, _free, session)
        self._dropped.atexit = False  # engines end by themselves then
        self.number = next(_numbers)
        self._turns = Turns(self.label)

    @property
    def card(self) -> Card:
        """What the model is."""
        return self.plan.card

    @property
    def label(self) -> str:
        """Short name for tables."""
        return self.plan.label

    @property
    def powers(self) -> frozenset[Power]:
        """What this loaded model can do beyond ``ask`` and ``stream``."""
        return cast("frozenset[Power]", self._open_session.powers)

    @property
    def raw(self) -> Any:
        """The engine's own object: a ``PreTrainedModel``, a ``llama_cpp.Llama``.

        Raises:
            UnsupportedError: The model runs in a child process.
        """
        session = self._open_session
        if not hasattr(session, "raw"):
            raise UnsupportedError(
                f"{self.label} runs in a process of its own, which cannot hand out its object.",
                hint="Load it with isolate=False.",
            )
        return session.raw

    @property
    def template(self) -> str:
        """The chat template as the model's files carry it, "" where the engine does not tell."""
        return str(getattr(self._open_session, "template", None) or "")

    @property
    def pid(self) -> int | None:
        """Process id of the child that holds the model, or None when it is in this process."""
        return cast("int | None", getattr(self._open_session, "pid", None))

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._session is None

    @property
    def busy(self) -> bool:
        """Whether somebody uses the model now; another request may have to wait."""
        return self._turns.busy

    @property
    def _open_session(self) -> Any:
        if self._session is None:
            raise EngineError(f"{self.label} is closed.", hint="Load it again.")
        return self._session

    # Asking

    def stream(
        self, conversation: Conversation, sampling: Sampling | None = None, **changes: Any
    ) -> Generator[Piece, None, None]:
        """Yield the reply in pieces; closing the iterator stops the model between two tokens.

        Args:
            conversation: A string (one user turn), or a list of messages.
            sampling: How to choose tokens; default is greedy.
            changes: Single settings of ``Sampling``: ``max_tokens=``, ``temperature=``, ...

        Raises:
            InputError: The conversation or a setting is wrong.
            ContextLengthError: The prompt does not fit, raised with the first piece.
            EngineError: The engine failed.
        """
        messages, chosen = as_messages(conversation), Sampling.of(sampling, **changes)
        session = self._able(demanded(messages, chosen))
        return self._pieces(lambda: session.stream(messages, chosen))

    def ask(
        self, conversation: Conversation, sampling: Sampling | None = None, **changes: Any
    ) -> Reply:
        """Return the whole reply; arguments and errors as ``stream``."""
        with contextlib.closing(self.stream(conversation, sampling, **changes)) as pieces:
            return self._signed(Reply.joined(pieces))

    def ask_many(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling | None = None,
        **changes: Any,
    ) -> list[Reply]:
        """Return one reply for each conversation, in order.

        Engines with the power ``batch`` answer several at once, the others one after another. A
        conversation that fails does not take the others with it: its reply has
        ``finish_reason="error"`` and says why in ``error``. ``stop`` ends all of them between two
        tokens: those that are not whole say ``cancelled``.

        Raises:
            ChildDiedError: The process that held the model is gone.
            Interrupted: The user pressed Ctrl-C. It is a KeyboardInterrupt, and its ``replies``
                are those that ``stop`` would have left.
        """
        chosen = Sampling.of(sampling, **changes)
        many = [as_messages(conversation) for conversation in conversations]
        session = self._able(power for turns in many for power in demanded(turns, chosen))
        try:
            return [self._signed(reply) for reply in self._answers(session, many, chosen)]
        except Interrupted as cut:
            raise Interrupted([self._signed(reply) for reply in cut.replies]) from None
        except KeyboardInterrupt:  # it came outside of the answering, or twice
            raise Interrupted([self._signed(CANCELLED) for _ in many]) from None

    def _answers(
        self, session: Any, many: Sequence[tuple[Message, ...]], sampling: Sampling
    ) -> list[Reply]:
        """Answer together where the engine can, else one after another."""
        if Power.BATCH in session.powers:
            with self._turns.taken() as turn, self._named_errors():
                return list(session.ask_many(many, sampling, lambda: turn.cancelled))
        stops = self._turns.stops
        return answer_in_turn(
            lambda messages: self.stream(messages, sampling),
            many,
            lambda: self._turns.stops != stops,
        )

    def _signed(self, reply: Reply) -> Reply:
        """Return the reply with the name of the model, and of those that it stands in for."""
        failed = tuple(each.card for each in self.fallbacks)
        return dataclasses.replace(reply, model=self.label, fallback_from=failed)

    def complete(
        self, prompt: str | Sequence[int], sampling: Sampling | None = None, **changes: Any
    ) -> Iterator[Piece]:
        """Continue a raw prompt, a text or token ids, without a chat template."""
        chosen = Sampling.of(sampling, **changes)
        session = self._able([Power.COMPLETE, *demanded_by(chosen)])
        return self._pieces(lambda: session.complete(prompt, chosen))

    def stop(self, *, thread: int | None = None) -> None:
        """End what is answered (to one thread) between two tokens, ``cancelled`` then."""
        self._turns.cancel(thread=thread)

    # Text, ids, probabilities

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text``; special tokens written in it are parsed, none is added."""
        session = self._with(Power.TOKENIZE)
        with self._named_errors():
            return list(session.tokenize(text))

    def detokenize(self, ids: Sequence[int]) -> bytes:
        """Return the exact bytes of the ids, special tokens included."""
        session = self._with(Power.TOKENIZE)
        with self._named_errors():
            return bytes(session.detokenize(ids))

    def render(self, conversation: Conversation, *, add_generation_prompt: bool = True) -> str:
        """Return the prompt as this engine's chat template renders it."""
        session, messages = self._with(Power.RENDER), as_messages(conversation)
        with self._named_errors():
            return str(session.render(messages, add_generation_prompt=add_generation_prompt))

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Return the prompt's token ids, exactly as ``stream`` feeds them."""
        session, messages = self._with(Power.RENDER), as_messages(conversation)
        with self._named_errors():
            return list(session.prompt_ids(messages))

    def score(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return log p(ids[i] | ids[:i]) for i = 1 .. n-1, natural log, float32, shape [n - 1].

        Raises:
            InputError: No id, or one outside the vocabulary.
            ContextLengthError: More ids than the context holds.
        """
        session = self._with(Power.SCORE)
        return cast("NDArray[np.float32]", self._alone(lambda: session.score(ids)))

    def log_probabilities(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the log-softmax over the vocabulary after each id but the last.

        Shape [n - 1, vocab], float32: 4 bytes x vocabulary x length of memory. Errors as ``score``.
        """
        session = self._with(Power.SCORE)
        return cast("NDArray[np.float32]", self._alone(lambda: session.log_probabilities(ids)))

    def embed(self, texts: str | Sequence[str], *, normalize: bool = True) -> NDArray[np.float32]:
        """Return one vector a text, float32, shape [texts, width].

        Args:
            texts: One text or several.
            normalize: Scale each vector to length 1, so that a dot product is the cosine.

        Raises:
            UnsupportedError: The loaded model gives no embeddings.
            ContextLengthError: A text is longer than the context.
        """
        session, many = self._with(Power.EMBED), texts_of(texts)
        return cast("NDArray[np.float32]", self._alone(lambda: session.embed(many, normalize)))

    def rerank(self, query: str, documents: Sequence[str]) -> NDArray[np.float32]:
        """Return the relevance of each document to the query, float32, shape [documents].

        Raises:
            UnsupportedError: The loaded model is no reranker.
            InputError: There is no document.
        """
        session, many = self._with(Power.RERANK), texts_of(documents)
        return cast("NDArray[np.float32]", self._alone(lambda: session.rerank(query, many)))

    # Adapters and sleep

    def use_adapter(self, adapter: str | Path | None) -> None:
        """Answer with this LoRA adapter from now on, or with the base model for None.

        Raises:
            UnsupportedError: The engine cannot switch adapters.
            InputError: The folder holds no adapter that fits the model.
        """
        session = self._with(Power.ADAPTERS)
        folder = None if adapter is None else Path(adapter).expanduser().resolve()
        self._alone(lambda: session.use_adapter(folder))
        self.plan = dataclasses.replace(self.plan, adapter=folder)

    def sleep(self) -> None:
        """Give the device's memory back until ``wake``."""
        session = self._with(Power.SLEEP)
        self._alone(session.sleep)

    def wake(self) -> None:
        """Take the memory again after ``sleep``."""
        session = self._with(Power.SLEEP)
        self._alone(session.wake)

    # Closing

    def close(self) -> Unload | None:
        """Stop what runs, free the memory, and return the proof of it; safe to call twice.

        The proof is kept in ``unloaded``; where memory stayed, a warning names who holds it.
        """
        return self._close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> Unload | None:
        session = self._session
        if session is None:
            return self.unloaded
        with self._turns.taken(cancelling=True):
            if self._session is None:  # another thread was faster
                return self.unloaded
            unloading = Unloading(session, self.plan, self.grown, self)
            self._session = None
            self._dropped.detach()
            session.close()
        del session
        self.unloaded = unloading.proof()
        if not self.unloaded.freed:
            reasons = " ".join(self.unloaded.reasons())
            warnings.warn(f"{self.label}: {reasons}", UserWarning, stacklevel=3)
        return self.unloaded

    # Guards

    def _with(self, power: Power) -> Any:
        return self._able([power])

    def _able(self, wanted: Iterable[Power]) -> Any:
        session, engine = self._open_session, self.plan.engine
        reasons = getattr(session, "lacks", {})
        for power in wanted:
            why = reasons.get(power, "")
            require(power, session.powers, label=self.label, engine=engine, why=why)
        return session

    def _pieces(self, start: Callable[[], Iterator[Piece]]) -> Generator[Piece, None, None]:
        shared = Power.CONCURRENT in self._open_session.powers
        with self._turns.taken(shared=shared) as turn, self._named_errors():
            last: Piece | None = None
            with contextlib.closing(turn.read(start())) as pieces:
                for last in pieces:
                    yield last
            if last is None or last.finish_reason is None:
                yield Piece(finish_reason="cancelled")

    def _alone(self, work: Callable[[], Any]) -> Any:
        with self._turns.taken(), self._named_errors():
            return work()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turn what an engine raises into an error that names the model."""
        try:
            yield
        except WorkbenchError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            hint = memory_hint(error, self.plan.changes)
            raise EngineError(f"{self.label} failed: {reason}", hint=hint) from error

    def __repr__(self) -> str:
        return f"<Model {self.label}{', closed' if self.closed else ''}>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return bundle_of(self)


def _free(session: Session) -> None:
    """Close the session of a model that went out of scope without being closed."""
    with contextlib.suppress(Exception):  # nobody is left to be told
        session.close()
    give_back_memory()
