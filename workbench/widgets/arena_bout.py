"""One prompt on its way to all contestants: at once where memory allows, else in turns."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from workbench import notebook
from workbench.chats.dialogue import Dialogue
from workbench.chats.keeping import keep_always
from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.errors import EngineError
from workbench.progress import Bar
from workbench.widgets.arena_contestants import Contestant, Source
from workbench.widgets.arena_round import ACTIVE, OPEN, Entry, Round, sentence
from workbench.widgets.chat_talk import Talk

_LOOK = 0.03


class Told(Protocol):
    """Who is told how a round goes on; each call holds the arena's lock or takes it."""

    lock: Any

    @property
    def seen(self) -> bool:
        """Whether a front end draws what is told."""
        ...

    def tell(self, kind: str, **values: Any) -> None:
        """Take one message."""
        ...

    def column(self, round: Round, place: int) -> None:
        """Tell one column whole."""
        ...

    def ended(self, round: Round) -> None:
        """Take the end of a round."""
        ...


class Corner:
    """A contestant with its talk, which lasts from round to round.

    Attributes:
        contestant: Who answers.
        talk: Its conversation, there once its model was loaded for the first time.
        place: Where its answer is shown now, and in which round.
    """

    def __init__(self, contestant: Contestant, told: Told) -> None:
        self.contestant, self._told = contestant, told
        self.talk: Talk | None = None
        self._kept = False
        self._round: Round | None = None
        self._place = 0

    def adapt(self) -> None:
        """Put the contestant's adapter on the model, which takes a moment."""
        contestant, model = self.contestant, self.contestant.source.model
        if not contestant.switches or model is None or model.closed:
            return
        if _adapter(model) != contestant.adapter:
            model.use_adapter(contestant.adapter)

    def ready(self, round: Round, place: int) -> Talk:
        """Return the talk of a model that is loaded; the lock is held."""
        self._round, self._place = round, place
        contestant, model = self.contestant, self.contestant.source.model
        if model is None:
            raise EngineError(f"{contestant.name} is not loaded.", hint="Ask again.")
        if self.talk is None:
            talk = Talk(model, contestant.dialogue, sampling=contestant.sampling)
            talk.lock, talk.listener = self._told.lock, self  # one lock for all: they meet in it
            self.talk = talk
        elif not model.closed:
            self.talk.use(model)
        self.keep()
        return self.talk

    def keep(self) -> None:
        """Write the dialogue to ``outputs/chats/`` from now on."""
        dialogue, plan = self.contestant.dialogue, self.contestant.source.plan
        if not self._kept:
            if not dialogue.made_by:
                dialogue.model = plan.label
                dialogue.made_by = {"card": plan.card.id, "engine": plan.engine}
            keep_always(dialogue)
            self._kept = True

    # As the talk's listener

    @property
    def seen(self) -> bool:
        """Whether a front end draws what is told."""
        return self._told.seen

    def tell(self, kind: str, **values: Any) -> None:
        """Hand on what belongs to a column."""
        round, place = self._round, self._place
        if round is None:
            return
        entry = round.entries[place]
        if kind in ("delta", "tool"):
            self._told.tell(kind, round=round.number, place=place, **values)
        elif kind == "turn" and values["turn"]["role"] == "assistant" and self.talk is not None:
            entry.turn_id, entry.answer = values["turn"]["id"], self.talk.answer
            self._told.column(round, place)
        elif kind == "busy" and (values.get("note") or "") != entry.note:
            entry.note = values.get("note") or ""
            self._told.column(round, place)

    def update(self) -> None:
        """Do nothing: static copies are brought up to date at the end of a round."""


class Bout:
    """A round that goes on in threads of its own; each answer streams in those of its talk.

    Contestants whose models are open answer at once, but those of one model one after another
    unless its engine batches. A description is loaded beside the others where its plan fits into
    what is free with the plan's margin; else models that the arena loaded and that do not answer
    now are closed for it, and where all of them do, it waits.

    Args:
        round: What is asked.
        corners: The contestants in the order shown.
        told: Who is told.
        together: True loads and answers all at once, False one after the other, None by plan.
        sampling: Settings for this round only.
    """

    def __init__(
        self,
        round: Round,
        corners: Sequence[Corner],
        *,
        told: Told,
        together: bool | None,
        sampling: Mapping[str, Any],
    ) -> None:
        self.round, self._corners, self._told = round, list(corners), told
        self._together, self._sampling = together, dict(sampling)
        self._over = threading.Event()
        self._changed = threading.Event()
        models = {id(c.contestant.source): c.contestant for c in corners if c.contestant.switches}
        self._before = [
            (each.source, _adapter(each.source.model))
            for each in models.values()
            if each.source.model is not None and not each.source.owned
        ]

    @property
    def over(self) -> bool:
        """Whether every contestant is done."""
        return self._over.is_set()

    def begin(self) -> None:
        """Begin; returns at once."""
        threading.Thread(target=self._run, name="arena-round", daemon=True).start()

    def stop(self, place: int | None = None) -> None:
        """End one answer, or all, between two tokens; those that wait do not begin."""
        chosen = self.round.entries if place is None else [self.round.entries[place]]
        for entry in chosen:
            entry.stopped = True
            generation = entry.answer.generation if entry.answer is not None else None
            if generation is not None:
                generation.stop()
        self._changed.set()

    def join(self, seconds: float | None = None) -> bool:
        """Wait until it is over; return whether it is."""
        return self._over.wait(seconds)

    # The round's own thread

    def _run(self) -> None:
        entries = self.round.entries
        try:
            while any(entry.state in OPEN for entry in entries):
                self._collect()
                place = self._next()
                if place is not None:
                    self._start(place)
                    continue
                self._changed.wait(_LOOK)
                self._changed.clear()
        except BaseException as error:  # a fault of ours must not leave the arena busy for ever
            for place, entry in enumerate(entries):
                if entry.state in OPEN:
                    entry.error = error
                    self._set(place, "failed")
        finally:
            self._put_back()
            try:
                self._told.ended(self.round)
            finally:
                self.round.end()
                self._over.set()

    def _collect(self) -> None:
        """Take the answers that ended since, and those that are not wanted any more."""
        answering = [e for e in self.round.entries if e.state in ACTIVE and e.answer is not None]
        for place, entry in enumerate(self.round.entries):
            if entry in answering:
                entry.beside = max(entry.beside, len(answering))
            if entry.state == "waiting" and entry.stopped:
                self._set(place, "stopped")
            elif entry.state == "answering" and entry.answer is not None:
                made = entry.answer.generation
                if made is not None and made.over:
                    self._finished(place, entry, made.error)

    def _finished(self, place: int, entry: Entry, error: BaseException | None) -> None:
        entry.error, entry.note = error, ""
        reply = entry.reply
        cancelled = reply is None or reply.finish_reason == "cancelled"
        self._set(place, "failed" if error is not None else "stopped" if cancelled else "done")

    def _next(self) -> int | None:
        """Return who may begin now; blind contestants begin in the order shown, or it tells."""
        entries = self.round.entries
        waiting = [place for place, entry in enumerate(entries) if entry.state == "waiting"]
        if self.round.hidden:
            waiting = waiting[:1]
        else:  # what is loaded first: it may have to make room
            waiting.sort(key=lambda place: not entries[place].contestant.source.open)
        for place in waiting:
            if self._may(entries[place].contestant):
                return place
        return None

    def _may(self, contestant: Contestant) -> bool:
        active = [entry for entry in self.round.entries if entry.state in ACTIVE]
        if self._together is False and active:
            return False
        source = contestant.source
        if source.open or not source.owned:
            return all(contestant.beside(entry.contestant) for entry in active)
        if any(entry.state == "loading" for entry in active):
            return False  # one load at a time: what is free must be known
        others = self._loaded(source)
        if self._together or not others or self._idle(others) or source.fits():
            return True
        return not active

    def _loaded(self, but: Source) -> list[Source]:
        """Return what the arena itself holds in memory beside one source, oldest first."""
        found = {id(c.contestant.source): c.contestant.source for c in self._corners}
        return [each for each in found.values() if each.owned and each.open and each is not but]

    def _idle(self, sources: Sequence[Source]) -> list[Source]:
        """Return those that nobody answers with now, first those whose part is over."""
        entries = self.round.entries
        busy = {id(e.contestant.source) for e in entries if e.state in ACTIVE}
        ahead = {id(e.contestant.source) for e in entries if e.state == "waiting"}
        idle = [source for source in sources if id(source) not in busy]
        return sorted(idle, key=lambda source: id(source) in ahead)

    def _start(self, place: int) -> None:
        entry = self.round.entries[place]
        source = entry.contestant.source
        loads = source.owned and not source.open
        self._set(place, "loading" if loads else "answering")
        work = self._load_and_ask if loads else self._ask
        threading.Thread(target=work, args=(place,), name="arena-entry", daemon=True).start()

    def _load_and_ask(self, place: int) -> None:
        entry = self.round.entries[place]
        source = entry.contestant.source
        try:
            if not self._together:
                for idle in self._idle(self._loaded(source)):
                    if source.fits():
                        break
                    idle.unload()
            drawn = self._told.seen or notebook.in_kernel()  # else a terminal draws its own bar
            source.load((lambda bars: self._loading(place, bars)) if drawn else None)
        except BaseException as error:  # also a SystemExit of an engine belongs to its column
            self._fail(place, error)
            return
        entry.note, entry.share = "", None
        self._set(place, "answering")
        self._ask(place)

    def _loading(self, place: int, bars: Sequence[Bar]) -> None:
        """Take a moment of loading: the innermost work, and the share of it that is done."""
        entry = self.round.entries[place]
        if entry.state != "loading":
            return
        entry.share = bars[-1].share
        known = bars[-1].line() if bars[-1].total else ""
        entry.note = known or f"{bars[-1].title}, {bars[0].elapsed:.0f} s"
        self._told.column(self.round, place)

    def _ask(self, place: int) -> None:
        entry, corner = self.round.entries[place], self._corners[place]
        if entry.stopped:
            self._set(place, "stopped")
            return
        try:
            corner.adapt()
            with self._told.lock:
                # The lock makes turn, answer and column one step for whoever asks for the state.
                talk = corner.ready(self.round, place)
                if not self.round.follows:
                    corner.contestant.dialogue.clear()
                answer = talk.send(self.round.message, **self._sampling)
                entry.answer, entry.turn_id = answer, answer.turn_id
            if self.round.entries[place].stopped:  # meanwhile
                self.stop(place)
        except BaseException as error:
            self._fail(place, error)
        self._changed.set()

    def _fail(self, place: int, error: BaseException) -> None:
        """Keep a failure as an answer that failed, so that the dialogue tells of it too."""
        entry, corner = self.round.entries[place], self._corners[place]
        dialogue: Dialogue = corner.contestant.dialogue
        entry.error, entry.note, entry.share = error, "", None
        with contextlib.suppress(Exception), self._told.lock:
            corner.keep()
            if not self.round.follows:
                dialogue.clear()
            question = dialogue.add(self.round.message)
            turn = dialogue.answer(question.id, model=corner.contestant.source.label)
            dialogue.finish(turn.id, error=sentence(error))
            entry.turn_id = turn.id
        self._set(place, "failed")
        self._changed.set()

    def _set(self, place: int, state: Any) -> None:
        self.round.entries[place].state = state
        self._told.column(self.round, place)

    def _put_back(self) -> None:
        """Put the adapters back that the user's own models had."""
        for source, adapter in self._before:
            model = source.model
            with contextlib.suppress(Exception):
                if model is not None and not model.closed and _adapter(model) != adapter:
                    model.use_adapter(adapter)


def _adapter(model: Model | None) -> Any:
    if model is None or model.closed or Power.ADAPTERS not in model.powers:
        return None
    return model.plan.adapter
