"""Small random models of each family, as transformers builds them, with their facts.

Nothing is computed on the meta device; the sizes are what counts.
"""

from __future__ import annotations

from typing import Any

from workbench.catalog.architecture import (
    Architecture,
    Experts,
    LatentAttention,
    SlidingWindow,
    StateSpace,
)

VOCABULARY = 500
_BASE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
}
_WIDE = {**_BASE, "head_dim": 64}
_ALTERNATE = ["sliding_attention", "full_attention"]


def config(family: str, *, layers: int = 4) -> Any:
    """Return the transformers configuration of a family."""
    import transformers as t

    count = {"num_hidden_layers": layers}
    alternate = (_ALTERNATE * layers)[:layers]
    made = {
        "llama": lambda: t.LlamaConfig(**_WIDE, **count),
        "mistral": lambda: t.MistralConfig(**_WIDE, **count, sliding_window=None),
        "qwen2": lambda: t.Qwen2Config(**_BASE, **count),
        "qwen3": lambda: t.Qwen3Config(**_WIDE, **count),
        "granite": lambda: t.GraniteConfig(**_BASE, **count),
        "gemma2": lambda: t.Gemma2Config(
            **_WIDE, **count, sliding_window=96, layer_types=alternate
        ),
        "gemma3_text": lambda: t.Gemma3TextConfig(
            **_WIDE, **count, sliding_window=96, layer_types=_gemma3(layers)
        ),
        "phi3": lambda: t.Phi3Config(**_BASE, **count, pad_token_id=0, sliding_window=95),
        "stablelm": lambda: t.StableLmConfig(**_BASE, **count),
        "qwen3_moe": lambda: t.Qwen3MoeConfig(
            **_WIDE, **count, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=128
        ),
        "gpt_oss": lambda: t.GptOssConfig(
            **_WIDE, **count, num_local_experts=4, num_experts_per_tok=2, sliding_window=96,
            layer_types=alternate,
        ),
        "granitemoehybrid": lambda: t.GraniteMoeHybridConfig(
            **_BASE, **count, layer_types=_hybrid(layers), num_local_experts=4,
            num_experts_per_tok=2, shared_intermediate_size=256, mamba_n_heads=8, mamba_d_head=64,
            mamba_d_state=32, mamba_d_conv=4, mamba_expand=2, mamba_n_groups=1,
        ),
        "deepseek_v3": lambda: t.DeepseekV3Config(
            **{**_BASE, "num_key_value_heads": 8}, **count, moe_intermediate_size=64,
            n_routed_experts=8, num_experts_per_tok=2, n_group=2, topk_group=1, kv_lora_rank=64,
            q_lora_rank=96, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
            first_k_dense_replace=1, n_shared_experts=1,
        ),
    }  # fmt: skip
    return made[family]()


def facts(family: str, *, layers: int = 4) -> Architecture:
    """Return the same model as the catalog would have it."""
    plain = family in ("qwen2", "granite", "phi3", "stablelm", "granitemoehybrid")
    values: dict[str, Any] = {
        "model_type": family,
        "layers": layers,
        "hidden_size": 256,
        "intermediate_size": 768,
        "attention_heads": 8,
        "kv_heads": 2,
        "head_dim": 32 if plain else 64,
        "vocab_size": VOCABULARY,
        "tied_embeddings": family in ("gemma2", "gemma3_text", "granitemoehybrid"),
    }
    if family in ("gemma2", "gpt_oss"):
        values["sliding_window"] = SlidingWindow(
            size=96, sliding_layers=layers // 2, full_layers=layers - layers // 2
        )
    elif family == "gemma3_text":
        full = _gemma3(layers).count("full_attention")
        values["sliding_window"] = SlidingWindow(
            size=96, sliding_layers=layers - full, full_layers=full
        )
    elif family == "phi3":
        values["sliding_window"] = SlidingWindow(size=95, sliding_layers=layers, full_layers=0)
    if family == "qwen3_moe":
        values["experts"] = Experts(experts=8, experts_per_token=2, intermediate_size=128)
    elif family == "gpt_oss":
        values["experts"] = Experts(experts=4, experts_per_token=2, intermediate_size=768)
    elif family == "granitemoehybrid":
        values["experts"] = Experts(
            experts=4, experts_per_token=2, intermediate_size=768, shared_intermediate_size=256
        )
        values["state_space"] = StateSpace(
            heads=8, head_dim=64, state_size=32, conv_kernel=4, groups=1, inner_size=512
        )
        kinds = _hybrid(layers)
        values["attention_layers"] = tuple(i for i, k in enumerate(kinds) if k == "attention")
    elif family == "deepseek_v3":
        values["kv_heads"] = 8
        values["latent_attention"] = LatentAttention(
            kv_lora_rank=64, q_lora_rank=96, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32
        )
        values["experts"] = Experts(
            experts=8, experts_per_token=2, intermediate_size=64, shared_experts=1, dense_layers=1
        )
    return Architecture.of(values)


def _gemma3(layers: int) -> list[str]:
    return [_ALTERNATE[(index + 1) % 6 == 0] for index in range(layers)]


def _hybrid(layers: int) -> list[str]:
    return ["attention" if index % 4 == 2 else "mamba" for index in range(layers)]
