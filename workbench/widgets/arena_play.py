"""An arena in progress: rounds are begun, stopped and voted on; a front end is told."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.chats.votes import Vote, Votes
from workbench.errors import EngineError, InputError, did_you_mean
from workbench.messages import Message, Sampling
from workbench.widgets import arena_wire
from workbench.widgets.arena_bout import Bout, Corner
from workbench.widgets.arena_contestants import Contestant
from workbench.widgets.arena_round import Entry, Round
from workbench.widgets.chat_talk import Listener, Nobody

TIE, BAD = "tie", "both bad"
_BAD = ("bad", "both bad", "all bad", "none")


class Play:
    """Rounds of one arena; what begins one returns at once.

    Any thread may call it: one lock holds rounds, talks and messages together.

    Attributes:
        contestants: Who answers.
        rounds: What was asked, in order.
        votes: The votes.
        prompts: What is still to be asked of the list that was given.
        blind: Whether the names of new rounds are hidden until their vote.
        lock: Held while anything changes or is told.
        listener: Who is told.
        bout: The round in progress, or None.
        blocking: Whether a cell waits for it.
    """

    def __init__(
        self,
        contestants: Sequence[Contestant],
        *,
        votes: Path,
        prompts: Sequence[str] = (),
        blind: bool = False,
        seed: int | None = None,
        together: bool | None = None,
        system: str = "",
        title: str = "",
    ) -> None:
        self.contestants, self.prompts, self.blind = list(contestants), list(prompts), blind
        self.title = title
        self.rounds: list[Round] = []
        self.votes = Votes(path=votes)
        self.lock = threading.RLock()
        self.listener: Listener = Nobody()
        self.bout: Bout | None = None
        self.blocking = False
        self._random, self._together = random.Random(seed), together
        self._corners = {id(each): Corner(each, self) for each in contestants}
        for each in contestants:
            each.dialogue.system = system
            each.dialogue.title = title

    # Rounds

    def ask(
        self, message: Message, *, follow: bool = False, sampling: Mapping[str, Any] | None = None
    ) -> Round:
        """Begin a round: all contestants are asked the same.

        Raises:
            EngineError: A round is in progress.
            InputError: A setting is wrong, or there is nothing to follow.
        """
        with self._idle():
            changes = dict(sampling or {})
            Sampling.of(None, **changes)  # a wrong name is refused here, not in every column
            if follow and not self.rounds:
                raise InputError("Nothing has been asked yet.", hint="Ask without follow=True.")
            last = self.rounds[-1] if follow else None
            order = self._order(last)
            # After a reveal the names of those who go on are known.
            blind = self.blind if last is None else last.hidden
            number = len(self.rounds) + 1
            round = Round(number, message, order, follows=follow, blind=blind)
            self.rounds.append(round)
            corners = [self._corners[id(each)] for each in order]
            self.bout = Bout(round, corners, told=self, together=self._together, sampling=changes)
            self._tell_round(round)
            self.tell_busy()
            self.bout.begin()
            return round

    def _order(self, last: Round | None) -> list[Contestant]:
        if last is not None:
            return [entry.contestant for entry in last.entries]
        order = list(self.contestants)
        if self.blind:
            self._random.shuffle(order)
        return order

    def next(self, **sampling: Any) -> Round:
        """Begin a round with the next prompt of the list.

        Raises:
            InputError: There is none left.
        """
        with self._idle():
            if not self.prompts:
                raise InputError("No prompt is left in the list.", hint="Ask one of your own.")
            found = self.ask(Message("user", self.prompts[0]), sampling=sampling)
            self.prompts.pop(0)
            self._tell_prompts()
            return found

    def stop(self, place: int | None = None) -> None:
        """End one answer of the round in progress, or all of them."""
        bout = self.bout
        if bout is not None and (place is None or place < len(bout.round.entries)):
            bout.stop(place)

    # Votes

    def vote(self, choice: str | int, *, number: int | None = None, note: str = "") -> Vote:
        """Take the vote on a round and show its names.

        Args:
            choice: A letter or place, a contestant's name, ``tie``, or ``bad`` for none of them.
            number: The round; None for the last.
            note: A remark.

        Raises:
            InputError: No such choice, the round is not over, or it was voted on.
        """
        with self.lock:
            round = self._round(number)
            candidates = round.candidates
            if round.running:
                raise InputError("The round goes on.", hint="Vote when all have answered.")
            if len(candidates) < 2:
                raise InputError(f"Round {round.number} has fewer than two answers to vote on.")
            best, said = self._chosen(round, candidates, choice)
            self._take_back(round)
            round.vote = self.votes.add(
                round.prompt,
                [entry.contestant.name for entry in candidates],
                best=best,
                blind=round.hidden,
                note=note or said,
                details=self._details(round),
            )
            round.hidden = False
            self._tell_round(round)
            self._tell_votes()
            vote = round.vote
        self.update()
        return vote

    def _chosen(
        self, round: Round, candidates: Sequence[Entry], choice: str | int
    ) -> tuple[str | None, str]:
        """Return the best one's name, or None with what the vote says instead."""
        said = str(choice).strip()
        if said.lower() in _BAD:
            return None, BAD if len(candidates) == 2 else "all bad"
        if said.lower() == TIE:
            return None, TIE
        names = {entry.contestant.name: entry for entry in candidates if not round.hidden}
        letters = {round.letter(place): e for place, e in enumerate(round.entries)}
        entry = names.get(said) or letters.get(said.upper())
        if isinstance(choice, int) and 0 <= choice < len(round.entries):
            entry = round.entries[choice]
        if entry is None or entry not in candidates:
            known = [letter for letter, each in letters.items() if each in candidates]
            raise InputError(
                f"{said!r} is none of the answers.",
                hint=f"{did_you_mean(said, [*known, *names])} Vote {', '.join(known)}, tie or bad.",
            )
        return entry.contestant.name, ""

    def _take_back(self, round: Round) -> None:
        """Take the vote of a round back; only the last one that was open to all eyes can be."""
        if round.vote is None:
            return
        last = self.votes[len(self.votes) - 1] if len(self.votes) else None
        if last is not round.vote or round.vote.blind:
            raise InputError(
                f"Round {round.number} was voted on.",
                hint="A blind vote stands: the names are known now."
                if round.vote.blind
                else "Only the last vote can be changed.",
            )
        self.votes.undo()
        round.vote = None

    def _details(self, round: Round) -> dict[str, Any]:
        return {
            "round": round.number,
            "follows": round.follows,
            "answers": {
                entry.contestant.name: {
                    "dialogue": entry.contestant.dialogue.id,
                    "turn": entry.turn_id,
                    "state": entry.state,
                }
                for entry in round.entries
            },
        }

    def reveal(self, number: int | None = None) -> None:
        """Show the names of a round without a vote; a vote after it is not blind."""
        with self.lock:
            round = self._round(number)
            if round.running:
                raise InputError("The round goes on.", hint="Stop it first, or wait for its end.")
            round.hidden = False
            self._tell_round(round)
        self.update()

    def differences(self, number: int | None, base: int) -> None:
        """Tell the front end what differs from one answer of a round."""
        with self.lock:
            round = self._round(number)
            if round.running or not 0 <= base < len(round.entries):
                raise InputError("There is nothing to compare yet.")
            columns = arena_wire.differences_of(round, base)
            self.tell("differences", round=round.number, base=base, columns=columns)

    def _round(self, number: int | None) -> Round:
        if not self.rounds:
            raise InputError("Nothing has been asked yet.", hint="Ask something first.")
        if number is None:
            return self.rounds[-1]
        if not 1 <= number <= len(self.rounds):
            raise InputError(f"There is no round {number} among {len(self.rounds)}.")
        return self.rounds[number - 1]

    # What is told

    @property
    def seen(self) -> bool:
        """Whether a front end draws what is told."""
        return self.listener.seen

    def tell(self, kind: str, **values: Any) -> None:
        """Tell one message."""
        with self.lock:
            self.listener.tell(kind, **values)

    def column(self, round: Round, place: int) -> None:
        """Tell one column whole."""
        with self.lock:
            if self.seen:
                column = arena_wire.column_of(round, place)
                self.tell("column", round=round.number, place=place, column=column)

    def ended(self, round: Round) -> None:
        """Take the end of a round."""
        with self.lock:
            self.bout = None
            round.end()
            self._tell_round(round)
            self.tell_busy()
        if not self.blocking:  # else the cell that waits does it, in its own thread
            self.update()

    def update(self) -> None:
        """Bring static copies up to date."""
        self.listener.update()

    def tell_busy(self) -> None:
        """Tell whether a round is in progress."""
        with self.lock:
            self.tell("busy", **self._busy())

    def state(self) -> dict[str, Any]:
        """Return the whole state for a front end; the lock is held."""
        return {
            "title": self.title,
            "contestants": [self._contestant(each) for each in self.contestants],
            "rounds": [arena_wire.round_of(round) for round in self.rounds],
            "blind": self.blind,
            "prompts": self._prompts(),
            "votes": self._votes(),
            **self._busy(),
        }

    def _contestant(self, contestant: Contestant) -> dict[str, Any]:
        talk = self._corners[id(contestant)].talk
        return arena_wire.contestant_of(contestant, talk.settings if talk else None)

    def _busy(self) -> dict[str, Any]:
        number = self.bout.round.number if self.bout is not None else None
        return {"busy": number, "blocking": self.blocking}

    def _prompts(self) -> dict[str, Any]:
        return {"left": len(self.prompts), "next": self.prompts[0] if self.prompts else None}

    def _votes(self) -> dict[str, Any]:
        return arena_wire.votes_of(self.votes, [each.name for each in self.contestants])

    def _tell_round(self, round: Round) -> None:
        if self.seen:
            self.tell("round", round=arena_wire.round_of(round))

    def _tell_votes(self) -> None:
        self.tell("votes", votes=self._votes())

    def _tell_prompts(self) -> None:
        self.tell("prompts", prompts=self._prompts())

    # Guards

    @contextlib.contextmanager
    def _idle(self) -> Iterator[None]:
        with self.lock:
            if self.bout is not None:
                raise EngineError("A round is in progress.", hint="Stop it, or wait for its end.")
            yield

    def close(self) -> None:
        """Free the models that the arena loaded."""
        for each in self.contestants:
            each.source.unload()
