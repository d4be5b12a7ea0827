"""An arena for reading: HTML that every viewer of a saved notebook shows, and plain text."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from workbench.chats.difference import difference_html, shortened
from workbench.chats.markdown import clean, parse
from workbench.chats.markup import GAP, escaped, markup
from workbench.chats.transcript import LONGEST
from workbench.widgets.arena_round import Entry, Round

if TYPE_CHECKING:
    from workbench.widgets.arena_play import Play

_NOTHING = "Nothing has been asked yet."
_PLAIN_BUNDLE = 20_000
_READ = "[-only there-] is the first answer's, {+only here+} the second's"


class ArenaTranscript:
    """An arena as it is now, which displays itself without kernel, script or style sheet.

    Args:
        play: What is shown, as of now.
        live_id: The live view that hides this copy while it is there.

    Attributes:
        text: It as plain text.
        html: It as HTML.
    """

    def __init__(self, play: Play, *, live_id: str | None = None) -> None:
        with play.lock:
            self.text = arena_text(play)
            self.html = _arena_html(play, live_id)

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        text = self.text
        if len(text) > _PLAIN_BUNDLE:
            text = f"{text[:_PLAIN_BUNDLE]}\n[... the HTML form goes on]"
        return {"text/plain": text, "text/html": self.html}


def arena_text(play: Play) -> str:
    """Return an arena as plain text, safe to print in a terminal."""
    parts = [_head(play), *(round_text(round) for round in play.rounds)]
    if len(play.votes):
        parts.append(repr(play.votes))
    return "\n\n".join(parts if play.rounds else [*parts, _NOTHING])


def round_text(round: Round) -> str:
    """Return one round as plain text."""
    parts = [f"Asked:\n{clean(round.prompt)}"]
    for place, entry in enumerate(round.entries):
        lines = [f"{clean(round.name(place))}:"]
        reply = entry.reply
        if reply is not None and reply.thinking:
            lines += ["[thinking]", clean(reply.thinking).strip(), "[/thinking]"]
        lines += [clean(entry.text)] if entry.text else []
        lines += [f"[{clean(note)}]" for note in _notes(round, place, entry)]
        parts.append("\n".join(lines))
    parts.append(clean(str(round.table())))
    return "\n\n".join(parts)


def round_html(round: Round) -> str:
    """Return one round as HTML whose tags survive nbconvert's sanitiser."""
    parts = [f"<div><b>Asked</b></div><blockquote>{_text(round.prompt)}</blockquote>"]
    for place, entry in enumerate(round.entries):
        parts.append(f"<div><b>{escaped(clean(round.name(place)))}</b></div>")
        reply = entry.reply
        if reply is not None and reply.thinking.strip():
            thought = _text(reply.thinking)
            parts.append(f"<div><i>Thinking</i></div><blockquote>{thought}</blockquote>")
        parts.append(f"<div>{_text(entry.text)}</div>" if entry.text else "")
        notes = _notes(round, place, entry)
        parts += [f"<div><i>{escaped(clean(note))}</i></div>" for note in notes]
        parts.append(GAP)
    # Columns as text: the sanitiser shows the parts of a table that a browser puts in.
    parts.append(f"<pre>{escaped(clean(str(round.table(short=True))))}</pre>")
    parts.append(_differences(round))
    return "".join(parts)


def _arena_html(play: Play, live_id: str | None) -> str:
    parts = [f"<div>{escaped(clean(_head(play)))}</div>{GAP}"]
    parts += [round_html(round) for round in play.rounds]
    if not play.rounds:
        parts.append(f"<div><i>{_NOTHING}</i></div>")
    if len(play.votes):
        parts.append(f"<div><b>Votes</b></div><pre>{escaped(clean(repr(play.votes)))}</pre>")
    # The classes keep MathJax from what only looks like TeX.
    mark = f' data-chat="{html.escape(live_id)}"' if live_id else ""
    classes = "wb-transcript tex2jax_ignore mathjax_ignore"
    return f'<div class="{classes}"{mark}>{"".join(parts)}</div>'


def _head(play: Play) -> str:
    names = ", ".join(contestant.name for contestant in play.contestants)
    said = f"Arena: {names}"
    return f"{play.title} · {said}" if play.title else said


def _differences(round: Round) -> str:
    if len(round.entries) != 2 or round.running or len(round.candidates) != 2:
        return ""
    one, two = (entry.text for entry in round.entries)
    if one == two:
        return ""
    shown = difference_html(shortened(round.differences()), side="both")
    return f"<div><i>Differences: {_READ}</i></div><blockquote>{shown}</blockquote>{GAP}"


def _notes(round: Round, place: int, entry: Entry) -> list[str]:
    reply = entry.reply
    notes = []
    if reply is not None and not round.hidden:
        notes.append(reply.summary())
    if entry.state in ("waiting", "loading", "answering"):
        notes.append("This answer is not finished.")
    elif reply is None:
        notes.append("Stopped before it began." if entry.error is None else "No answer.")
    told = entry.turn.error if entry.turn is not None else None
    if told:
        notes.append(f"Failed: {round.told(place, told)}")
    return notes


def _text(text: str) -> str:
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}\n\n[... {len(text) - LONGEST:,} more characters are not shown]"
    return markup(parse(text))
