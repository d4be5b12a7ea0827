"""Decides whether a reply is right, by the four scorer types of the prompt sets."""

from __future__ import annotations

import json
import re
from typing import Any


def is_right(reply: str, scorer: dict[str, Any]) -> bool:
    """True when the reply satisfies the scorer: exact, contains, regex or json."""
    text = reply.strip()
    kind = scorer["type"]
    if kind == "exact":
        return bool(text == scorer["answer"].strip())
    if kind == "contains":
        return any(answer in text for answer in scorer["answers"])
    if kind == "regex":
        return re.fullmatch(scorer["pattern"], text) is not None
    if kind == "json":
        try:
            return bool(json.loads(text) == scorer["answer"])
        except json.JSONDecodeError:
            return False
    raise ValueError(f"unknown scorer type {kind!r}: use exact, contains, regex or json")
