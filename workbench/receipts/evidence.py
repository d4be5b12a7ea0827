"""What receipts prove of a card: verified here, elsewhere, failed, or still pending."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol

from workbench.receipts.folder import Entry
from workbench.receipts.found import entries, where_of

Verified = Literal["here", "elsewhere", "failed", "pending"]
VERIFIED: tuple[Verified, ...] = ("here", "elsewhere", "failed", "pending")
_PROOF = frozenset({"load", "compare", "verify"})
_WITHOUT_WEIGHTS = frozenset({"scripted"})  # it answers for any card, and proves nothing of it
_ADAPTER = 3  # position in Entry.conditions


class CardLike(Protocol):
    """What of a card matters here."""

    @property
    def id(self) -> str:
        """Card id."""
        ...

    @property
    def revision(self) -> str | None:
        """Commit of the repository, where the card names one."""
        ...


class Evidence:
    """Receipts of loads, comparisons and verifications by card; read once, asked many times."""

    def __init__(self, found: Iterable[Entry]) -> None:
        self._by_model: dict[str, list[Entry]] = defaultdict(list)
        for entry in found:
            if entry.what in _PROOF and entry.engine not in _WITHOUT_WEIGHTS:
                self._by_model[entry.model].append(entry)

    @classmethod
    def gather(cls, folder: Path | None = None) -> Evidence:
        """Read the receipts of ``outputs/receipts`` and those that ship, or of one folder."""
        return cls(entries(folder)[0])

    def verified(
        self,
        card: CardLike,
        *,
        engine: str | None = None,
        quantization: str | None = None,
        revision: str | None = None,
    ) -> Verified:
        """Return what the receipts prove; the rule is that of ``verified``."""
        matching = [
            entry
            for entry in self._by_model.get(card.id, ())
            if (engine is None or entry.engine == engine)
            and (quantization is None or entry.quantization == quantization)
            and _matches(entry.revision, revision or _pinned(card, entry))
        ]
        standing = _standing(matching)
        if any(where_of(entry) == "here" for entry in standing):
            return "here"
        if standing:
            return "elsewhere"
        return "failed" if any(_is_failure(entry) for entry in matching) else "pending"


def _is_failure(entry: Entry) -> bool:
    """Return whether a receipt speaks against the card itself, not against an adapter on it."""
    return entry.outcome == "failed" and entry.conditions[_ADAPTER] == "None"


def _standing(matching: Iterable[Entry]) -> list[Entry]:
    """Return the successes that no later failure outweighs; ``matching`` is oldest first."""
    kept: list[Entry] = []
    for entry in matching:
        if entry.outcome == "done":
            kept.append(entry)
        elif _is_failure(entry):
            kept = [success for success in kept if not _outweighs(entry, success)]
    return kept


def _outweighs(failure: Entry, success: Entry) -> bool:
    return (
        failure.engine == success.engine
        and failure.quantization == success.quantization
        and failure.conditions == success.conditions
        and failure.revision == success.revision
        and failure.versions == success.versions
        and failure.place.same(success.place)
    )


def _pinned(card: CardLike, entry: Entry) -> str | None:
    """Return the commit that the card names for this form; ready GGUF files have their own."""
    gguf = getattr(card, "gguf", None) if entry.form == "gguf" else None
    return card.revision if gguf is None else gguf.revision


def _matches(found: str | None, wanted: str | None) -> bool:
    """Return whether two commits are one; seven or more digits stand for the whole."""
    if wanted is None or found is None:
        return wanted is None
    short, long = sorted((found, wanted), key=len)
    is_commit = re.fullmatch(r"[0-9a-f]{7,}", short) is not None
    return short == long or (is_commit and long.startswith(short))


def verified(
    card: CardLike,
    *,
    engine: str | None = None,
    quantization: str | None = None,
    revision: str | None = None,
    folder: Path | None = None,
) -> Verified:
    """Return what the receipts prove of a card.

    Receipts of a load, a comparison or a verification count when they match the card's id, the
    engine and quantization where given, and the revision: the one given, else the card's (that of
    its GGUF source for GGUF files); where neither names one, any. A receipt of another or of an
    unknown revision proves nothing of a named one. The scripted engine proves nothing.

    A success stands unless a later failure outweighs it: on the same machine, with the same package
    versions, revision, engine, quantization, dtype, device, context and adapter. A failure under
    other conditions leaves it standing, and one with an adapter does not speak against the card.

    Args:
        card: The card.
        engine: Only this engine.
        quantization: Only this quantization.
        revision: Commit, instead of the card's.
        folder: Receipts of this folder only.

    Returns:
        ``here``: a success of this machine stands; ``elsewhere``: only one of another machine;
        ``failed``: there are only failures, or the successes are outweighed; ``pending``: no
        receipt.
    """
    return Evidence.gather(folder).verified(
        card, engine=engine, quantization=quantization, revision=revision
    )
