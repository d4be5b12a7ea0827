"""A conversation as data: turns in a tree, of which one branch is on view; nothing is ever lost."""

from __future__ import annotations

import dataclasses
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.chats.tree import Tree, sent_of
from workbench.chats.turn import Turn, beginning, now, plain, plain_sampling
from workbench.errors import InputError
from workbench.messages import Conversation, Image, Message, Reply, Sampling, as_messages

__all__ = ["SCHEMA", "Dialogue", "Turn"]

SCHEMA = 1
_TITLE = 60


class Dialogue:
    """A conversation with its branches.

    Safe to read in one thread while another writes. A turn that is edited or asked again gets a
    sibling; which sibling is on view is remembered at every fork.

    Args:
        system: System prompt, "" for none.
        title: A name, "" to take the beginning of the first question.
        model: Label of the model it is held with.
        made_by: What that model is: card, engine, quantization, ... (``made_by`` makes it).

    Attributes:
        id: Eight hexadecimal digits; four more where it parted from a copy with those eight.
        created: When it began, ISO 8601 in UTC.
        changed: Called with no argument after every change, outside the lock; None for nothing.
    """

    def __init__(
        self,
        *,
        system: str = "",
        title: str = "",
        model: str = "",
        made_by: Mapping[str, Any] | None = None,
    ) -> None:
        self.id = secrets.token_hex(4)
        self.created = now()
        self.model = model
        self.made_by: dict[str, Any] = plain(made_by or {})
        self.changed: Callable[[], None] | None = None
        self._system, self._title = system, title
        self._tree = Tree()
        self._lock = threading.RLock()

    @classmethod
    def of(cls, conversation: Conversation, **facts: Any) -> Dialogue:
        """Return a dialogue of one branch that holds these messages.

        Args:
            conversation: A string (one user turn) or a list of messages; a system message may
                come first.
            facts: ``title``, ``model``, ``made_by``.

        Raises:
            InputError: A message is wrong, or a system message does not come first.
        """
        messages = list(as_messages(conversation))
        system = messages.pop(0).content if messages[0].role == "system" else ""
        found = cls(system=system, **facts)
        for message in messages:
            found.add(message)
        return found

    # What is there

    @property
    def system(self) -> str:
        """System prompt in force, "" for none."""
        return self._system

    @system.setter
    def system(self, text: str) -> None:
        self._system = text
        self._tell()

    @property
    def title(self) -> str:
        """Its name, or the beginning of its first question."""
        if self._title:
            return self._title
        first = next((turn.text for turn in self if turn.role == "user"), "")
        return beginning(first, _TITLE)

    @title.setter
    def title(self, text: str) -> None:
        self._title = text
        self._tell()

    @property
    def turns(self) -> dict[str, Turn]:
        """All turns of all branches by their id, in order of making: a copy as of now."""
        with self._lock:
            return dict(self._tree.turns)

    def __iter__(self) -> Iterator[Turn]:
        return iter(self.turns.values())

    def __len__(self) -> int:
        return len(self._tree.turns)

    def __bool__(self) -> bool:
        return True  # an empty dialogue is a dialogue

    def __getitem__(self, turn_id: str) -> Turn:
        """Return one turn, or raise InputError where there is none."""
        with self._lock:
            return self._found(turn_id)

    def path(self) -> list[Turn]:
        """Return the branch on view, from its first turn to its last."""
        with self._lock:
            return self._tree.path()

    def line(self, turn_id: str) -> list[Turn]:
        """Return the turns from the first down to ``turn_id``, on view or not."""
        with self._lock:
            return self._tree.line(self._found(turn_id).id)

    def messages(self, until: str | None = None, *, system: str | None = None) -> list[Message]:
        """Return what a model is to be sent: the system prompt and a branch.

        An answer without a word (it failed, was stopped at once, or is still to come) is left
        out; where the talk went on after it, its question is left out with it, because many chat
        templates refuse two user turns in a row.

        Args:
            until: Last turn to hold, on view or not; None for the whole branch on view.
            system: Another system prompt than the one in force.
        """
        with self._lock:
            turns = self.path() if until is None else self.line(until)
            prompt = self._system if system is None else system
        sent = sent_of(turns)
        return [Message("system", prompt), *sent] if prompt else sent

    def siblings(self, turn_id: str) -> list[str]:
        """Return the ids of all turns at the place of ``turn_id``, itself too, oldest first."""
        with self._lock:
            return self._tree.children(self._found(turn_id).parent)

    # What changes it

    def say(self, text: str, images: Sequence[Image] = ()) -> Turn:
        """Add a user's turn at the end of the branch on view."""
        return self.add(Message("user", text, tuple(images)))

    def add(self, message: Message, *, parent: str | None = None, **facts: Any) -> Turn:
        """Add a finished turn, which comes on view.

        Args:
            message: What is said, by user, assistant or tool.
            parent: The turn it follows; None for the last one on view.
            facts: Further fields of ``Turn``: ``reply``, ``sampling``, ``model``, ...

        Raises:
            InputError: A system message, or no such parent.
        """
        if message.role == "system":
            raise InputError(
                "A system message is no turn of a dialogue.", hint="Set dialogue.system instead."
            )
        with self._lock:
            if parent is None:
                path = self.path()
                parent = path[-1].id if path else None
            else:
                self._found(parent)
            if message.role == "assistant":
                facts = {"model": self.model, "system": self._system, **facts}
                if facts.get("reply") is None and not facts.get("error"):
                    facts["reply"] = Reply(text=message.content, tool_calls=message.tool_calls)
            turn = self._put(message, parent, facts)
        self._tell()
        return turn

    def answer(
        self,
        parent: str,
        *,
        sampling: Sampling | Mapping[str, Any] | None = None,
        model: str | None = None,
        made_by: Mapping[str, Any] | None = None,
    ) -> Turn:
        """Open an empty answer to ``parent``, which comes on view; ``finish`` fills it.

        Args:
            parent: The turn that is answered; one that has an answer gets a sibling of it.
            sampling: Settings in force.
            model: Label of the model, None for the dialogue's.
            made_by: What the model is; None for the dialogue's.

        Raises:
            InputError: There is no such turn, or it is an assistant's.
        """
        with self._lock:
            if self._found(parent).role == "assistant":
                raise InputError(f"Turn {parent} is an answer itself; its question is answered.")
            facts = {
                "sampling": plain_sampling(sampling),
                "model": self.model if model is None else model,
                "made_by": plain(made_by or {}),
                "system": self._system,
            }
            turn = self._put(Message("assistant", ""), parent, facts)
        self._tell()
        return turn

    def finish(self, turn_id: str, reply: Reply | None = None, *, error: str | None = None) -> Turn:
        """Fill an answer, also one that is filled already, and return the turn as it is now.

        Args:
            turn_id: The answer.
            reply: What was said, in full or in part; None where nothing was.
            error: Why it failed.

        Raises:
            InputError: There is no such turn, or it is no answer.
        """
        with self._lock:
            turn = self._found(turn_id)
            if turn.role != "assistant":
                raise InputError(f"Turn {turn_id} is the {turn.role}'s: only an answer is filled.")
            if reply is not None:
                turn = turn.filled(reply)
            error = error or (reply.error if reply is not None else "") or None
            turn = dataclasses.replace(turn, error=error)
            self._tree.fill(turn)
        self._tell()
        return turn

    def so_far(self, turn: Turn, reply: Reply) -> None:
        """Note what an answer in progress holds by now, for its file; the turn stays as it is.

        Args:
            turn: The answer as it was when it began; nothing is done once it is filled.
            reply: What has come, with ``finish_reason="interrupted"``.
        """
        with self._lock:
            if self._tree.turns.get(turn.id) is not turn:
                return
            self._tree.partial[turn.id] = turn.filled(reply)
        self._tell()

    def edit(self, turn_id: str, text: str, *, images: Sequence[Image] | None = None) -> Turn:
        """Add a sibling of a user's turn with another text, which comes on view.

        Args:
            turn_id: The turn to say otherwise; it and all that follows it stay.
            text: The new text.
            images: The new pictures; None keeps the turn's.

        Raises:
            InputError: There is no such turn, or it is not the user's.
        """
        with self._lock:
            old = self._found(turn_id)
            if old.role != "user":
                raise InputError(f"Turn {turn_id} is the {old.role}'s: only the user's are edited.")
            shown = old.message.images if images is None else tuple(images)
            turn = self._put(Message("user", text, shown), old.parent, {})
        self._tell()
        return turn

    def show(self, turn_id: str) -> None:
        """Put the branch that goes through ``turn_id`` on view, as far down as it was seen last.

        Raises:
            InputError: There is no such turn.
        """
        with self._lock:
            self._tree.show(self._found(turn_id).id)
        self._tell()

    def clear(self) -> None:
        """Begin anew with an empty branch; the old ones stay, and ``show`` brings them back."""
        with self._lock:
            self._tree.clear()
        self._tell()

    # As data

    def facts(self) -> dict[str, Any]:
        """Return all but the turns as plain data."""
        with self._lock:
            return {
                "schema_version": SCHEMA,
                "kind": "dialogue",
                "id": self.id,
                "title": self._title,
                "created": self.created,
                "system": self._system,
                "model": self.model,
                "made_by": self.made_by,
                "shown": dict(self._tree.shown),
            }

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data: the facts, and the list of turns."""
        with self._lock:
            return {**self.facts(), "turns": self._tree.stored()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Dialogue:
        """Return the dialogue that ``as_dict`` made plain.

        Raises:
            InputError: It is no dialogue, of a later schema, or its turns do not hang together.
        """
        if not isinstance(values, Mapping) or values.get("kind") != "dialogue":
            raise InputError("This is no dialogue: its facts do not say so.")
        if values.get("schema_version") != SCHEMA:
            raise InputError(
                f"This is a dialogue of schema {values.get('schema_version')!r}; "
                f"this version reads {SCHEMA}."
            )
        try:
            told = {name: str(values[name]) for name in ("system", "title", "model")}
            found = cls(**told, made_by=dict(values["made_by"]))
            found.id, found.created = str(values["id"]), str(values["created"])
            shown, turns = dict(values["shown"]), list(values["turns"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"This is no dialogue: {type(error).__name__}: {error}.") from None
        for each in turns:
            found._tree.take(Turn.from_dict(each))
        found._tree.restore(shown)
        return found

    def save(self, path: str | Path) -> Path:
        """Write it as JSONL (``.jsonl``) or Markdown (``.md``), and return the file.

        Raises:
            InputError: Another ending.
        """
        from workbench.chats.keeping import save

        return save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Dialogue:
        """Read what ``save`` wrote: JSONL in full, Markdown as turns and their text.

        Raises:
            InputError: There is no such file, or it holds no dialogue.
        """
        from workbench.chats.keeping import load

        return load(path)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Dialogue):
            return NotImplemented
        return self.as_dict() == other.as_dict()

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<Dialogue {self.id} {self.title!r}: {len(self)} turns>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        from workbench.chats.transcript import Transcript

        return Transcript(self)._repr_mimebundle_()

    # Inside

    def _put(self, message: Message, parent: str | None, facts: Mapping[str, Any]) -> Turn:
        """Make a turn, on view; the lock is held."""
        number = str(len(self._tree.turns) + 1)
        told = {"time": now(), **facts}
        turn = Turn(id=number, parent=parent, message=message, **told)
        self._tree.take(turn)
        self._tree.show(number)
        return turn

    def _found(self, turn_id: str) -> Turn:
        found = self._tree.turns.get(turn_id)
        if found is None:
            raise InputError(
                f"The dialogue {self.id} has no turn {turn_id!r}.",
                hint=f"It has {len(self)} turns, numbered from '1'.",
            )
        return found

    def _tell(self) -> None:
        if self.changed is not None:
            self.changed()
