"""Who answers in an arena: open models, and descriptions that are loaded when they are needed."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.catalog import Card
from workbench.catalog.capabilities import engine_facts
from workbench.chats.dialogue import Dialogue
from workbench.engines.base import Power
from workbench.engines.load import load
from workbench.engines.model import Model
from workbench.errors import InputError, MemoryShortError, NotFoundError, WorkbenchError
from workbench.evaluate.form import Form, read_forms
from workbench.export.adapter import CONFIG, base_card, is_adapter
from workbench.messages import Sampling
from workbench.planning import Plan, require_memory
from workbench.planning import plan as make_plan
from workbench.planning.policy import rules
from workbench.planning.room import room_of
from workbench.progress import Bar, progress

SamplingLike = Sampling | Mapping[str, Any] | None
Entrant = Any
"""A model, a plan, a card, its id or path, arguments of ``load``, or a pair with a sampling."""
MOST = 26
_LOADING = ("isolate", "force", "fallback", "memory_limit")
_TWO = "Give two models, one model with adapter= or forms=, or pairs (model, sampling)."


class Source:
    """Where answers come from: a model that was given, or a plan that is loaded when needed.

    Attributes:
        plan: What the model is.
        model: The model once it is loaded.
        owned: Whether the arena loads it, and closes it again.
    """

    def __init__(
        self,
        *,
        model: Model | None = None,
        plan: Plan | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if plan is None:
            assert model is not None
            plan = model.plan
        self.model, self.plan, self.owned = model, plan, model is None
        self._options = dict(options or {})

    @property
    def open(self) -> bool:
        """Whether it can answer now."""
        return self.model is not None and not self.model.closed

    @property
    def label(self) -> str:
        """Its name."""
        return self.plan.label

    def fits(self) -> bool:
        """Return whether it fits beside what is loaded now, with the margin that a plan keeps."""
        try:
            require_memory(self.plan)
        except MemoryShortError:
            return False
        if self.plan.estimate is None:
            return True
        try:
            room = room_of(None, rules=rules(), device=self.plan.device)
        except WorkbenchError:
            return True  # no such device here: the engine says so better
        needs = room.needs(self.plan.estimate, self.plan.tensor_parallel)
        return not any(need.short_bytes for need in needs)

    def load(self, tell: Callable[[Sequence[Bar]], object] | None = None) -> Model:
        """Load it, and return the model; ``tell`` gets the bars instead of a display."""
        with progress(
            f"Loading {self.plan.card.id}", unit="seconds", patience=0.3, tell=tell
        ) as bar:
            bar.update(note=f"{self.plan.engine}, {self.plan.device}")
            self.model = load(self.plan, **self._options)
        return self.model

    def unload(self) -> None:
        """Free the memory of a model that the arena loaded."""
        model, self.model = (self.model, None) if self.owned else (None, self.model)
        if model is not None:
            model.close()


@dataclasses.dataclass(kw_only=True, eq=False)
class Contestant:
    """One that answers.

    Attributes:
        name: Its name in votes and tables, another one than every other's.
        source: The model; several contestants may share one.
        sampling: Its settings: all of them, or single ones over the card's.
        switches: Whether ``adapter`` is put on the model before each answer.
        adapter: Folder of the LoRA adapter, or None for the base model.
        dialogue: What it was asked and what it answered.
    """

    name: str
    source: Source
    sampling: SamplingLike = None
    switches: bool = False
    adapter: Path | None = None
    dialogue: Dialogue = dataclasses.field(default_factory=Dialogue)

    def beside(self, other: Contestant) -> bool:
        """Return whether both can answer at the same time."""
        if self.source is not other.source:
            return self.source.model is not other.source.model or self.source.model is None
        if (self.switches or other.switches) and self.adapter != other.adapter:
            return False
        model = self.source.model
        return model is not None and not model.closed and Power.CONCURRENT in model.powers


def contestants_of(
    given: Any,
    *,
    forms: Sequence[str | Mapping[str, Any] | Form] | None = None,
    adapter: str | Path | None = None,
    sampling: SamplingLike = None,
) -> list[Contestant]:
    """Return the contestants that a user described, each with a name of its own.

    Raises:
        InputError: Fewer than two, more than 26, or something that is no model.
        NotFoundError: No such card, file or adapter.
    """
    if forms is not None and adapter is not None:
        raise InputError("An arena has either forms= or adapter=.")
    if adapter is not None:
        found = _adapted(given, Path(adapter).expanduser().resolve())
    elif forms is not None:
        found = _formed(given, read_forms(forms))
    else:
        found = _listed(given)
    if not 2 <= len(found) <= MOST:
        raise InputError(f"An arena has 2 to {MOST} contestants, not {len(found)}.", hint=_TWO)
    _name_apart(found)
    for each in found:
        each.sampling = _over(sampling, each.sampling)
    return found


def _listed(given: Any) -> list[Contestant]:
    single = isinstance(given, str | Path | Card | Plan | Model | Mapping)
    if given is None or single or not isinstance(given, Iterable):
        raise InputError("An arena needs two contestants.", hint=_TWO)
    sources: dict[int, Source] = {}
    entrants = list(given)  # kept: an entrant is known by its identity
    return [_one(each, sources) for each in entrants]


def _one(entrant: Entrant, sources: dict[int, Source]) -> Contestant:
    """Return a contestant; entrants that are the same object share one source."""
    settings: SamplingLike = None
    if isinstance(entrant, tuple):
        if len(entrant) != 2 or not isinstance(entrant[1], Sampling | Mapping | None):
            raise InputError("A pair is (model, sampling): the settings as a mapping.", hint=_TWO)
        entrant, settings = entrant
    label = entrant.get("label") if isinstance(entrant, Mapping) else None
    source = sources.get(id(entrant))
    if source is None:
        source = sources[id(entrant)] = _source(entrant)
    return Contestant(name=str(label or source.label), source=source, sampling=settings)


def _source(entrant: Entrant) -> Source:
    if isinstance(entrant, Model):
        return Source(model=entrant)
    if isinstance(entrant, Plan):
        return Source(plan=entrant)
    if isinstance(entrant, str | Path | Card):
        return Source(plan=make_plan(entrant))
    if not isinstance(entrant, Mapping):
        raise InputError(f"A {type(entrant).__name__} is no contestant.", hint=_TWO)
    arguments = {name: value for name, value in entrant.items() if name != "label"}
    options = {name: arguments.pop(name) for name in _LOADING if name in arguments}
    model = arguments.pop("model", None)
    if model is None:
        raise InputError(
            f"The description {dict(entrant)!r} names no model.",
            hint='Give {"model": "tiny-chat", "engine": "llama.cpp", ...}, as for wb.load.',
        )
    return Source(plan=make_plan(model, **arguments), options=options)


def _formed(given: Any, forms: Sequence[Form]) -> list[Contestant]:
    if not isinstance(given, str | Path | Card):
        raise InputError(
            "Forms are of one model: a card, its id or a path.",
            hint='wb.arena("tiny-chat", forms=["llama.cpp:F16", "llama.cpp:Q4_K_M"])',
        )
    return [
        Contestant(name=form.label, source=Source(plan=make_plan(form.model or given, **_of(form))))
        for form in forms
    ]


def _of(form: Form) -> dict[str, Any]:
    return form.load_arguments()


def _adapted(given: Any, folder: Path) -> list[Contestant]:
    """Return the base model and the adapter on it: one model for both where it can switch."""
    if not is_adapter(folder):
        raise NotFoundError(
            f"There is no adapter in {folder}.", hint=f"Give the folder with {CONFIG}."
        )
    name = folder.name
    if isinstance(given, Model):
        base, able = Source(model=given), Power.ADAPTERS in given.powers
        planned = given.plan if able else dataclasses.replace(given.plan, adapter=folder)
    else:
        planned = _adapted_plan(given, folder)
        facts = engine_facts().get(planned.engine)
        able = facts is not None and "adapters" in facts.powers
        base = Source(plan=planned if able else dataclasses.replace(planned, adapter=None))
    label = dataclasses.replace(planned, adapter=None).label
    if able:
        return [
            Contestant(name=label, source=base, switches=True),
            Contestant(name=f"{label} + {name}", source=base, switches=True, adapter=folder),
        ]
    top = Source(plan=planned)
    return [Contestant(name=label, source=base), Contestant(name=top.label, source=top)]


def _adapted_plan(given: Any, folder: Path) -> Plan:
    if isinstance(given, Plan):
        return dataclasses.replace(given, adapter=folder)
    arguments: dict[str, Any] = {}
    if isinstance(given, Mapping):
        arguments = dict(given)
        given = arguments.pop("model", None)
    if given is None:
        given = _base_of(folder)
    if not isinstance(given, str | Path | Card):
        raise InputError(f"A {type(given).__name__} is no base model.", hint=_TWO)
    return make_plan(given, **{**arguments, "adapter": folder})


def _base_of(folder: Path) -> Card:
    """Return the base model that an adapter names."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    named = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not named:
        raise InputError(
            f"The adapter {folder.name} does not name its base model.",
            hint="Name it: wb.arena(model, adapter=...).",
        )
    return base_card(named, folder)


def _name_apart(found: Sequence[Contestant]) -> None:
    """Give those of one name another one: by their settings, else by a number."""
    for each, shared in [(each, _shared(each, found)) for each in found]:
        if shared and each.sampling is not None:
            each.name = f"{each.name} · {_settings(each.sampling)}"
    counts = Counter(each.name for each in found)
    numbers: Counter[str] = Counter()
    for each in found:
        if counts[each.name] > 1:
            numbers[each.name] += 1
            each.name = f"{each.name} ({numbers[each.name]})"


def _shared(one: Contestant, found: Sequence[Contestant]) -> bool:
    return any(each is not one and each.name == one.name for each in found)


def _settings(sampling: Sampling | Mapping[str, Any]) -> str:
    if isinstance(sampling, Sampling):
        plain = Sampling()
        names = [field.name for field in dataclasses.fields(Sampling)]
        sampling = {
            n: getattr(sampling, n) for n in names if getattr(sampling, n) != getattr(plain, n)
        }
    said = ", ".join(f"{name} {value}" for name, value in sampling.items())
    return said or "greedy"


def _over(base: SamplingLike, own: SamplingLike) -> SamplingLike:
    """Return a contestant's settings over those of the arena; a wrong name is refused."""
    for given in (base, own):
        if isinstance(given, Mapping):
            Sampling.of(None, **given)
    if own is None or isinstance(own, Sampling) or base is None:
        return base if own is None else own
    if isinstance(base, Sampling):
        return Sampling.of(base, **own)
    return {**base, **own}
