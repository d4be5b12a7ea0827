"""How much of the model's context a conversation takes, and a warning before it is full."""

from __future__ import annotations

import contextlib
from typing import Any

from workbench.chats.dialogue import Dialogue
from workbench.engines.base import Power
from workbench.engines.model import Model

NEARLY_FULL = 0.85
"""Share of the context from which on the meter warns."""


def meter(model: Model, dialogue: Dialogue) -> dict[str, Any]:
    """Return ``used`` tokens or None, the ``context``, and a ``warning`` or None."""
    used, context = _used(model, dialogue), model.plan.context or None
    warning = None
    if used is not None and context is not None and used >= NEARLY_FULL * context:
        left = max(0, context - used)
        warning = (
            f"{used:,} of {context:,} tokens of context are taken, {left:,} are left: answers will "
            "be cut off soon. Start anew, edit an earlier turn, or load the model with a larger "
            "context=."
        )
    return {"used": used, "context": context, "warning": warning}


def _used(model: Model, dialogue: Dialogue) -> int | None:
    """Return the tokens of the branch on view: as the engine counted last, else rendered."""
    path = dialogue.path()
    reply = path[-1].reply if path else None
    if reply is not None and reply.usage is not None:
        return reply.usage.prompt_tokens + reply.usage.completion_tokens
    if not path:
        return 0
    messages = dialogue.messages()
    with contextlib.suppress(Exception):  # a meter is no reason to fail: the engine will say
        if messages and Power.RENDER in model.powers and not any(m.images for m in messages):
            return len(model.prompt_ids(messages))
    return None
