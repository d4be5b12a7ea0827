"""The search of the two policies: which form in which place is taken, and what was tried before."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from workbench.catalog import Card
from workbench.planning.form import Form
from workbench.planning.offload import Attempt, Placement, Placer, cheapest
from workbench.planning.policy import Rules
from workbench.planning.room import Room

_CACHE_ENGINES = ("llama.cpp",)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the user fixed; None and empty leave the choice to the policy.

    Attributes:
        contexts: Contexts to try, the best first; one where it was given.
        cache_type: Type of the KV cache.
        gpu_layers: Layers on the devices.
        experts_on_cpu: First layers whose experts stay in RAM.
        devices: Devices that share the model.
        form_given: Whether the user named the quantization.
        device_given: Whether the user named the device.
        full_window: Whether llama.cpp's sliding layers hold the whole context.
    """

    contexts: tuple[int, ...]
    cache_type: str | None = None
    gpu_layers: int | None = None
    experts_on_cpu: int | None = None
    devices: int | None = None
    form_given: bool = False
    device_given: bool = False
    full_window: bool = True

    @property
    def context(self) -> int:
        """The context that is tried first."""
        return self.contexts[0]

    @property
    def placed(self) -> bool:
        """Whether the user said where the layers lie."""
        return any(
            given is not None for given in (self.gpu_layers, self.experts_on_cpu, self.devices)
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search ended with.

    Attributes:
        attempt: What is taken: the first that fits, else the one that misses least; None where no
            form could be estimated.
        tried: What was tried before it and does not fit.
        unknown: A form that cannot be estimated, taken where none can.
    """

    attempt: Attempt | None
    tried: tuple[Attempt, ...] = ()
    unknown: Form | None = None


def search(
    forms: Sequence[Form], placer: Placer, wanted: Wanted, rules: Rules, *, by_size: bool = False
) -> Found:
    """Return the first attempt that fits, in the policy's order."""
    tried: list[Attempt] = []
    steps = _by_size if by_size else _by_fit
    for attempt in steps(forms, placer, wanted, rules):
        if attempt is None:
            continue
        if attempt.fits:
            return Found(attempt=attempt, tried=tuple(tried))
        tried.append(attempt)
    wanted_ones = [each for each in tried if each.placement.context == wanted.context]
    least = cheapest(iter(wanted_ones))
    if least is None:
        return Found(attempt=None, unknown=forms[0] if forms else None)
    return Found(attempt=least, tried=tuple(other for other in tried if other is not least))


def _by_size(
    forms: Sequence[Form], placer: Placer, wanted: Wanted, rules: Rules
) -> Iterator[Attempt | None]:
    """The size alone chose the form; a smaller context, then layers on the CPU, make it fit."""
    for form in forms[:1]:
        yield from _whole([form], placer, wanted, wanted.contexts)
        if not wanted.placed:
            yield placer.partial(form, wanted.context)


def _by_fit(
    forms: Sequence[Form], placer: Placer, wanted: Wanted, rules: Rules
) -> Iterator[Attempt | None]:
    """Best quality first; whole before partly in RAM, above the floor before below it."""
    worth = worthwhile(forms, placer.card, placer.room, rules, given=wanted.form_given)
    floor = rules.rank(rules.floor)
    good = [form for form in worth if form.rank <= floor] or worth[:1]
    poor = [form for form in worth if form not in good]
    lowest = [form for form in good if form.rank == good[-1].rank] if good else []
    # 1. whole, at the context that is wanted
    yield from _whole(good, placer, wanted, wanted.contexts[:1])
    # 2. the least of the good forms with a smaller cache, then with a smaller context
    if wanted.cache_type is None:
        yield from _smaller_cache(lowest, placer, wanted, rules)
    yield from _whole(lowest, placer, wanted, wanted.contexts[1:])
    # 3. partly in RAM: the fewest bytes of a good form, for each one there is read for every token
    if not wanted.placed:
        yield from (placer.partial(form, wanted.context) for form in reversed(good))
    # 4. below the floor, whole and then partly
    yield from _whole(poor, placer, wanted, wanted.contexts[:1])
    if not wanted.placed:
        yield from (placer.partial(form, wanted.context) for form in poor)
    yield from _whole(poor[-1:], placer, wanted, wanted.contexts[1:])


def worthwhile(
    forms: Sequence[Form], card: Card, room: Room, rules: Rules, *, given: bool
) -> list[Form]:
    """Leave out forms whose bytes are not worth reading on this device, unless the user named one.

    The best that is left is kept also where the card has nothing smaller.
    """
    if given:
        return list(forms)
    facts = card.architecture
    ceiling = rules.ceiling(room.device, facts.active_parameters or facts.parameters or 0)
    kept = [form for form in forms if form.rank >= ceiling or _is_trained_so(form)]
    return kept or list(forms)


def _is_trained_so(form: Form) -> bool:
    """Whether the form of rank 0 is itself a quantized one: there is nothing better to fall to."""
    return form.rank == 0 and (form.quantization.startswith(("MXFP4", "Q4_0")) or bool(form.packed))


def _whole(
    forms: Sequence[Form], placer: Placer, wanted: Wanted, contexts: Sequence[int]
) -> Iterator[Attempt | None]:
    for context in contexts:
        for form in forms:
            cache = wanted.cache_type or "f16"
            if wanted.placed:
                yield _as_placed(form, placer, wanted, context)
            else:
                yield placer.whole(form, context, cache_type=cache)


def _as_placed(form: Form, placer: Placer, wanted: Wanted, context: int) -> Attempt | None:
    on_cpu = placer.room.device == "cpu"
    layers = -1 if wanted.gpu_layers is None else wanted.gpu_layers
    placement = Placement(
        context=context,
        cache_type=wanted.cache_type or "f16",
        gpu_layers=0 if on_cpu else layers,
        experts_on_cpu=wanted.experts_on_cpu or 0,
        devices=wanted.devices or max(1, len(placer.room.device_bytes)),
    )
    return placer.attempt(form, placement)


def _smaller_cache(
    forms: Sequence[Form], placer: Placer, wanted: Wanted, rules: Rules
) -> Iterator[Attempt | None]:
    for form in forms:
        if form.facts.name in _CACHE_ENGINES and not wanted.placed:
            yield placer.whole(form, wanted.context, cache_type=rules.cache)
