"""Where an answer comes from: the model, its plan, the machine and the versions as plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.engines.plain import described
from workbench.machine import machine
from workbench.redact import redacted

if TYPE_CHECKING:
    from workbench.engines.model import Model

_NO_PLAN = ("schema_version", "card", "reasons", "considered", "changes", "needs", "estimate")


def made_by(model: Model) -> dict[str, Any]:
    """Return what a model is, for ``Dialogue.made_by``: keys and the user's home are left out.

    Returns:
        ``label``, ``card``, ``engine``, ``quantization``, ``dtype``, ``context`` (tokens),
        ``device``, ``repository``, ``revision`` (commit, None where it is not known), ``adapter``,
        ``plan`` (what is set), ``receipt`` (the load's file name), ``machine`` (one line),
        ``versions``.
    """
    plan, here = model.plan, machine()
    whole = described(plan)
    return {
        "label": model.label,
        "card": model.card.id,
        "engine": plan.engine,
        "quantization": plan.quantization,
        "dtype": plan.dtype,
        "context": plan.context,
        "device": plan.device,
        "repository": plan.repository or model.card.repository,
        "revision": (plan.files.revision if plan.files else None) or model.card.revision,
        "adapter": redacted(whole["adapter"]),
        "plan": redacted(
            {
                name: value
                for name, value in whole.items()
                if name not in _NO_PLAN and value not in (None, "", {}, [])
            }
        ),
        "receipt": model.receipt.name if model.receipt else None,
        "machine": redacted(here.summary()),
        "versions": dict(here.versions),
    }
