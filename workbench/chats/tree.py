"""The branches of a dialogue: turns, the turn each one follows, and which branch is on view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.chats.turn import Turn
from workbench.errors import InputError
from workbench.messages import Message

_ROOT = ""  # stands for "no parent": JSON wants a text as key


class Tree:
    """Turns by their id; whoever holds it keeps other threads away.

    Attributes:
        turns: All turns, in order of making.
        shown: Parent's id ("" for none) to the child on view, None for an empty branch.
        partial: Answers in progress with what they held when somebody looked last.
    """

    def __init__(self) -> None:
        self.turns: dict[str, Turn] = {}
        self.partial: dict[str, Turn] = {}
        self.shown: dict[str, str | None] = {}

    def path(self) -> list[Turn]:
        """Return the branch on view, from its first turn to its last."""
        found: list[Turn] = []
        place = self.shown.get(_ROOT)
        while place is not None:
            found.append(self.turns[place])
            place = self.shown.get(place)
        return found

    def line(self, turn_id: str) -> list[Turn]:
        """Return the turns from the first down to ``turn_id``."""
        found = [self.turns[turn_id]]
        while (parent := found[-1].parent) is not None:
            found.append(self.turns[parent])
        return found[::-1]

    def children(self, parent: str | None) -> list[str]:
        """Return the ids of the turns that follow ``parent``, oldest first."""
        return [turn.id for turn in self.turns.values() if turn.parent == parent]

    def show(self, turn_id: str) -> None:
        """Put the branch through ``turn_id`` on view."""
        for turn in self.line(turn_id):
            self.shown[_key(turn.parent)] = turn.id

    def clear(self) -> None:
        """Put an empty branch on view."""
        self.shown[_ROOT] = None

    def take(self, turn: Turn) -> None:
        """Take a turn after the one that it follows; what is on view stays.

        Raises:
            InputError: Its number is not the next, or what it follows is not there.
        """
        if turn.id != str(len(self.turns) + 1):
            raise InputError(f"Turn {turn.id} stands where {len(self.turns) + 1} should.")
        if turn.parent is not None and turn.parent not in self.turns:
            raise InputError(f"Turn {turn.id} follows {turn.parent}, which is not before it.")
        self.turns[turn.id] = turn

    def fill(self, turn: Turn) -> None:
        """Put an answer with its content in its place."""
        self.turns[turn.id] = turn
        self.partial.pop(turn.id, None)

    def stored(self) -> list[dict[str, Any]]:
        """Return all turns as plain data, answers in progress with what they hold."""
        return [self.partial.get(turn.id, turn).as_dict() for turn in self.turns.values()]

    def restore(self, shown: Mapping[str, Any]) -> None:
        """Take which branches are on view.

        Raises:
            InputError: It names a turn that is not there, or not at that place.
        """
        for place, child in shown.items():
            known = child in self.turns and _key(self.turns[child].parent) == place
            if child is not None and not known:
                raise InputError(f"The branch on view goes from {place!r} to {child!r}.")
            self.shown[place] = child


def sent_of(turns: Sequence[Turn]) -> list[Message]:
    """Return the messages of turns that follow one another, without answers that said nothing.

    Where the talk went on after such an answer, its question is left out with it: many chat
    templates refuse two user turns in a row.
    """
    sent: list[Message] = []
    for index, turn in enumerate(turns):
        if not turn.silent:
            sent.append(turn.message)
        elif index < len(turns) - 1 and sent and sent[-1].role == "user":
            sent.pop()
    return sent


def _key(parent: str | None) -> str:
    return _ROOT if parent is None else parent
