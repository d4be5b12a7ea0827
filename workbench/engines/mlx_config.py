"""What a folder's config says, in the words that mlx-lm reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def with_old_names(config: dict[str, Any]) -> dict[str, Any]:
    """Return changes to a config so that rotary settings are found under their older names.

    transformers 5 writes ``rope_parameters``; most architectures of mlx-lm 0.32 read ``rope_theta``
    and ``rope_scaling`` only, and take their own default without a word where these are missing.
    """
    changes = _rotary(config)
    text = config.get("text_config")
    if isinstance(text, dict) and (inner := _rotary(text)):
        changes["text_config"] = {**text, **inner}
    return changes


def _rotary(config: dict[str, Any]) -> dict[str, Any]:
    given = config.get("rope_parameters")
    if not isinstance(given, dict):
        return {}
    layered = isinstance(given.get("full_attention"), dict)
    whole = given["full_attention"] if layered else given
    found: dict[str, Any] = {}
    if whole.get("rope_theta") is not None:
        found["rope_theta"] = whole["rope_theta"]
    if whole.get("partial_rotary_factor") is not None:
        found["partial_rotary_factor"] = whole["partial_rotary_factor"]
    kind = whole.get("rope_type", "default")
    if kind != "default":
        found["rope_scaling"] = {**whole, "type": kind}
    sliding = given.get("sliding_attention")
    if layered and isinstance(sliding, dict) and sliding.get("rope_theta") is not None:
        found["rope_local_base_freq"] = sliding["rope_theta"]
    return {name: value for name, value in found.items() if config.get(name) is None}


def ends_of(folder: Path, config: dict[str, Any], tokenizer: Any) -> frozenset[int]:
    """Return every id that ends a reply, by generation config, config and tokenizer."""
    found: set[int] = set()
    text = config.get("text_config")
    given = [config.get("eos_token_id"), tokenizer.eos_token_id]
    given += [text.get("eos_token_id")] if isinstance(text, dict) else []
    # mlx-lm puts the generation config's ids in the place of the config's own
    given.append(json.loads((folder / "config.json").read_text("utf-8")).get("eos_token_id"))
    for ids in given:
        found.update([ids] if isinstance(ids, int) else ids or ())
    return frozenset(found)
