"""A shipped card says what its files say."""

from __future__ import annotations

import json
import math

from workbench.catalog import locate, resolve
from workbench.catalog.shelf import _card_of_path


def test_the_embedded_card_agrees_with_its_files() -> None:
    card = resolve("tiny-chat")
    files = locate(card)
    read = _card_of_path(files.path)
    stated = card.architecture.model_dump(exclude={"parameters"})
    assert stated == read.architecture.model_dump(exclude={"parameters"})
    assert (card.context_length, card.dtype) == (read.context_length, read.dtype)
    with files.weights[0].open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    assert sum(math.prod(t["shape"]) for t in header.values()) == card.architecture.parameters
