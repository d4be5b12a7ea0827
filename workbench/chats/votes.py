"""Votes on answers that stood side by side: win rates with their intervals, kept as data."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.chats.turn import beginning, plain
from workbench.errors import InputError, NotFoundError, did_you_mean
from workbench.evaluate.statistics import wilson
from workbench.figures import Table
from workbench.paths import atomic_file

SCHEMA = 1
_COLUMNS = {
    "wins": "won",
    "ties": "tied",
    "losses": "lost",
    "win_rate": "win rate",
    "low": "from",
    "high": "to",
}
_SHARES = {"win_rate": ".0%", "low": ".0%", "high": ".0%"}
_PROMPT = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vote:
    """One judgement of answers to one prompt.

    Attributes:
        prompt: What was asked.
        choices: Names of the contestants, in the order in which their answers were shown.
        ranking: Groups of names, the best first; those of one group are tied. Who is not named
            lost to all who are, and is not judged against the others who are not.
        blind: Whether the names were hidden.
        note: A remark.
        time: When, ISO 8601 in UTC.
        details: Further plain data: what was answered, by which settings.
    """

    prompt: str
    choices: tuple[str, ...]
    ranking: tuple[tuple[str, ...], ...]
    blind: bool = False
    note: str = ""
    time: str = ""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        choices = tuple(str(name) for name in self.choices)
        ranking = tuple(_group(group) for group in self.ranking)
        named = list(itertools.chain(*ranking))
        if len(choices) < 2 or len(set(choices)) < len(choices):
            raise InputError(f"A vote is on two or more different names, not on {choices!r}.")
        for name in named:
            if name not in choices:
                raise InputError(
                    f"{name!r} is not among the choices.", hint=did_you_mean(name, choices)
                )
        if not named or not all(ranking) or len(set(named)) < len(named):
            raise InputError(f"A ranking names each choice once at most, not {ranking!r}.")
        object.__setattr__(self, "choices", choices)
        object.__setattr__(self, "ranking", ranking)

    @property
    def best(self) -> str | None:
        """Who came first alone, or None where several share the first place."""
        return self.ranking[0][0] if len(self.ranking[0]) == 1 else None

    def score(self, first: str, second: str) -> float | None:
        """Return 1 where ``first`` beat ``second``, 0 where it lost, 0.5 for a tie.

        None where the two were not judged against each other.
        """
        places = {name: place for place, group in enumerate(self.ranking) for name in group}
        if first not in self.choices or second not in self.choices:
            return None
        a, b = (places.get(name, len(self.ranking)) for name in (first, second))
        if a == b:
            return 0.5 if first in places else None
        return 1.0 if a < b else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"schema_version": SCHEMA, **dict(plain(values))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Vote:
        """Return the vote that ``as_dict`` made plain.

        Raises:
            InputError: It is none.
        """
        if not isinstance(values, Mapping) or values.get("schema_version") != SCHEMA:
            raise InputError(f"This is no vote of schema {SCHEMA}.")
        given = {name: value for name, value in values.items() if name != "schema_version"}
        try:
            return cls(**given)
        except TypeError as error:
            raise InputError(f"This is no vote: {error}.") from None


class Votes:
    """Votes in the order in which they were given; displays itself as a table of win rates.

    A win rate is wins / (wins + losses): ties are counted apart and decide nothing. Its interval
    is Wilson's, of 95 %. Between two contestants each vote is one trial. Over all of an arena of
    more than two, ``win_rate`` is the share of the votes with a single winner which a contestant
    won, so that a vote is one trial there too; by chance it is 1 / contestants.

    Args:
        votes: Votes to begin with.
        path: JSONL file that is read if it is there and written whole after each vote.
    """

    def __init__(self, votes: Iterable[Vote] = (), *, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path).expanduser().absolute()
        self._lock = threading.Lock()
        self._votes = [*votes]
        if self.path is not None and self.path.exists():
            self._votes = [*_read(self.path), *self._votes]

    def add(
        self,
        prompt: str,
        choices: Sequence[str],
        *,
        best: str | None = None,
        ranking: Sequence[str | Sequence[str]] | None = None,
        blind: bool = False,
        note: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> Vote:
        """Take one vote, and write it where there is a file.

        Args:
            prompt: What was asked.
            choices: Names of the contestants, in the order shown.
            best: Whose answer is best; with neither it nor ``ranking`` all are tied.
            ranking: The names, the best first; a tie is a list of names.
            blind: Whether the names were hidden.
            note: A remark.
            details: Further plain data.

        Raises:
            InputError: A name is not among the choices, or both ``best`` and ``ranking`` are given.
        """
        if best is not None and ranking is not None:
            raise InputError("A vote has either a best answer or a ranking.")
        order: Sequence[Any] = ranking if ranking is not None else [best or tuple(choices)]
        vote = Vote(
            prompt=prompt,
            choices=tuple(choices),
            ranking=tuple(map(_group, order)),
            blind=blind,
            note=note,
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            details=plain(details or {}),
        )
        with self._lock:
            after = [*self._votes, vote]
            if self.path is not None:
                _write(self.path, after)
            self._votes = after
        return vote

    def undo(self) -> Vote | None:
        """Take the last vote back and return it; None where there is none."""
        with self._lock:
            if not self._votes:
                return None
            if self.path is not None:
                _write(self.path, self._votes[:-1])
            vote = self._votes[-1]
            self._votes = self._votes[:-1]
            return vote

    def __len__(self) -> int:
        return len(self._votes)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Vote]:
        return iter(self._votes)

    def __getitem__(self, index: int) -> Vote:
        return self._votes[index]

    def only(self, *, blind: bool | None = None, among: Sequence[str] = ()) -> Votes:
        """Return some of the votes.

        Args:
            blind: Those given blind, or those that were not; None for both.
            among: Those on all of these contestants.
        """
        chosen = (vote for vote in self if blind is None or vote.blind is blind)
        return Votes(vote for vote in chosen if set(among) <= set(vote.choices))

    @property
    def contestants(self) -> list[str]:
        """Names in the order of their first vote."""
        return list(dict.fromkeys(name for vote in self for name in sorted(vote.choices)))

    # Figures

    def overall(self) -> list[dict[str, Any]]:
        """Return one row for each contestant: votes, won, tied, lost, win rate with interval."""
        rows = []
        for name in self.contestants:
            taken = [vote for vote in self if name in vote.choices]
            wins = sum(vote.best == name for vote in taken)
            losses = sum(vote.best not in (name, None) for vote in taken)
            ties = len(taken) - wins - losses
            rows.append({"contestant": name, "votes": len(taken), **_rate(wins, ties, losses)})
        return sorted(rows, key=lambda row: -(row["win_rate"] or 0.0))

    def pairs(self) -> list[dict[str, Any]]:
        """Return one row for each two contestants that were judged against each other."""
        rows = []
        for first, second in itertools.combinations(self.contestants, 2):
            scores = [vote.score(first, second) for vote in self]
            wins, ties, losses = (scores.count(value) for value in (1.0, 0.5, 0.0))
            if wins + ties + losses:
                rows.append({"pair": f"{first} : {second}", **_rate(wins, ties, losses)})
        return rows

    def first_place(self) -> dict[str, Any]:
        """Return how often the answer that was shown first won: a bias of place, if far off.

        Without one it would be 1 / answers shown.
        """
        decided = [vote for vote in self if vote.best is not None]
        wins = sum(vote.best == vote.choices[0] for vote in decided)
        return _rate(wins, 0, len(decided) - wins)

    def table(self) -> Table:
        """Return the win rates of all contestants."""
        return Table(
            self.overall(),
            columns={"contestant": "contestant", "votes": "votes", **_COLUMNS}
            if self._votes
            else None,
            caption=self.summary(),
            formats=_SHARES if self._votes else None,
        )

    def pair_table(self) -> Table:
        """Return the win rates of each pair, of the one that is named first."""
        rows = self.pairs()
        return Table(
            rows,
            columns={"pair": "pair", **_COLUMNS} if rows else None,
            caption="By pair: win rate of the one that is named first",
            formats=_SHARES if rows else None,
        )

    def listed(self) -> Table:
        """Return one row for each vote."""
        rows = [
            {
                "time": vote.time[:16].replace("T", " "),
                "prompt": beginning(vote.prompt, _PROMPT),
                "ranking": " > ".join(" = ".join(group) for group in vote.ranking),
                "shown": ", ".join(vote.choices),
                "blind": vote.blind,
                "note": vote.note,
            }
            for vote in self
        ]
        return Table(rows, caption=self.summary())

    def summary(self) -> str:
        """Return one line: how many votes, how many blind, how to read the rates."""
        blind = sum(vote.blind for vote in self)
        count = "1 vote" if len(self) == 1 else f"{len(self)} votes"
        return (
            f"{count}, {blind} of them blind · win rate = won / (won + lost), "
            "ties apart, 95 % interval (Wilson)"
        )

    # Keeping

    def save(self, path: str | Path) -> Path:
        """Write the votes as JSON lines, whole or not at all, and return the file."""
        final = Path(path).expanduser().absolute()
        with self._lock:
            _write(final, self._votes)
        return final

    @classmethod
    def load(cls, path: str | Path) -> Votes:
        """Read what ``save`` wrote; votes that are added stay in memory.

        Raises:
            NotFoundError: There is no such file.
            InputError: A line is no vote.
        """
        return cls(_read(Path(path).expanduser()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Votes):
            return NotImplemented
        return self._votes == other._votes

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        if not self._votes:
            return "No votes yet."
        tables = [self.table()]
        if len(self.contestants) > 2:
            tables.append(self.pair_table())
        return "\n\n".join(map(str, tables))

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        if not self._votes:
            return {"text/plain": repr(self), "text/html": f"<div>{self!r}</div>"}
        shown = [self.table().html()]
        if len(self.contestants) > 2:
            shown.append(self.pair_table().html())
        return {"text/plain": repr(self), "text/html": f"<div>{''.join(shown)}</div>"}


def _group(value: Any) -> tuple[str, ...]:
    """Return the names that share a place; a single name stands for itself."""
    return (value,) if isinstance(value, str) else tuple(str(name) for name in value)


def _rate(wins: int, ties: int, losses: int) -> dict[str, Any]:
    """Return the counts with the share of wins among decided votes and its interval."""
    counts = {"wins": wins, "ties": ties, "losses": losses}
    if not wins + losses:
        return {**counts, "win_rate": None, "low": None, "high": None}
    found = wilson(wins, wins + losses)
    return {**counts, "win_rate": found.estimate, "low": found.low, "high": found.high}


def _write(final: Path, votes: Iterable[Vote]) -> None:
    with atomic_file(final) as partial:
        lines = (json.dumps(vote.as_dict()) + "\n" for vote in votes)
        partial.write_text("".join(lines), encoding="utf-8")


def _read(file: Path) -> list[Vote]:
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise NotFoundError(f"There are no votes {file}.") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(Vote.from_dict(json.loads(line)))
        except (ValueError, InputError) as error:
            raise InputError(f"{file}, line {number}: {error}") from None
    return found
