"""Tiny models with random weights as GGUF files, made by llama.cpp's own converter."""

from __future__ import annotations

import json
from pathlib import Path

from random_models import random_model, tokenizer

from workbench.catalog import locate, resolve
from workbench.formats.gguf import convert


def random_gguf(family: str, folder: Path) -> Path:
    """Return a random model of the family as a GGUF of 32 bits, with the embedded tokenizer."""
    source = folder / f"{family}-source"
    model = random_model(family)
    model.save_pretrained(source)
    if getattr(model.config, "num_local_experts", 1) == 0:  # llama.cpp wants none used either
        config = source / "config.json"
        plain = json.loads(config.read_text())
        config.write_text(json.dumps({**plain, "num_experts_per_tok": 0}))
    tokenizer().save_pretrained(source)
    return convert(locate(resolve(source)), folder / f"{family}.gguf", dtype="F32", name=family)
