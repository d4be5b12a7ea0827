"""An arena as its front end gets it: plain dictionaries, without names where they are hidden."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from workbench.chats.markdown import clean
from workbench.chats.votes import Votes
from workbench.widgets import chat_wire
from workbench.widgets.arena_contestants import Contestant
from workbench.widgets.arena_round import Entry, Round, sentence
from workbench.widgets.chat_settings import ChatSettings

_SAID = ("temperature", "top_p", "top_k", "max_tokens", "seed")


def round_of(round: Round) -> dict[str, Any]:
    """Return a whole round for the front end."""
    return {
        "number": round.number,
        "prompt": round.prompt,
        "images": [
            {"url": image.data_url(), "name": f"image {number}"}
            for number, image in enumerate(round.message.images, start=1)
        ],
        "follows": round.follows,
        "blind": round.blind,
        "hidden": round.hidden,
        "running": round.running,
        "columns": [column_of(round, place) for place in range(len(round.entries))],
        "votable": not round.running and len(round.candidates) > 1,
        "vote": _vote(round),
        "caption": "" if round.running else round.remarks(),
    }


def column_of(round: Round, place: int) -> dict[str, Any]:
    """Return one column; the lock is held."""
    entry = round.entries[place]
    candidates = round.candidates
    done = not round.running
    return {
        "label": round.letter(place),
        "name": None if round.hidden else entry.contestant.name,
        "state": entry.state,
        "note": round.told(place, _note(entry)),
        "share": entry.share,
        "turn": _turn(round, place),
        "best": round.best().get(place, []) if done and not round.hidden else [],
        "candidate": entry in candidates,
        "characters": len(entry.text),
        "parting": _parting(round, place) if done else None,
    }


def differences_of(round: Round, base: int) -> list[dict[str, Any]]:
    """Return by place the text of each answer in spans, marked against that of ``base``.

    Where there are two answers, the base itself is marked too. A span is ``[kind, text]``; an
    empty one of the kind ``parting`` stands where the answer parts from the base's.
    """
    entries = round.entries
    found: list[dict[str, Any]] = []
    for place in range(len(entries)):
        other = 1 - base if len(entries) == 2 else base
        first, second = (base, other) if place == base else (base, place)
        spans = round.differences(first, second)
        left_out = "added" if place == base else "removed"
        shown = [(span.kind, span.text) for span in spans if span.kind != left_out]
        parting = round.parting(first, second) if first != second else None
        at = parting.character if parting is not None else None
        told = shown if at is None else _parted(shown, at)
        found.append({"place": place, "spans": [[kind, clean(text)] for kind, text in told]})
    return found


def _parted(spans: Sequence[tuple[str, str]], at: int) -> list[tuple[str, str]]:
    """Return the spans with a mark at a character."""
    found: list[tuple[str, str]] = []
    left: int | None = at
    for kind, text in spans:
        if left is not None and left <= len(text):
            found += [(kind, text[:left]), ("parting", ""), (kind, text[left:])]
            left = None
            continue
        found.append((kind, text))
        left = None if left is None else left - len(text)
    return [(kind, text) for kind, text in found if text or kind == "parting"]


def contestant_of(contestant: Contestant, settings: ChatSettings | None) -> dict[str, Any]:
    """Return what the head of the arena tells of a contestant."""
    said = [f"{name} {settings[name]}" for name in _SAID if settings and settings.get(name)]
    if settings and not settings.get("temperature"):
        said.insert(0, "greedy")
    return {
        "name": contestant.name,
        "settings": ", ".join(said),
    }


def votes_of(votes: Votes, names: list[str]) -> dict[str, Any]:
    """Return the win rates, those without a vote too."""
    rows = votes.overall()
    voted = {row["contestant"] for row in rows}
    rows += [{"contestant": name, "votes": 0} for name in names if name not in voted]
    return {"rows": rows, "count": len(votes), "summary": votes.summary()}


def _note(entry: Entry) -> str:
    if entry.state == "failed":
        return sentence(entry.error)
    return entry.note


def _turn(round: Round, place: int) -> dict[str, Any] | None:
    entry = round.entries[place]
    turn = entry.turn
    if turn is None:
        return None
    found = chat_wire.turn_of(entry.contestant.dialogue, turn)
    if entry.state in ("loading", "answering") and entry.answer is not None and turn.open:
        found = entry.answer.shown(found)
    found["id"], found["siblings"] = f"{round.number}.{place}", []
    meta = found["meta"]
    if meta is not None:
        meta["model"] = ""
        if meta["error"]:
            meta["error"] = round.told(place, meta["error"])
        if round.hidden:  # the speed would tell the engine
            meta["ttft"] = meta["rate"] = None
    return found


def _parting(round: Round, place: int) -> dict[str, Any] | None:
    """Return where an answer parts from the first one's; the first from the second's of two."""
    if place == 0 and len(round.entries) != 2:
        return None
    parting = round.parting(0, 1 if place == 0 else place)
    if parting is None:
        return None
    if place == 0:
        parting = dataclasses.replace(parting, first=parting.second, second=parting.first)
    return {**parting.as_dict(), "sentence": str(parting)}


def _vote(round: Round) -> dict[str, Any] | None:
    vote = round.vote
    if vote is None:
        return None
    names = [entry.contestant.name for entry in round.entries]
    return {
        "choice": names.index(vote.best) if vote.best in names else (vote.note or "tie"),
        "said": round.verdict(),
        "blind": vote.blind,
    }
