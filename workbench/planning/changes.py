"""The smallest changes that would make a plan fit: each one tried, none of them canned."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator

from workbench.catalog import Card, ModelFiles, catalog
from workbench.planning.form import Form
from workbench.planning.forms import automatic, forms_of
from workbench.planning.given import has_slots
from workbench.planning.offload import Attempt, Placer
from workbench.planning.planned import gib
from workbench.planning.policy import GIB, rules
from workbench.planning.room import Room
from workbench.planning.search import Wanted, search
from workbench.planning.sentences import described

MOST = 3
_LEAST_CONTEXT = 512
_LEAST_BYTES = 0.3
"""Bytes of a weight in the smallest form that is planned."""
_CACHES = ("q8_0", "q4_0")
SOLD_GPU = (8, 12, 16, 24, 32, 48, 80, 96, 141, 192)
_SOLD_COUNT = (1, 2, 4, 8, 16)
SOLD_RAM = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_SOLD_UNIFIED = (16, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)
"""Sizes of memory that are sold, in GB: of a GPU, how many of them, RAM, and unified."""


def changes_that_fit(
    card: Card,
    files: ModelFiles | None,
    room: Room,
    wanted: Wanted,
    batch: int,
    attempt: Attempt,
) -> tuple[str, ...]:
    """Return at most three changes, the smallest first, each of which alone makes it fit.

    Smaller in this order: context, cache, batch, layers in RAM, form, another card, a larger
    machine.
    """
    question = _Question(card, files, room, wanted, batch, attempt)
    found: list[str] = []
    for step in (
        question.smaller_context,
        question.smaller_cache,
        question.smaller_batch,
        question.other_place,
        question.other_form,
        question.other_card,
        question.larger_machine,
        question.further_card,
    ):
        for said in step():
            if said not in found and len(found) < MOST:
                found.append(said)
        if len(found) == MOST:
            break
    return tuple(found)


class _Question:
    """What would have to be otherwise, asked of the estimates."""

    def __init__(
        self,
        card: Card,
        files: ModelFiles | None,
        room: Room,
        wanted: Wanted,
        batch: int,
        attempt: Attempt,
    ) -> None:
        self.card, self.files, self.room = card, files, room
        self.wanted, self.batch, self.attempt = wanted, batch, attempt
        self.placer = self.placer_in(room)
        self._others = self._other_cards()

    def _fits(self, form: Form, **changed: object) -> Attempt | None:
        placement = dataclasses.replace(self.attempt.placement, **changed)  # type: ignore[arg-type]
        found = self.placer.attempt(form, placement)
        return found if found is not None and found.fits else None

    def smaller_context(self) -> Iterator[str]:
        """The longest context that fits, in halves of the present one."""
        context = self.attempt.placement.context // 2
        while context >= _LEAST_CONTEXT:
            if self._fits(self.attempt.form, context=context):
                yield f"context={context} instead of {self.attempt.placement.context}."
                return
            context //= 2

    def smaller_cache(self) -> Iterator[str]:
        """A quantized KV cache."""
        if self.attempt.form.facts.name != "llama.cpp":
            return
        for name in _CACHES:
            if self.attempt.placement.cache_type not in (name, "q4_0") and self._fits(
                self.attempt.form, cache_type=name
            ):
                yield f"cache_type={name!r}: keys and values in fewer bits."
                return

    def smaller_batch(self) -> Iterator[str]:
        """Fewer sequences at a time."""
        batch = self.batch // 2
        while batch:
            placer = self.placer_in(self.room, batch=batch)
            found = placer.attempt(self.attempt.form, self.attempt.placement)
            if found is not None and found.fits:
                word = "parallel" if has_slots(self.attempt.form.facts) else "batch"
                yield f"{word}={batch} instead of {self.batch}."
                return
            batch //= 2

    def other_place(self) -> Iterator[str]:
        """The same form with layers or experts in RAM, or over more devices."""
        form, context = self.attempt.form, self.attempt.placement.context
        whole = self.placer.whole(form, context)
        if whole is not None and whole.fits and whole.placement != self.attempt.placement:
            yield f"{described(whole)}."
            return
        found = self.placer.partial(form, context)
        if found is None or not found.fits or found.placement == self.attempt.placement:
            return
        placement = found.placement
        if placement.experts_on_cpu:
            yield f"experts_on_cpu={placement.experts_on_cpu}: their experts in RAM."
        elif not placement.mapped:
            yield f"gpu_layers={placement.gpu_layers}: the other layers in RAM."

    def other_form(self) -> Iterator[str]:
        """The best other form, of any engine that runs there."""
        free = dataclasses.replace(
            self.wanted,
            form_given=False,
            gpu_layers=None,
            experts_on_cpu=None,
            devices=None,
            cache_type=None,
        )
        found = self._search(self.card, self.files, self.room, free)
        if found is not None and found.form != self.attempt.form:
            yield f"{described(found)}."

    def _search(
        self, card: Card, files: ModelFiles | None, room: Room, wanted: Wanted
    ) -> Attempt | None:
        forms = forms_of(card, files, room=room, rules=rules(), engines=automatic(room))
        found = search(forms, Placer(card, files, room, batch=self.batch), wanted, rules())
        return found.attempt if found.attempt is not None and found.attempt.fits else None

    def other_card(self) -> Iterator[str]:
        """The largest card of the family that fits, else the largest of the same task."""
        yield from itertools.islice(self._others, 1)

    def further_card(self) -> Iterator[str]:
        """The next ones after it, where nothing else is left to change."""
        yield from itertools.islice(self._others, MOST)

    def _other_cards(self) -> Iterator[str]:
        for other in self._smaller_cards():
            contexts = tuple(
                min(each, other.context_length or each) for each in self.wanted.contexts
            )
            found = self._search(other, None, self.room, Wanted(contexts=contexts))
            if found is not None:
                yield f"{other.id} instead: {described(found)}."

    def _smaller_cards(self) -> list[Card]:
        room = sum(self.room.device_bytes) + (0 if self.room.unified else self.room.host_bytes)
        largest = room / _LEAST_BYTES  # what is larger need not be tried
        size = min(self.card.architecture.parameters or 0, largest)
        shelf = list(catalog())
        task = self.card.tasks[:1]
        family = [
            card
            for card in shelf
            if card.family == self.card.family
            and card.id != self.card.id
            and card.path is None
            and card.tasks[:1] == task
            and 0 < (card.architecture.parameters or 0) < size
        ]
        family.sort(key=lambda card: -(card.architecture.parameters or 0))
        named = {card.id: card for card in shelf}
        others = [
            card
            for card in shelf
            if card.path is None
            and card.tasks[:1] == task
            and 0 < (card.architecture.parameters or 0) < size
        ]
        others.sort(key=lambda card: -(card.architecture.parameters or 0))
        return list(
            {card.id: card for card in (*family, *_fallbacks(self.card, named), *others)}.values()
        )

    def larger_machine(self) -> Iterator[str]:
        """More RAM, then more or larger devices: the least that is sold and holds the form.

        For the form at hand first, then for one that is not below the floor of quality.
        """
        for form in self._worth_buying():
            if self.room.unified:
                yield from self._more_unified(form)
            else:
                yield from self._more_ram(form)
                yield from self._more_devices(form)

    def _worth_buying(self) -> list[Form]:
        forms = forms_of(
            self.card, self.files, room=self.room, rules=rules(), engines=automatic(self.room)
        )
        floor = rules().rank(rules().floor)
        good = [form for form in forms if form.rank <= floor][-1:]
        return [self.attempt.form, *(form for form in good if form != self.attempt.form)]

    def _more_ram(self, form: Form) -> Iterator[str]:
        room = self.room
        for size in SOLD_RAM:
            if size * GIB <= room.machine.ram_bytes:
                continue
            more = dataclasses.replace(room, host_bytes=int(size * GIB * (1 - room.kept)))
            for each in (more, more.on_cpu()):
                found = self._best(each, form)
                if found is not None:
                    had = gib(room.machine.ram_bytes)
                    yield f"{size} GB of RAM instead of {had}: {described(found)}."
                    return

    def _more_unified(self, form: Form) -> Iterator[str]:
        room = self.room
        share = room.device_bytes[0] / room.machine.ram_bytes if room.machine.ram_bytes else 0.6
        for size in _SOLD_UNIFIED:
            if size * GIB <= room.machine.ram_bytes:
                continue
            more = dataclasses.replace(
                room,
                device_bytes=(int(size * GIB * share),),
                host_bytes=int(size * GIB * (1 - room.kept)),
            )
            found = self._best(more, form)
            if found is not None:
                yield f"{size} GB of unified memory: {described(found)}."
                return

    def _more_devices(self, form: Form) -> Iterator[str]:
        keep = 1 - rules().margin
        if "cuda" not in form.facts.devices:
            return
        for count, size in _machines():
            if count * size * GIB * keep <= sum(self.room.device_bytes):
                continue
            each = (int(size * GIB * keep),) * count
            more = dataclasses.replace(self.room, device="cuda", device_bytes=each)
            found = self.placer_in(more).whole(form, self.wanted.context)
            if found is not None and found.fits:
                named = f"{count} GPUs" if count > 1 else "a GPU"
                yield f"{named} of {size} GB: {described(found)}."
                return

    def placer_in(self, room: Room, *, batch: int | None = None) -> Placer:
        """Return a placer for the same card on another room, or for another batch."""
        return Placer(
            self.card,
            self.files,
            room,
            batch=batch or self.batch,
            full_window=self.wanted.full_window,
        )

    def _best(self, room: Room, form: Form) -> Attempt | None:
        """Return a form whole or split in a room, where it fits."""
        placer, context = self.placer_in(room), self.wanted.context
        for found in (placer.whole(form, context), placer.partial(form, context)):
            if found is not None and found.fits:
                return found
        return None


def _machines() -> list[tuple[int, int]]:
    """Return numbers and sizes of GPUs, by their memory in all, fewer GPUs first."""
    both = [(count, size) for count in _SOLD_COUNT for size in SOLD_GPU]
    return sorted(both, key=lambda pair: (math.prod(pair), pair[0]))


def _fallbacks(card: Card, named: dict[str, Card]) -> Iterable[Card]:
    seen = {card.id}
    while card.fallback in named and card.fallback not in seen:
        card = named[card.fallback]
        seen.add(card.id)
        yield card
