"""Why no engine loads a card on a machine, in one error."""

from __future__ import annotations

from workbench.catalog import Card
from workbench.catalog.capabilities import EngineFacts, engine_facts
from workbench.errors import (
    InputError,
    MissingPackageError,
    UnsupportedError,
    WorkbenchError,
    did_you_mean,
)
from workbench.planning.form import is_installed
from workbench.planning.policy import Rules
from workbench.planning.room import Room

_PIP = {"compressed_tensors": "compressed-tensors"}
"""Modules whose package is named otherwise."""


def nothing_loads(
    card: Card,
    room: Room,
    rules: Rules,
    facts: EngineFacts | None,
    *,
    asked: str | None,
    dtype: str,
) -> WorkbenchError:
    """Return why nothing was found: a wrong dtype, a missing package, or a form nobody loads.

    Args:
        card: The model.
        room: Where it was to run.
        rules: What packed weights need.
        facts: The engine that was named, None for any.
        asked: The form that was named, None for any.
        dtype: The dtype that was named, or ``auto``.
    """
    if dtype != "auto":
        chosen = facts or _first_with_safetensors()
        if dtype not in chosen.dtypes and chosen.dtypes:
            return InputError(
                f"The engine {chosen.name} has no dtype {dtype!r}.",
                hint=did_you_mean(dtype, chosen.dtypes),
            )
    if card.remote is not None:
        return UnsupportedError(
            f"{card.id} runs at a service ({card.remote.url}), not on a machine.",
            hint="Name an engine that asks services.",
        )
    who = "No engine loads" if facts is None else f"The engine {facts.name} does not load"
    what = f" in the form {asked}" if asked else f": {_stored(card)} weights"
    refused = f"{who} {card.id} on {room.device}{what}"
    missing = _missing(card, room, rules, facts, asked)
    if not missing:
        return UnsupportedError(f"{refused}.")
    lacks = "; ".join(f"{engine} needs {', '.join(names)}" for engine, names in missing.items())
    packages = dict.fromkeys(_PIP.get(name, name) for name in next(iter(missing.values())))
    return MissingPackageError(
        f"{refused}. Not installed: {lacks}.", hint=f"pip install {' '.join(packages)}"
    )


def _first_with_safetensors() -> EngineFacts:
    return next(each for each in engine_facts().values() if "safetensors" in each.formats)


def _stored(card: Card) -> str:
    stored = card.stored
    if stored is None:
        return "these"
    return stored.detail if stored.method == "other" and stored.detail else stored.method


def _missing(
    card: Card, room: Room, rules: Rules, facts: EngineFacts | None, asked: str | None
) -> dict[str, list[str]]:
    """Return engines with the modules that a form needs there and that are not on this machine."""
    if not room.here:
        return {}
    needs: dict[str, tuple[str, ...]] = {}
    ready = asked.removesuffix("-8") if asked else None
    method = card.stored.method if card.stored is not None and ready in (None, "none") else ready
    if method in rules.packed:
        needs = dict(rules.packed[method].needs)
    if asked is not None:
        every = engine_facts().values()
        needs |= {each.name: found for each in every if (found := each.modules_for(asked))}
    return {
        engine: missing
        for engine, modules in needs.items()
        if (facts is None or engine == facts.name)
        and (missing := [module for module in modules if not is_installed(module)])
    }
