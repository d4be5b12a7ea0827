"""One prompt in an arena: the answers side by side, their figures, and where they part."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any, Literal

from workbench.chats.dialogue import Turn
from workbench.chats.difference import Span, differences, first_divergence
from workbench.chats.votes import Vote
from workbench.errors import WorkbenchError
from workbench.figures import Table
from workbench.messages import Message, Piece, Reply
from workbench.widgets.arena_contestants import Contestant
from workbench.widgets.chat_answer import Answer

State = Literal["waiting", "loading", "answering", "done", "stopped", "failed"]
OPEN: tuple[State, ...] = ("waiting", "loading", "answering")
ACTIVE: tuple[State, ...] = ("loading", "answering")
_COLUMNS = {
    "place": "",
    "name": "contestant",
    "ttft_ms": "TTFT (ms)",
    "tokens_per_second": "tokens/s",
    "tokens": "tokens",
    "characters": "characters",
    "finish": "finish",
    "best": "best",
}
_LONG = ("name", "finish")
_FORMATS = {"ttft_ms": ".0f", "tokens_per_second": ".1f"}


@dataclasses.dataclass(eq=False, kw_only=True)
class Entry:
    """One contestant's part in a round.

    Attributes:
        contestant: Who answers.
        state: How far it is.
        note: Why nothing comes yet, or what loading does; "" for nothing.
        share: Share of the loading that is done, or None.
        turn_id: The answer's turn in the contestant's dialogue, once it is there.
        answer: The answer while it grows and after.
        error: Why it failed.
        stopped: Whether somebody wants it to end.
        beside: How many answered at the same time, itself counted.
    """

    contestant: Contestant
    state: State = "waiting"
    note: str = ""
    share: float | None = None
    turn_id: str | None = None
    answer: Answer | None = None
    error: BaseException | None = None
    stopped: bool = False
    beside: int = 1

    @property
    def turn(self) -> Turn | None:
        """The answer's turn."""
        return self.contestant.dialogue[self.turn_id] if self.turn_id is not None else None

    @property
    def reply(self) -> Reply | None:
        """What was answered, in full or in part; None before its end."""
        return self.turn.reply if self.turn is not None else None

    @property
    def text(self) -> str:
        """The answer, without the thinking."""
        return self.turn.text if self.turn is not None else ""

    @property
    def whole(self) -> bool:
        """Whether it answered, and nobody broke it off."""
        return self.state == "done"

    @property
    def greedy(self) -> bool:
        """Whether it always took the likeliest token."""
        turn = self.turn
        return turn is not None and not turn.sampling.get("temperature")

    def tokens(self) -> list[tuple[int, str]]:
        """Return each token's id with the text that it added, thinking included."""
        made = self.answer.generation if self.answer is not None else None
        return tokens_of(made.pieces if made is not None else ())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parting:
    """Where two answers part.

    Attributes:
        character: First character that differs; None where the answers are the same.
        token: First token that differs; None where the two have no tokenizer in common.
        first: The first answer's token there, "" where it had ended.
        second: The second answer's.
        greedy: Whether both took the likeliest token; else they may differ by chance alone.
    """

    character: int | None
    token: int | None = None
    first: str = ""
    second: str = ""
    greedy: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return it for a front end."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        if self.character is None:
            return "the answers are the same"
        said = f"part at character {self.character}"
        if self.token is not None:
            one, two = (repr(each) if each else "the end" for each in (self.first, self.second))
            said = f"part at token {self.token} ({one} / {two}), character {self.character}"
        return said if self.greedy else f"{said}; sampled, so perhaps by chance"


class Round:
    """One prompt and its answers in the order in which they are shown; displays itself.

    Attributes:
        number: Counts from 1.
        message: What was asked.
        entries: One part for each contestant, in the order shown.
        follows: Whether it goes on with the round before.
        hidden: Whether the names are hidden until a vote.
        blind: Whether they were when it began.
        vote: The vote on it, or None.
    """

    def __init__(
        self,
        number: int,
        message: Message,
        contestants: Sequence[Contestant],
        *,
        follows: bool,
        blind: bool,
    ) -> None:
        self.number, self.message, self.follows = number, message, follows
        self.entries = [Entry(contestant=each) for each in contestants]
        self.blind = self.hidden = blind
        self.vote: Vote | None = None
        self._over = threading.Event()

    @property
    def running(self) -> bool:
        """Whether an answer is still to come."""
        return not self._over.is_set()

    def end(self) -> None:
        """Take note that no answer is to come any more."""
        self._over.set()

    def join(self, seconds: float | None = None) -> bool:
        """Wait for the end; return whether it came."""
        return self._over.wait(seconds)

    @property
    def prompt(self) -> str:
        """What was asked, as text."""
        return self.message.content

    @property
    def replies(self) -> dict[str, Reply]:
        """The answers by contestant; one that failed before its first word is missing."""
        return {e.contestant.name: e.reply for e in self.entries if e.reply is not None}

    @property
    def errors(self) -> dict[str, str]:
        """Why contestants failed."""
        return {e.contestant.name: sentence(e.error) for e in self.entries if e.error is not None}

    @property
    def candidates(self) -> list[Entry]:
        """Those that can be voted on: they said something and did not fail."""
        return [e for e in self.entries if e.state in ("done", "stopped") and not _silent(e)]

    def letter(self, place: int) -> str:
        """Return the name of a place: A, B, ..."""
        return chr(ord("A") + place)

    def name(self, place: int) -> str:
        """Return the letter of a place, with the contestant's name where it may be told."""
        name = self.entries[place].contestant.name
        return self.letter(place) if self.hidden else f"{self.letter(place)} · {name}"

    def best(self) -> dict[int, list[str]]:
        """Return by place what it was best at, of ``ttft`` and ``rate``; among whole answers."""
        found: dict[int, list[str]] = {}
        for name, sign in (("ttft", 1.0), ("rate", -1.0)):
            values = {place: _figure(e, name) for place, e in enumerate(self.entries) if e.whole}
            known = {place: sign * v for place, v in values.items() if v is not None}
            if len(known) > 1:
                found.setdefault(min(known, key=lambda place: known[place]), []).append(name)
        return found

    def parting(self, first: int, second: int) -> Parting | None:
        """Return where the answers of two places part; None where one of them is missing."""
        one, two = self.entries[first], self.entries[second]
        if one.reply is None or two.reply is None:
            return None
        character = first_divergence(one.text, two.text)
        greedy = one.greedy and two.greedy
        token = _token_parting(one, two) if character is not None else None
        if token is None:
            return Parting(character=character, greedy=greedy)
        at, left, right = token
        return Parting(character=character, token=at, first=left, second=right, greedy=greedy)

    def differences(self, first: int = 0, second: int = 1) -> tuple[Span, ...]:
        """Return what leads from one place's answer to another's, word by word."""
        return differences(self.entries[first].text, self.entries[second].text)

    def rows(self) -> list[dict[str, Any]]:
        """Return the figures of all answers as plain data; speeds and names only when told."""
        best = self.best()
        rows = []
        for place, entry in enumerate(self.entries):
            reply, open_ = entry.reply, not self.hidden
            usage = reply.usage if reply is not None else None
            ttft = _figure(entry, "ttft") if open_ else None
            row = {
                "place": self.letter(place),
                "name": entry.contestant.name if open_ else None,
                "ttft_ms": None if ttft is None else ttft * 1000,
                "tokens_per_second": _figure(entry, "rate") if open_ else None,
                "tokens": usage.completion_tokens if usage is not None else None,
                "characters": len(entry.text) if reply is not None else None,
                "finish": reply.finish_reason if reply is not None else entry.state,
                "best": ", ".join(_BEST[name] for name in best.get(place, [])) if open_ else None,
                "failed": self.told(place, sentence(entry.error)) if entry.error else None,
            }
            rows.append(row)
        return rows

    def told(self, place: int, text: str) -> str:
        """Return a text without the contestant's name, where names are hidden."""
        if not self.hidden:
            return text
        contestant = self.entries[place].contestant
        plan = contestant.source.plan
        for name in (contestant.name, plan.label, plan.card.id, plan.engine):
            text = text.replace(name, self.letter(place)) if name else text
        return text

    def table(self, *, short: bool = False) -> Table:
        """Return the figures as a table; the short one leaves out what stands by each answer."""
        columns = {name: head for name, head in _COLUMNS.items() if not short or name not in _LONG}
        return Table(self.rows(), columns=columns, caption=self.caption(), formats=_FORMATS)

    def caption(self) -> str:
        """Return one line: which round, where two answers part, how speeds were measured, vote."""
        return " · ".join(each for each in (f"Round {self.number}", self.remarks()) if each)

    def remarks(self) -> str:
        """Return the line without the round's number."""
        parts = []
        parting = self.parting(0, 1) if len(self.entries) == 2 and not self.running else None
        if parting is not None:
            parts.append(str(parting))
        if self.follows and parting is not None and parting.character is not None:
            parts.append("each after its own earlier answers")
        together = max(entry.beside for entry in self.entries)
        if together > 1 and not self.hidden:
            parts.append(f"speeds with {together} answering at once")
        if self.vote is not None:
            parts.append(f"vote: {self.verdict()}")
        return " · ".join(parts)

    def verdict(self) -> str:
        """Return the vote in words, "" where there is none."""
        if self.vote is None:
            return ""
        return self.vote.best or self.vote.note or "tie"

    def __repr__(self) -> str:
        from workbench.widgets.arena_transcript import round_text

        return round_text(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        from workbench.widgets.arena_transcript import round_html

        return {"text/plain": repr(self), "text/html": f"<div>{round_html(self)}</div>"}


_BEST = {"ttft": "first token", "rate": "speed"}


def tokens_of(pieces: Sequence[Piece]) -> list[tuple[int, str]]:
    """Return tokens with their texts; text that came without an id belongs to the one before."""
    found: list[tuple[int, str]] = []
    for piece in pieces:
        text = piece.thinking + piece.text
        if piece.token_id is not None:
            found.append((piece.token_id, text))
        elif found and text:
            index, before = found[-1]
            found[-1] = (index, before + text)
    return found


def sentence(error: BaseException | None) -> str:
    """Return an error in words."""
    if error is None:
        return ""
    return str(error) if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {error}"


def _token_parting(one: Entry, two: Entry) -> tuple[int, str, str] | None:
    """Return the first token that differs, with both texts, where one tokenizer made both.

    It did where the card is the same and the tokens before have the same texts.
    """
    if one.contestant.source.plan.card.id != two.contestant.source.plan.card.id:
        return None
    a, b = one.tokens(), two.tokens()
    at = first_divergence([index for index, _ in a], [index for index, _ in b])
    if at is None or not (a and b) or _joined(a[:at]) != _joined(b[:at]):
        return None
    return at, *(tokens[at][1] if at < len(tokens) else "" for tokens in (a, b))  # type: ignore[return-value]


def _joined(tokens: Sequence[tuple[int, str]]) -> str:
    return "".join(text for _, text in tokens)


def _figure(entry: Entry, name: str) -> float | None:
    timings = entry.reply.timings if entry.reply is not None else None
    if timings is None:
        return None
    return timings.ttft if name == "ttft" else timings.decode_tokens_per_second


def _silent(entry: Entry) -> bool:
    turn = entry.turn
    return turn is None or not (turn.text.strip() or turn.message.tool_calls)
