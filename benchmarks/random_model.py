"""Random weights in the shape of a known model, written for a benchmark: they take its time.

    from random_model import SHAPES, write_model

The tokenizer and the chat template are the embedded model's. The output matrix has all rows of the
known model, so that choosing a token costs what it costs there. Those without a token are zero, so
that a greedy reply never takes them; so are control tokens and parts of characters, which libraries
show differently.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.catalog import locate, resolve
from workbench.formats import convert
from workbench.paths import shipped

CONTEXT = 4096
_QWEN_ROWS = 151_936
SHAPES: dict[str, dict[str, int]] = {
    "7B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
    },
    "0.5B": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": _QWEN_ROWS,
    },
    "0.05B": {
        "hidden_size": 448,
        "intermediate_size": 2432,
        "num_hidden_layers": 10,
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
        "vocab_size": 32_000,
    },
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 4096,
    },
}
"""Shapes of Qwen2.5 by size; ``0.05B`` and ``tiny`` are no model's, to try a benchmark."""


def write_model(folder: Path, shape: str, *, dtype: str = "bfloat16") -> Path:
    """Write a random Qwen2 model in this shape as safetensors, the same each time.

    Args:
        folder: Where to; it is made.
        shape: A key of ``SHAPES``.
        dtype: torch's name of the dtype of the stored weights.
    """
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(str(shipped("data", "tiny-chat")))
    tokenizer.save_pretrained(str(folder))
    config = Qwen2Config(
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=shape != "7B",
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.05,
        **SHAPES[shape],
    )
    rows = config.vocab_size
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        model = Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        model.lm_head.weight[[index for index in range(rows) if not _is_text(tokenizer, index)]] = 0
    model.save_pretrained(str(folder))
    return folder


def _is_text(tokenizer: Any, index: int) -> bool:
    """Whether a token is whole characters of text."""
    if index >= len(tokenizer) or index in tokenizer.all_special_ids:
        return False
    text = tokenizer.decode([index])
    return bool(text) and "\ufffd" not in text


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--shape`` to a benchmark."""
    parser.add_argument(
        "--shape",
        choices=list(SHAPES),
        help="random weights in this shape of Qwen2.5, instead of the embedded model",
    )


@contextlib.contextmanager
def model_for(shape: str | None, *, dtype: str = "bfloat16") -> Iterator[str]:
    """Yield what to load: the embedded model's id, or a random model in a temporary folder."""
    if shape is None:
        yield "tiny-chat"
        return
    with tempfile.TemporaryDirectory() as folder:
        yield str(write_model(Path(folder) / f"random-{shape}", shape, dtype=dtype))


def gguf_of(model: str, quantization: str) -> tuple[str, dict[str, str]]:
    """Return what llama.cpp loads, and with which settings.

    The GGUF of a random model is made beside it, so that nothing of it stays in the cache; others
    are converted by the load.
    """
    folder = Path(model)
    if not folder.is_dir():
        return model, {"quantization": quantization}
    file = folder.with_suffix(f".{quantization}.gguf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of texts that no benchmark has
        made = convert(locate(resolve(folder)), file, dtype=quantization, name=folder.name)
    return str(made), {}


def named(shape: str | None) -> str:
    """Return in words what was loaded."""
    return "tiny-chat" if shape is None else f"Random weights in the shape of Qwen2.5-{shape}"
