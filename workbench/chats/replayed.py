"""What a replay found: per turn the old and the new answer, where they part, speeds, lengths."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from workbench.chats.dialogue import Dialogue
from workbench.chats.difference import (
    Span,
    difference_html,
    difference_text,
    differences,
    differing_share,
    first_divergence,
    shortened,
)
from workbench.chats.turn import beginning, reply_as_dict, reply_of, sampling_of
from workbench.errors import InputError, NotFoundError
from workbench.figures import Table
from workbench.messages import Reply
from workbench.paths import atomic_file

SCHEMA = 1
_QUESTION = 48
_SIDES: tuple[Literal["first", "second"], ...] = ("first", "second")
_COLUMNS = {
    "turn": "turn",
    "question": "question",
    "outcome": "outcome",
    "diverges_at_character": "parts at character",
    "diverges_at_token": "at token",
    "differing_share": "differs",
    "old_tokens": "old tokens",
    "new_tokens": "new tokens",
    "old_tokens_per_second": "old tokens/s",
    "new_tokens_per_second": "new tokens/s",
    "old_ttft_ms": "old TTFT (ms)",
    "new_ttft_ms": "new TTFT (ms)",
}
_FORMATS = {
    "differing_share": ".0%",
    "old_tokens_per_second": ".1f",
    "new_tokens_per_second": ".1f",
    "old_ttft_ms": ".0f",
    "new_ttft_ms": ".0f",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenDivergence:
    """The first token at which two answers of one tokenizer part.

    Attributes:
        position: Its index.
        old: The old answer's token there as text, "" where it had ended.
        new: The new answer's.
    """

    position: int
    old: str
    new: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One turn that was asked again.

    Attributes:
        turn: Id of the question in the old conversation.
        question: Its text.
        old: The old answer, None where there was none.
        new: The new answer, None where it failed before its first word.
        old_error: Why the old answer failed, or "".
        error: Why the new one failed, or "".
        sampling: Settings of the new answer, as plain data.
        tokens: Where the two part by tokens, where one tokenizer made both.
    """

    turn: str
    question: str
    old: Reply | None = None
    new: Reply | None = None
    old_error: str = ""
    error: str = ""
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    tokens: TokenDivergence | None = None

    @property
    def same(self) -> bool | None:
        """Whether both say and call the same; None where one is missing or was broken off."""
        if self.old is None or self.new is None or self.error or self.old_error:
            return None
        if self.old.text == self.new.text:
            return _calls(self.old) == _calls(self.new)
        cut = ("cancelled", "interrupted")
        broken = any(each.finish_reason in cut for each in (self.old, self.new))
        one_begins_the_other = self.divergence == min(len(self.old.text), len(self.new.text))
        return None if broken and one_begins_the_other else False

    @property
    def outcome(self) -> str:
        """``same``, ``different``, or what else became of it, in words."""
        if self.error:
            return "failed"
        if self.old is None or self.old_error:
            return "new answer only"
        if self.same is None:
            return "same as far as both go"
        if not self.same:
            return "different"
        return "same" if _thought(self.old) == _thought(self.new) else "same, thought otherwise"

    @property
    def divergence(self) -> int | None:
        """First character at which the answers part; None where they do not, or one is missing."""
        if self.old is None or self.new is None:
            return None
        return first_divergence(self.old.text, self.new.text)

    def differences(self) -> tuple[Span, ...]:
        """Return what leads from the old answer to the new one, word by word."""
        old = self.old.text if self.old is not None else ""
        return differences(old, self.new.text if self.new is not None else "")

    def row(self) -> dict[str, Any]:
        """Return the figures as plain data: counts, tokens per second, TTFT in milliseconds."""
        both = self.old is not None and self.new is not None
        return {
            "turn": self.turn,
            "question": beginning(self.question, _QUESTION),
            "outcome": self.outcome,
            "diverges_at_character": self.divergence,
            "diverges_at_token": self.tokens.position if self.tokens else None,
            "differing_share": differing_share(self.differences()) if both else None,
            **_figures("old", self.old),
            **_figures("new", self.new),
            "failed": self.error,
        }

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "turn": self.turn,
            "question": self.question,
            "old": None if self.old is None else reply_as_dict(self.old),
            "new": None if self.new is None else reply_as_dict(self.new),
            "old_error": self.old_error,
            "error": self.error,
            "sampling": self.sampling,
            "tokens": None if self.tokens is None else dataclasses.asdict(self.tokens),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Replayed:
        """Return what ``as_dict`` made plain."""
        given = dict(values)
        for name in ("old", "new"):
            given[name] = None if given.get(name) is None else reply_of(given[name])
        if given.get("tokens") is not None:
            given["tokens"] = TokenDivergence(**given["tokens"])
        return cls(**given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay(Sequence[Replayed]):
    """A replay: a row a turn; displays itself as a table, the differences below it.

    Attributes:
        turns: What became of each turn that was asked again.
        planned: Turns there were to ask.
        interrupted: Whether somebody ended it before.
        history: What came before each question: the ``original`` answers or its ``own``.
        source: Id, title and model of the old conversation.
        dialogue: The new one. With the original history the new answers stand beside the old ones
            in its tree.
        file: Where it is kept, or None.
    """

    turns: list[Replayed]
    planned: int
    interrupted: bool = False
    history: str = "original"
    source: dict[str, Any] = dataclasses.field(default_factory=dict)
    dialogue: Dialogue
    file: Path | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Return the figures of all turns as plain data."""
        return [turn.row() for turn in self.turns]

    @property
    def same(self) -> int:
        """How many answers are the same."""
        return sum(turn.same is True for turn in self.turns)

    def __len__(self) -> int:
        return len(self.turns)

    def __getitem__(self, index: Any) -> Any:
        return self.turns[index]

    def __iter__(self) -> Iterator[Replayed]:
        return iter(self.turns)

    def summary(self) -> str:
        """Return one line: the two models, how many answers are the same, what to mind."""
        compared = sum(turn.same is not None for turn in self.turns)
        parts = [
            f"{self.source.get('model') or 'unknown model'} → {self.dialogue.model}",
            f"{self.same} of {compared} answers the same",
            f"{self.history} history",
        ]
        failed = sum(bool(turn.error) for turn in self.turns)
        if failed:
            parts.append(f"{failed} failed")
        if self.interrupted:
            parts.append(f"interrupted after {len(self.turns)} of {self.planned} turns")
        if any(self._by_chance(turn) for turn in self.turns):
            parts.append("some were sampled without a seed: they may differ by chance alone")
        return " · ".join(parts)

    def table(self) -> Table:
        """Return one row for each turn."""
        if not self.turns:
            return Table([], caption=self.summary())
        return Table(self.rows, columns=_COLUMNS, caption=self.summary(), formats=_FORMATS)

    def save(self, path: str | Path) -> Path:
        """Write everything as one JSON file, whole or not at all, and return it."""
        final = Path(path).expanduser().absolute()
        whole = {
            "kind": "replay",
            "schema_version": SCHEMA,
            "planned": self.planned,
            "interrupted": self.interrupted,
            "history": self.history,
            "source": self.source,
            "turns": [turn.as_dict() for turn in self.turns],
            "dialogue": self.dialogue.as_dict(),
        }
        with atomic_file(final) as partial:
            partial.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        return final

    @classmethod
    def load(cls, path: str | Path) -> Replay:
        """Read what ``save`` wrote.

        Raises:
            NotFoundError: There is no such file.
            InputError: It is no replay.
        """
        file = Path(path).expanduser()
        try:
            values = json.loads(file.read_bytes())
            if not isinstance(values, dict) or values.get("kind") != "replay":
                raise ValueError("it does not say so")
            if values.pop("schema_version") != SCHEMA:
                raise ValueError("it is of another schema")
            values.pop("kind")
            values["turns"] = [Replayed.from_dict(each) for each in values["turns"]]
            values["dialogue"] = Dialogue.from_dict(values["dialogue"])
            return cls(**values)
        except FileNotFoundError:
            raise NotFoundError(f"There is no replay {file}.") from None
        except (OSError, ValueError, KeyError, TypeError, InputError) as error:
            raise InputError(f"{file} is no replay: {error}.") from None

    def _by_chance(self, turn: Replayed) -> bool:
        chosen = sampling_of(turn.sampling)
        return chosen.temperature > 0 and chosen.seed is None

    def __repr__(self) -> str:
        parts = [str(self.table())]
        for turn in self.turns:
            if turn.same is False:
                spans = shortened(turn.differences())
                parts.append(f"{_about(turn)}\n{difference_text(spans)}")
        return "\n\n".join(parts)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        shown = [self.table().html()]
        shown += [self._both(turn) for turn in self.turns if turn.same is False]
        return {"text/plain": repr(self), "text/html": f"<div>{''.join(shown)}</div>"}

    def _both(self, turn: Replayed) -> str:
        """Return the two answers of a turn, one below the other: cells would set text right."""
        spans = shortened(turn.differences())
        old, new = html.escape(self.source.get("model") or "old"), html.escape(self.dialogue.model)
        first, second = (difference_html(spans, side=side) for side in _SIDES)
        return (
            f'<div class="difference"><div><b>{html.escape(_about(turn))}</b></div>'
            f"<div>{old}, <i>what is only there in italics</i></div>"
            f"<blockquote>{first}</blockquote>"
            f"<div>{new}, <b>what is only there bold</b></div>"
            f"<blockquote>{second}</blockquote></div>"
        )


def _about(turn: Replayed) -> str:
    said = f"Turn {turn.turn}: {beginning(turn.question, _QUESTION)}"
    if turn.tokens is not None:
        ends = [repr(each) if each else "the end" for each in (turn.tokens.old, turn.tokens.new)]
        said += f" · parts at token {turn.tokens.position}: {ends[0]} / {ends[1]}"
    elif turn.divergence is not None:
        said += f" · parts at character {turn.divergence}"
    return said


def _figures(which: str, reply: Reply | None) -> dict[str, Any]:
    usage = reply.usage if reply is not None else None
    timings = reply.timings if reply is not None else None
    return {
        f"{which}_characters": None if reply is None else len(reply.text),
        f"{which}_tokens": None if usage is None else usage.completion_tokens,
        f"{which}_tokens_per_second": timings.decode_tokens_per_second if timings else None,
        f"{which}_ttft_ms": timings.ttft * 1000 if timings else None,
    }


def _calls(reply: Reply) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in reply.tool_calls]


def _thought(reply: Reply | None) -> str:
    return reply.thinking if reply is not None else ""
