"""The sha256 of a model's weights, where a store has named its files by it already."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

_NAMED_BY_HASH = re.compile(r"(?:sha256-)?([0-9a-f]{64})")


def known_sha256(weights: Sequence[Path]) -> str | None:
    """Return the sha256 of the weights without reading them, or None where it is not known.

    The Hugging Face cache and Ollama keep big files under their sha256. Reading gigabytes to
    compute it would double the time of a load, so of other files it stays unknown.

    Args:
        weights: The weight files.

    Returns:
        The digest of a single file; of several, the digest over ``name:sha256;`` of each, sorted.
    """
    found = {path.name: _NAMED_BY_HASH.fullmatch(path.resolve().name) for path in weights}
    digests = {name: match[1] for name, match in found.items() if match}
    if not weights or len(digests) < len(weights):
        return None
    if len(digests) == 1:
        return next(iter(digests.values()))
    text = "".join(f"{name}:{digests[name]};" for name in sorted(digests))
    return hashlib.sha256(text.encode()).hexdigest()
