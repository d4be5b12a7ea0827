"""Folders with the embedded tokenizer: a copy with another config, a random model with windows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from workbench.paths import shipped


def tiny_copy(parent: Path, name: str = "copied", **changes: Any) -> Path:
    """Copy the embedded model with changes to its config; None removes a key."""
    folder = parent / name
    shutil.copytree(shipped("data", "tiny-chat"), folder, ignore=lambda *_: ["builder"])
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: v for key, v in config.items() if v is not None}))
    return folder


def windowed(parent: Path, window: int) -> Path:
    """Return a random Gemma 3 of three layers, two of which have a sliding window."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    folder = parent / "gemma"
    shutil.copytree(shipped("data", "tiny-chat"), folder, ignore=lambda *_: ["builder"])
    config = Gemma3TextConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, vocab_size=2816, head_dim=32,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=window, pad_token_id=0,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        max_position_embeddings=2048, sliding_window_pattern=2, query_pre_attn_scalar=32,
        initializer_range=0.3,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(folder)
    return folder
