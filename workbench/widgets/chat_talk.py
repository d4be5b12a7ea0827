"""A conversation in progress: turns are added, answers begun and ended; a front end is told."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from workbench.chats.dialogue import Dialogue
from workbench.chats.origin import made_by
from workbench.chats.turn import Turn
from workbench.engines.base import Power
from workbench.engines.demand import demanded, require
from workbench.engines.model import Model
from workbench.errors import EngineError, InputError
from workbench.messages import Image, Message, Piece, Reply, Sampling
from workbench.widgets import chat_context, chat_inspect, chat_wire
from workbench.widgets.chat_answer import Answer, joined
from workbench.widgets.chat_onward import onward
from workbench.widgets.chat_settings import ChatSettings
from workbench.widgets.view import told
from workbench.widgets.worker import Generation


class Listener(Protocol):
    """Who is told what happens."""

    @property
    def seen(self) -> bool:
        """Whether a front end draws what is told."""
        ...

    def tell(self, kind: str, **values: Any) -> None:
        """Take one message."""
        ...

    def update(self) -> None:
        """Bring static copies up to date."""
        ...


class Nobody:
    """Hears nothing."""

    seen = False

    def tell(self, kind: str, **values: Any) -> None:
        """Drop the message."""

    def update(self) -> None:
        """Do nothing."""


class Talk:
    """A dialogue with one model; what begins an answer returns at once.

    Any thread may call it: one lock holds turns, messages and state together.

    Attributes:
        model: The model that answers.
        dialogue: All turns.
        settings: Sampling.
        schema: JSON schema that answers are held to, or None.
        tools: What the model may call.
        lock: Held while anything changes or is told.
        listener: Who is told.
        answer: The answer in progress, or None.
    """

    def __init__(
        self,
        model: Model,
        dialogue: Dialogue,
        *,
        sampling: Sampling | Mapping[str, Any] | None = None,
        schema: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.dialogue = dialogue
        self.schema, self.tools = schema, tuple(tools)
        self.lock = threading.RLock()
        self.listener: Listener = Nobody()
        self.answer: Answer | None = None
        self._take_model(model)
        self._require(demanded((), Sampling.of(schema=schema, tools=self.tools or None)))
        self.settings = ChatSettings(model, sampling, changed=self._settings_changed)

    # What can be asked for at any time

    def stop(self) -> None:
        """End the answer in progress between two tokens; what has come stays."""
        answer = self.answer
        if answer is not None and answer.generation is not None:
            answer.generation.stop()

    def show(self, turn_id: str) -> None:
        """Put the branch through a turn on view."""
        with self._idle():
            self.dialogue.show(turn_id)
            self._tell_path()
            self._tell_meter()
        self.listener.update()

    def clear(self) -> None:
        """Begin anew; what was said stays as a branch."""
        with self._idle():
            self.dialogue.clear()
            self._tell_path()
            self._tell_meter()
        self.listener.update()

    def use(self, model: Model) -> None:
        """Go on with another model."""
        with self._idle():
            self._take_model(model)
            self.listener.tell("state")

    def set_system(self, text: str) -> None:
        """Set the system prompt, which holds from the next answer on."""
        with self.lock:
            self.dialogue.system = clean_text(text)
            self.listener.tell("system", text=self.dialogue.system)

    def sampling(self, **changes: Any) -> Sampling:
        """Return the settings in force, with schema and tools."""
        held = {"schema": self.schema, "tools": self.tools or None}
        return self.settings.sampling(**{**held, **changes})

    def prompt(self, turn_id: str | None) -> chat_inspect.Prompt:
        """Return the exact prompt of a turn, or of what would be sent now."""
        turn = None if turn_id is None else self.dialogue[turn_id]
        return chat_inspect.prompt_of(self._opened(), self.dialogue, turn, self.sampling())

    def probabilities(self, turn_id: str | None) -> chat_inspect.Probabilities:
        """Return the probability of each token of an answer."""
        return chat_inspect.probabilities_of(self.model, self.dialogue, self._answered(turn_id))

    # Beginning an answer

    def send(self, text: str | Message, *, images: Sequence[Image] = (), **sampling: Any) -> Answer:
        """Say something and begin the answer."""
        message = text if isinstance(text, Message) else Message("user", clean_text(text))
        if images:
            message = dataclasses.replace(message, images=(*message.images, *images))
        with self._idle():
            chosen = self._ready([*self.dialogue.messages(), message], sampling)
            turn = self.dialogue.add(message)
            return self._begin(turn, chosen, first=turn.id)

    def regenerate(self, turn_id: str | None = None, **sampling: Any) -> Answer:
        """Begin another answer to the same question."""
        with self._idle():
            turn = self._last(turn_id)
            question = turn
            if turn.role == "assistant":
                if turn.parent is None:
                    raise InputError(f"Turn {turn.id} answers no question.")
                question = self.dialogue[turn.parent]
            chosen = self._ready(self.dialogue.messages(until=question.id), sampling)
            return self._begin(question, chosen)

    def edit(self, turn_id: str, text: str, **sampling: Any) -> Answer:
        """Begin the answer to another wording of a question."""
        with self._idle():
            chosen = self._ready(self.dialogue.messages(until=turn_id), sampling)
            turn = self.dialogue.edit(turn_id, clean_text(text))
            return self._begin(turn, chosen, first=turn.id)

    def go_on(self, turn_id: str | None = None, **sampling: Any) -> Answer:
        """Begin to go on with an answer that was cut off."""
        with self._idle():
            turn = self._answered(turn_id)
            chosen = self._ready((), sampling)
            before, start = onward(self.model, self.dialogue, turn, chosen)
            self.dialogue.show(turn.id)
            return self._run(turn, start, before=before)

    def _begin(self, question: Turn, sampling: Sampling, *, first: str | None = None) -> Answer:
        same = self._made_by == self.dialogue.made_by
        turn = self.dialogue.answer(
            question.id,
            sampling=sampling,
            model=self.model.label,
            made_by={} if same else self._made_by,
        )
        model, messages = self.model, self.dialogue.messages(until=question.id)
        return self._run(turn, lambda: model.stream(messages, sampling), first=first)

    def _run(
        self,
        turn: Turn,
        start: Callable[[], Iterator[Piece]],
        *,
        before: Reply | None = None,
        first: str | None = None,
    ) -> Answer:
        answer = Answer(turn.id, before=before)
        answer.generation = generation = Generation(
            self.model,
            start,
            take=lambda pieces: self._take(answer, pieces),
            waits=lambda waiting: self._waits(answer, waiting),
            end=lambda made: self._finish(answer, made),
            keep=lambda made: self.dialogue.so_far(turn, joined(answer.before, made.so_far())),
        )
        self.answer = answer
        try:
            self._tell_path(first or turn.id)
            self.tell_busy()
            generation.run()
        except BaseException:  # a Ctrl-C in between must not leave the chat busy for ever
            self.answer = None
            self.dialogue.finish(turn.id, before, error="This answer was interrupted at once.")
            raise
        return answer

    # While it goes on: called by the threads of the generation

    def _take(self, answer: Answer, pieces: Sequence[Piece]) -> None:
        with self.lock:
            for kind, values in answer.take(pieces, seen=self.listener.seen):
                self.listener.tell(kind, **values)

    def _waits(self, answer: Answer, waiting: bool) -> None:
        with self.lock:
            said = f"{self.model.label} is busy with somebody else; this answer waits for it."
            answer.waiting = said if waiting else None
            self.tell_busy()

    def _finish(self, answer: Answer, made: Generation) -> None:
        try:
            reply = joined(answer.before, made.reply(prompt_tokens=lambda: self._counted(answer)))
            with self.lock:
                try:
                    self.dialogue.finish(answer.turn_id, reply, error=_sentence(made.error))
                finally:
                    self.answer = None
                self._tell_end(answer)
        except Exception as error:  # an answer is shown without its end rather than not at all
            self.listener.tell("error", **told(error))
        if not answer.blocking:  # else the cell that waits does it, in its own thread
            self.listener.update()

    def _tell_end(self, answer: Answer) -> None:
        if not self.listener.seen:
            return
        for kind, values in answer.finish():
            self.listener.tell(kind, **values)
        self.listener.tell("end", id=answer.turn_id, turn=self._wire(answer.turn_id))
        self.tell_busy()
        self._tell_meter()

    def _counted(self, answer: Answer) -> int | None:
        """Return the tokens of an answer's prompt, where the engine had no time to count."""
        with contextlib.suppress(Exception):  # it is for the figures only
            turn = self.dialogue[answer.turn_id]
            messages = chat_inspect.sent_for(self.dialogue, turn)
            if not any(message.images for message in messages):
                return len(chat_inspect.fed(self.model, messages, self.sampling()))
        return None

    # What is told

    def state(self) -> dict[str, Any]:
        """Return the whole state for a front end; the lock is held."""
        answer, settings = self.answer, self.settings
        return {
            "turns": [self._wire(turn.id) for turn in self.dialogue.path()],
            **self._busy(),
            "settings": settings.as_dict(),
            "defaults": settings.defaults,
            "fields": [dataclasses.asdict(field) for field in settings.fields],
            "system": self.dialogue.system,
            "powers": [] if self.model.closed else sorted(str(power) for power in self._powers),
            "label": self.model.label,
            "title": self.dialogue.title,
            "meter": chat_context.meter(self.model, self.dialogue),
            "tools": [dict(tool) for tool in self.tools],
            "schema": self.schema,
            "note": self._note() or (answer.waiting if answer else None),
        }

    def _note(self) -> str | None:
        if not self.model.closed:
            return None
        return f"{self.model.label} is closed: load it again, then chat.use(model)."

    def tell_busy(self) -> None:
        """Tell whether an answer is in progress."""
        with self.lock:
            note = self._note() or (self.answer.waiting if self.answer else None)
            self.listener.tell("busy", id=self._busy()["busy"], note=note, **self._waiting_cell())

    def _busy(self) -> dict[str, Any]:
        return {"busy": self.answer.turn_id if self.answer else None, **self._waiting_cell()}

    def _waiting_cell(self) -> dict[str, Any]:
        return {"blocking": bool(self.answer and self.answer.blocking)}

    def _tell_path(self, first: str | None = None) -> None:
        """Tell the branch on view, with its turns from ``first`` on."""
        if not self.listener.seen:
            return
        ids = [turn.id for turn in self.dialogue.path()]
        for turn_id in ids[ids.index(first) if first in ids else 0 :]:
            self.listener.tell("turn", turn=self._wire(turn_id))
        self.listener.tell("path", ids=ids)

    def _tell_meter(self) -> None:
        if self.listener.seen:
            self.listener.tell("meter", **chat_context.meter(self.model, self.dialogue))

    def _settings_changed(self) -> None:
        with self.lock:
            self.listener.tell("settings", settings=self.settings.as_dict())

    def _wire(self, turn_id: str) -> dict[str, Any]:
        turn = self.dialogue[turn_id]
        if self.answer is not None and self.answer.turn_id == turn_id:
            return self.answer.shown(chat_wire.turn_of(self.dialogue, turn))
        return chat_wire.turn_of(self.dialogue, turn)

    # Guards

    @contextlib.contextmanager
    def _idle(self) -> Iterator[None]:
        with self.lock:
            if self.answer is not None:
                raise EngineError(
                    "An answer is in progress.", hint="Stop it first, or wait for its end."
                )
            yield

    def _ready(self, messages: Iterable[Message], changes: Mapping[str, Any]) -> Sampling:
        """Return the settings of an answer; what the model cannot do is refused before it."""
        self._opened()
        chosen = self.sampling(**changes)
        self._require(demanded(tuple(messages), chosen))
        return chosen

    def _opened(self) -> Model:
        if self.model.closed:
            raise EngineError(
                f"{self.model.label} is closed.", hint="Load it again, then chat.use(model)."
            )
        return self.model

    def _require(self, powers: Iterable[Power]) -> None:
        for power in powers:
            require(power, self._powers, label=self.model.label, engine=self.model.plan.engine)

    def _take_model(self, model: Model) -> None:
        if not isinstance(model, Model):
            raise InputError(
                f"A chat needs a loaded model, not a {type(model).__name__}.",
                hint=f"wb.load({model!r}) first." if isinstance(model, str) else "wb.load one.",
            )
        self._powers, self._made_by = model.powers, made_by(model)
        self.model = model
        if not self.dialogue.made_by:
            self.dialogue.model, self.dialogue.made_by = model.label, self._made_by

    def _last(self, turn_id: str | None) -> Turn:
        """Return the named turn, or the last one on view."""
        if turn_id is not None:
            return self.dialogue[turn_id]
        path = self.dialogue.path()
        if not path:
            raise InputError("Nothing has been said yet.", hint="Ask something first.")
        return path[-1]

    def _answered(self, turn_id: str | None) -> Turn:
        """Return the named answer, or the last one on view."""
        if turn_id is not None:
            return self.dialogue[turn_id]
        answers = [turn for turn in self.dialogue.path() if turn.role == "assistant"]
        if not answers:
            raise InputError("There is no answer yet.", hint="Ask something first.")
        return answers[-1]


def clean_text(text: str) -> str:
    """Return a text that can be sent and saved: halves of characters become U+FFFD."""
    if not isinstance(text, str):
        raise InputError(f"What is said is a text, not a {type(text).__name__}.")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _sentence(error: BaseException | None) -> str | None:
    if error is None:
        return None
    said = told(error)
    return " ".join(part for part in (said["message"], said["hint"]) if part)
