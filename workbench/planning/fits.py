"""Which cards fit on a machine: the question that the shelf's search asks of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workbench.catalog import Card, Shelf, locate
from workbench.catalog import catalog as all_cards
from workbench.errors import WorkbenchError
from workbench.machine import Machine
from workbench.planning.form import Form
from workbench.planning.forms import automatic, forms_of
from workbench.planning.given import contexts_of
from workbench.planning.offload import Placer
from workbench.planning.policy import rules
from workbench.planning.room import Room, room_of
from workbench.planning.search import worthwhile


def catalog(machine: Machine | str | Path | Mapping[str, Any] | None = None) -> Shelf:
    """Return all cards; ``search(fits=True)`` of them asks what a plan would say.

    Args:
        machine: The machine on which they are to fit, or its description; None for this one.

    Raises:
        InputError: A card that ships is wrong, or the machine cannot be read.
    """
    shelf = all_cards()
    shelf.fits = fits_on(machine)
    return shelf


def fits_on(
    machine: Machine | str | Path | Mapping[str, Any] | None = None,
) -> Callable[[Card], bool | None]:
    """Return whether a card fits, as a function of it: in a form not below the floor of quality.

    A model that a service runs fits everywhere. None where too little is known of a card. The
    machine is asked when the first card is.
    """
    rooms: list[Room] = []

    def fits(card: Card) -> bool | None:
        if card.remote is not None:
            return True
        if not rooms:
            found = room_of(machine, rules=rules())
            rooms.append(found)
            if found.device != "cpu":
                rooms.append(found.on_cpu())
        return _fits(card, rooms)

    return fits


def _fits(card: Card, rooms: list[Room]) -> bool | None:
    answers: list[bool | None] = []
    for room in rooms:
        try:
            files = locate(card) if card.source_is_local else None
            forms = forms_of(card, files, room=room, rules=rules(), engines=automatic(room))
            answer = _in_room(card, forms, Placer(card, files, room, batch=1))
        except WorkbenchError:
            answer = None
        if answer:
            return True
        answers.append(answer)
    return None if None in answers else False


def _in_room(card: Card, forms: list[Form], placer: Placer) -> bool | None:
    """Ask the smallest forms first: if they do not fit, no other does."""
    found = rules()
    worth = worthwhile(forms, card, placer.room, found, given=False)
    good = [form for form in worth if form.rank <= found.rank(found.floor)] or worth[:1]
    context = contexts_of(None, card, found)[-1]
    known = False
    for form in [each for each in good if each.rank == good[-1].rank]:
        for place in (placer.whole, placer.partial):
            attempt = place(form, context)
            known = known or attempt is not None
            if attempt is not None and attempt.fits:
                return True
    return False if known else None
