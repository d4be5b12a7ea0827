"""Writes the trained model as a folder of fp16 safetensors, each file all or nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from builder.tokenizer import END, PAD, tokenizer_files

CONFIG_KEYS = (
    "attention_bias", "attention_dropout", "bos_token_id", "eos_token_id", "head_dim", "hidden_act",
    "hidden_size", "initializer_range", "intermediate_size", "max_position_embeddings", "mlp_bias",
    "model_type", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "pad_token_id",
    "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "transformers_version", "vocab_size",
)  # fmt: skip
GENERATION = {"do_sample": False, "max_new_tokens": 128}


def replace_text(path: Path, text: str) -> None:
    """Write a text file under another name, then rename it."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def half(model: Any) -> dict[str, Any]:
    """The weights in fp16 as they ship: contiguous, the tied output matrix left out."""
    import torch

    tensors = {
        name: value.detach().to(torch.float16).contiguous().clone()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} does not fit into fp16")
    return tensors


def configuration(model: Any) -> dict[str, Any]:
    """What config.json says; the old key for the rotary base is kept for other readers."""
    config = model.config.to_dict()
    kept = {key: config[key] for key in CONFIG_KEYS}
    return kept | {
        "architectures": ["LlamaForCausalLM"],
        "use_cache": True,
        "dtype": "float16",
        "rope_theta": kept["rope_parameters"]["rope_theta"],
    }


def export(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write weights, configuration, tokenizer and template to the folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name, text in tokenizer_files(tokenizer).items():
        replace_text(folder / name, text)
    part = folder / "model.safetensors.part"
    save_file(half(model), part, metadata={"format": "pt"})
    part.chmod(0o644)
    os.replace(part, folder / "model.safetensors")
    replace_text(folder / "config.json", json.dumps(configuration(model), indent=2) + "\n")
    ends = [tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)]
    generation = {"bos_token_id": ends[1], "eos_token_id": ends, "pad_token_id": ends[1]}
    replace_text(
        folder / "generation_config.json", json.dumps(generation | GENERATION, indent=2) + "\n"
    )
