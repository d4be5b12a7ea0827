"""Tiny models with random weights as GGUF files, made by llama.cpp's own converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from random_models import VOCABULARY, random_model, tokenizer

from workbench.catalog import locate, resolve
from workbench.formats.gguf import convert


def random_gguf(family: str, folder: Path) -> Path:
    """Return a random model of the family as a GGUF of 32 bits, with the embedded tokenizer.

    Args:
        family: As ``random_models`` knows it, or ``mamba``.
        folder: Where to write.
    """
    source = folder / f"{family}-source"
    model = mamba() if family == "mamba" else random_model(family)
    model.save_pretrained(source)
    tokenizer().save_pretrained(source)
    return convert(locate(resolve(source)), folder / f"{family}.gguf", dtype="F32", name=family)


def mamba() -> Any:
    """Return a model whose state is recurrent: nothing of it can be cut off."""
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        state_size=8,
        num_hidden_layers=2,
        eos_token_id=2,
        initializer_range=0.3,
    )
    return MambaForCausalLM(config).float().eval()
