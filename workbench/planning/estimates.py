"""The memory of a model as it would be planned, in parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.catalog import Card
from workbench.errors import InputError
from workbench.machine import Machine
from workbench.memory import Estimate
from workbench.planning.choose import plan


def estimate(
    model: str | Path | Card,
    *,
    machine: Machine | str | Path | Mapping[str, Any] | None = None,
    **given: Any,
) -> Estimate:
    """Return the memory that a model takes as ``plan`` would load it, in parts with their rules.

    Args:
        model: A card id, a folder of safetensors, a GGUF file, or a card.
        machine: A machine or its description; None for this one.
        given: Further arguments of ``plan``: context, batch, engine, quantization, dtype ...

    Raises:
        InputError: As ``plan``, and where too little is known of the model to estimate it.
    """
    found = plan(model, machine=machine, **given)
    if found.estimate is None:
        raise InputError(
            f"The memory of {found.card.id} with {found.engine} is not known.",
            hint="; ".join(found.reasons) or None,
        )
    return found.estimate
