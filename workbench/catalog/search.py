"""Search the cards: by words, task, language, size, licence, engine and what receipts prove."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import get_args

from workbench.catalog.capabilities import EngineFacts, engine_facts
from workbench.catalog.card import Card, Task
from workbench.catalog.found import SORTS, Found, card_forms
from workbench.catalog.languages import LANGUAGES, folded, language_code
from workbench.errors import InputError, did_you_mean, nearest
from workbench.receipts import VERIFIED, Evidence

Predicate = Callable[[Card], bool | None]
Several = str | Sequence[str] | None
_TASKS: tuple[str, ...] = get_args(Task)
_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_NUMBER = r"(\d+(?:\.\d+)?)\s*([kmbt])"
_BARE = re.compile(_NUMBER)
_BOUND = re.compile(rf"(<=|>=|<|>)\s*{_NUMBER}")
_RANGE = re.compile(rf"(\d+(?:\.\d+)?)\s*([kmbt])?\s*-\s*{_NUMBER}")
_LABEL = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([mbt])(?![a-z0-9])")
_NEAR = 0.12  # a model called 7B has 6.2 to 7.8 billion parameters
_OPEN = re.compile(r"(apache|mit|bsd|isc|cc0|mpl|l?gpl|agpl|unlicense|cc-by-(sa-)?\d)")


def search(
    cards: Iterable[Card],
    words: str | Sequence[str] = "",
    *,
    task: Several = None,
    language: Several = None,
    size: str | None = None,
    licence: str | None = None,
    engine: str | None = None,
    verified: str | bool | Sequence[str] | None = None,
    gated: bool | None = None,
    family: str | None = None,
    fits: bool | None = None,
    where: Predicate | Sequence[Predicate] = (),
    sort: str = "id",
) -> Found:
    """Return the cards that meet every condition.

    Args:
        cards: A shelf, or cards. ``fits`` asks the shelf's own ``fits``.
        words: All must stand in the card: id, name, family, repository, notes, recommended use,
            template family, licence, tasks, or a language's name; case and width do not matter.
        task: One task or several, all of which the model must do.
        language: One language or several, all of which it must know: code or name, ``ja``,
            ``Japanese``, ``日本語``.
        size: Parameters: ``7B`` (what is called so, or within 12 percent), ``<8B``, ``>=30B``,
            ``3B-14B``, ``500M``.
        licence: A licence or its beginning (``apache``, ``llama3``), or ``open`` for those that
            the Open Source Initiative or Creative Commons (attribution) would call open.
        engine: An engine that can load a form of the model that there is.
        verified: ``here``, ``elsewhere``, ``failed``, ``pending``, or several; True is here or
            elsewhere, False is neither.
        gated: Whether the hub asks for an accepted licence; unknown ones match neither.
        family: A family or its beginning: ``qwen``, ``qwen2.5``.
        fits: Whether it fits on this machine; unknown ones match neither.
        where: Further conditions, functions of a card.
        sort: ``id``, ``size`` or ``context``.

    Raises:
        InputError: An unknown task, language, engine, size, state of verification or order, or
            ``fits`` of cards that nobody can judge.
    """
    shelf = tuple(cards)
    asked = folded(words if isinstance(words, str) else " ".join(words)).split()
    evidence = Evidence.gather()
    conditions: list[Predicate] = [
        *([_has_words(asked)] if asked else []),
        *_tasks(task),
        *_languages(language, shelf),
        *([_of_size(size)] if size is not None else []),
        *([_licence(licence)] if licence else []),
        *([_loadable(engine)] if engine else []),
        *([_verified(verified, evidence, engine)] if verified is not None else []),
        *([lambda card: card.gated is gated] if gated is not None else []),
        *([_family(family)] if family else []),
        *([_fits(fits, getattr(cards, "fits", None))] if fits is not None else []),
        *([where] if callable(where) else where),
    ]
    if sort not in SORTS:
        raise InputError(f"Cards cannot be sorted by {sort!r}.", hint=did_you_mean(sort, SORTS))
    matching = [card for card in shelf if all(holds(card) for holds in conditions)]
    hint = "" if matching else _near_miss(asked, shelf, family=family, licence=licence)
    return Found(matching, evidence=evidence, hint=hint, of=len(shelf)).sorted(sort)


def _text(card: Card) -> str:
    """Return all that words are looked for in."""
    return f"{_names(card)}\n{_prose(card)}"


def _names(card: Card) -> str:
    names = (card.id, card.display_name, card.family, card.repository, card.template_family)
    languages = (name for code in card.languages for name in LANGUAGES.get(code, ()))
    return folded("\n".join(name for name in (*names, card.licence, *languages) if name))


def _prose(card: Card) -> str:
    prose = (card.notes, card.recommended_use, *card.tasks)
    return folded("\n".join(text for text in prose if text))


def _has_words(asked: Sequence[str]) -> Predicate:
    """Names hold a word anywhere (DeepCoder is a coder), prose from its beginning (no encoder)."""
    begins = {word: re.compile(rf"(?<![a-z0-9]){re.escape(word)}") for word in asked}
    return lambda card: all(
        word in names or begins[word].search(prose)
        for names, prose in [(_names(card), _prose(card))]
        for word in asked
    )


def _near_miss(
    asked: Sequence[str], shelf: Sequence[Card], *, family: str | None, licence: str | None
) -> str:
    """Return what no card has, each with the nearest that one has."""
    texts = [_text(card) for card in shelf]
    known = {part for text in texts for part in re.findall(r"[^\s,;:()/]+", text)}
    known |= {part for word in known for part in word.split("-") if len(part) > 2}
    missing = [(word, known) for word in asked if not any(word in text for text in texts)]
    if family and not any(map(_family(family), shelf)):
        missing.append((f"the family {family}", {f"{card.family}" for card in shelf}))
    if licence and not any(map(_licence(licence), shelf)):
        missing.append((f"the licence {licence}", {card.licence or "" for card in shelf}))
    sentences = []
    for word, names in missing:
        close = nearest(word.split()[-1], names)
        found = f" Did you mean {close!r}?" if close else ""
        sentences.append(f"No card has {word!r}.{found}")
    return " ".join(sentences)


def _several(value: Several) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _tasks(task: Several) -> list[Predicate]:
    wanted = [folded(name) for name in _several(task)]
    for name in wanted:
        if name not in _TASKS:
            raise InputError(f"There is no task {name!r}.", hint=did_you_mean(name, _TASKS))
    return [lambda card: set(wanted) <= {*card.tasks}] if wanted else []


def _languages(language: Several, shelf: Sequence[Card]) -> list[Predicate]:
    known = frozenset(code for card in shelf for code in card.languages)
    wanted = {language_code(text, known=known) for text in _several(language)}
    return [lambda card: wanted <= {*card.languages}] if wanted else []


def _of_size(size: str) -> Predicate:
    text = folded(size).replace("–", "-")
    if bare := _BARE.fullmatch(text):
        return _called(_count(*bare.groups()))
    if bound := _BOUND.fullmatch(text):
        sign, limit = bound[1], _count(bound[2], bound[3])
        return _between(
            lambda count: (
                (count < limit and sign[0] == "<")
                or (count > limit and sign[0] == ">")
                or (count == limit and "=" in sign)
            )
        )
    if ends := _RANGE.fullmatch(text):
        least, most = _count(ends[1], ends[2] or ends[4]), _count(ends[3], ends[4])
        if least <= most:
            return _between(lambda count: least <= count <= most)
    raise InputError(
        f"The size {size!r} is not understood.",
        hint="Write 7B, <8B, >=30B, 3B-14B or 500M, the smaller one first.",
    )


def _count(number: str, unit: str) -> float:
    return float(number) * _UNITS[unit]


def _between(holds: Callable[[int], bool]) -> Predicate:
    def within(card: Card) -> bool:
        count = card.architecture.parameters
        return count is not None and holds(count)

    return within


def _called(wanted: float) -> Predicate:
    """Match by the size in the id where it has one, else by closeness."""

    def close(card: Card) -> bool:
        label = _LABEL.search(folded(card.id))
        if label is not None:
            return abs(_count(*label.groups()) - wanted) < wanted / 1000
        count = card.architecture.parameters
        return count is not None and abs(count - wanted) <= _NEAR * wanted

    return close


def _licence(licence: str) -> Predicate:
    wanted = folded(licence)
    if wanted == "open":
        return lambda card: bool(card.licence and _OPEN.match(folded(card.licence)))
    return lambda card: folded(card.licence or "").startswith(wanted)


def _family(family: str) -> Predicate:
    wanted = folded(family)
    return lambda card: folded(card.family or "").startswith(wanted)


def _loadable(engine: str) -> Predicate:
    known = engine_facts()
    if engine not in known:
        raise InputError(f"There is no engine {engine!r}.", hint=did_you_mean(engine, known))
    return lambda card: can_load(known[engine], card)


def can_load(facts: EngineFacts, card: Card) -> bool:
    """Return whether an engine loads, or converts, a form that there is of a model.

    An engine whose formats are empty needs no files. A service's model is of the form ``remote``.
    Weights that are stored quantized (``awq``, ``gptq``, ...) are a form of their own: an engine
    has it among its formats or its quantizations.
    """
    if not facts.formats and not facts.converts:
        return True
    takes = {*facts.formats, *facts.converts, *map(str.lower, facts.quantizations)}
    return not takes.isdisjoint(form.lower() for form in card_forms(card))


def _verified(
    verified: str | bool | Sequence[str], evidence: Evidence, engine: str | None
) -> Predicate:
    if isinstance(verified, bool):
        wanted: tuple[str, ...] = ("here", "elsewhere") if verified else ("failed", "pending")
    else:
        wanted = _several(verified)
    for state in wanted:
        if state not in VERIFIED:
            raise InputError(
                f"verified={state!r} is not known.", hint=did_you_mean(state, VERIFIED)
            )
    return lambda card: evidence.verified(card, engine=engine) in wanted


def _fits(fits: bool, judge: Predicate | None) -> Predicate:
    if judge is None:
        raise InputError(
            "Nobody can say here whether a model fits on this machine.",
            hint="Search the shelf that workbench.catalog() returns.",
        )
    return lambda card: judge(card) is fits


__all__ = ["Found", "can_load", "search"]
