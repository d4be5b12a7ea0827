"""Tiny models with random weights, of families whose caches differ."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import workbench as wb
from workbench.catalog import Card
from workbench.engines.transformers_session import TransformersSession
from workbench.planning import Plan

VOCABULARY = 2816
"""As the embedded model's, whose tokenizer they share."""
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
}
WINDOW = 24
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "gemma2": {"sliding_window": WINDOW, "query_pre_attn_scalar": 16},
    "gemma3_text": {"sliding_window": WINDOW, "query_pre_attn_scalar": 16},
    "gpt_oss": {"sliding_window": WINDOW, **_EXPERTS},
    "mistral": {"sliding_window": WINDOW},
    "granitemoehybrid": {
        **_EXPERTS,
        "num_local_experts": 0,
        "shared_intermediate_size": 64,
        "layer_types": ["mamba", "attention", "mamba"],
        "mamba_n_heads": 4,
        "mamba_d_head": 24,
        "mamba_d_state": 16,
        "mamba_expand": 2,
        "mamba_chunk_size": 16,
        "position_embedding_type": "rope",
    },
    "deepseek_v3": {
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "phi3": {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 6,
            "long_factor": [4.0] * 6,
        },
        "original_max_position_embeddings": 64,
    },
}


@cache
def random_model(family: str, seed: int = 0) -> Any:
    """Return a tiny random causal model of the family, the same each time."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**SMALL, **FAMILIES[family]}
    if family in ("deepseek_v3", "phi3"):
        settings.pop("head_dim")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
    for parameter in model.parameters():
        if parameter.dim() == 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    model.generation_config.eos_token_id = 2
    return model.float().eval()


@cache
def tokenizer() -> Any:
    """Return the embedded model's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(tiny_chat()))


def tiny_chat() -> Path:
    """Return the folder of the embedded model."""
    path = wb.plan("tiny-chat", engine="transformers").files
    assert path is not None
    return path.path


def random_session(family: str, *, seed: int = 0, **options: Any) -> TransformersSession:
    """Return a session of a random model in this process."""
    plan = Plan(card=Card(id=family), engine="transformers", context=2048, options=options)
    return TransformersSession(random_model(family, seed), tokenizer(), plan)
