"""Build a model of an architecture with transformers on the meta device: shapes, no values."""

from typing import Any

from workbench.catalog.architecture import Architecture


def build(facts: Architecture) -> Any:
    """Return the model that transformers makes of these facts, on the meta device."""
    import torch
    import transformers

    name, given = _CONFIGS[facts.model_type or ""](facts)
    config = getattr(transformers, f"{name}Config")(**given)
    with torch.device("meta"):
        if name == "Bert":
            return transformers.BertModel(config)
        if "vision_config" in given:
            return transformers.AutoModelForImageTextToText.from_config(config)
        return transformers.AutoModelForCausalLM.from_config(config)


def config_of(facts: Architecture) -> dict[str, Any]:
    """Return config.json of these facts, as transformers writes it."""
    import transformers

    name, given = _CONFIGS[facts.model_type or ""](facts)
    found: dict[str, Any] = getattr(transformers, f"{name}Config")(**given).to_dict()
    return found


def count(model: Any) -> int:
    """Return its parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def four_bit(model: Any) -> tuple[int, int]:
    """Return matrices and parameters that bitsandbytes would hold in 4 bit under transformers."""
    from transformers import BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    skipped = get_keys_to_not_convert(model) + list(model._keep_in_fp32_modules or ())
    replaced = replace_with_bnb_linear(
        model,
        modules_to_not_convert=skipped,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True),
    )
    found = [m for m in replaced.modules() if type(m).__name__ == "Linear4bit"]
    return len(found), sum(m.in_features * m.out_features for m in found)


def _dense(facts: Architecture) -> dict[str, Any]:
    return {
        "vocab_size": facts.vocab_size,
        "hidden_size": facts.hidden_size,
        "intermediate_size": facts.intermediate_size,
        "num_hidden_layers": facts.layers,
        "num_attention_heads": facts.attention_heads,
        "num_key_value_heads": facts.kv_heads,
        "head_dim": facts.head_dim,
        "tie_word_embeddings": not facts.output_parameters,
        "pad_token_id": None,
    }


def _experts(facts: Architecture) -> dict[str, Any]:
    experts = facts.experts
    return {
        **_dense(facts),
        "num_experts": experts.experts,
        "num_local_experts": experts.experts,
        "num_experts_per_tok": experts.experts_per_token,
        "moe_intermediate_size": experts.intermediate_size,
        "intermediate_size": facts.intermediate_size or experts.intermediate_size,
    }


def _granite(facts: Architecture) -> dict[str, Any]:
    kinds = ["attention"] * facts.layers
    given = _dense(facts)
    space = facts.state_space
    if space is not None:
        attends = facts.attention_layers or ()
        kinds = ["attention" if i in attends else "mamba" for i in range(facts.layers)]
        given |= {
            "mamba_n_heads": space.heads,
            "mamba_d_head": space.head_dim,
            "mamba_d_state": space.state_size,
            "mamba_d_conv": space.conv_kernel,
            "mamba_n_groups": space.groups,
            "mamba_expand": space.inner_size // facts.hidden_size,
        }
    experts = facts.experts
    shared = experts.shared_intermediate_size if experts else facts.intermediate_size
    return {
        **given,
        "layer_types": kinds,
        "num_local_experts": experts.experts if experts else 0,
        "num_experts_per_tok": experts.experts_per_token if experts else 0,
        "shared_intermediate_size": shared,
    }


def _latent(facts: Architecture) -> dict[str, Any]:
    mla, experts = facts.latent_attention, facts.experts
    given = {**_dense(facts), **mla.model_dump(), "n_routed_experts": experts.experts}
    del given["head_dim"]
    return {
        **given,
        "n_shared_experts": experts.shared_experts,
        "num_experts_per_tok": experts.experts_per_token,
        "moe_intermediate_size": experts.intermediate_size,
        "first_k_dense_replace": experts.dense_layers,
        "n_group": 1,
        "topk_group": 1,
    }


def _gpt2(facts: Architecture) -> dict[str, Any]:
    return {
        "vocab_size": facts.vocab_size,
        "n_embd": facts.hidden_size,
        "n_layer": facts.layers,
        "n_head": facts.attention_heads,
    }


def _gemma3n(facts: Architecture) -> dict[str, Any]:
    kinds = ["full_attention" if i % 5 == 4 else "sliding_attention" for i in range(facts.layers)]
    return {
        **_dense(facts),
        "intermediate_size": [facts.intermediate_size] * facts.layers,
        "layer_types": kinds,
        "activation_sparsity_pattern": [0.0] * facts.layers,
        "num_kv_shared_layers": facts.layers - (facts.kv_layers or facts.layers),
        "hidden_size_per_layer_input": facts.per_layer_input_dim,
        "laurel_rank": facts.laurel_rank,
        "altup_num_inputs": facts.altup_inputs,
        "vocab_size_per_layer_input": 262144,
    }


def _with_vision(text: str, vision: dict[str, Any], **other: Any) -> Any:
    def made(facts: Architecture) -> dict[str, Any]:
        inner = _experts(facts) if facts.experts else _dense(facts)
        tied = inner["tie_word_embeddings"]
        own = {"text_config": {"model_type": text, **inner}, "tie_word_embeddings": tied}
        return {**own, "vision_config": vision, **other}

    return made


def _qwen3_vl(facts: Architecture) -> dict[str, Any]:
    sizes = facts.vision
    vision = {
        "depth": sizes.depth,
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size or 4304,
        "patch_size": sizes.patch or 16,
        "spatial_merge_size": sizes.merge or 2,
        "out_hidden_size": facts.hidden_size,
        "deepstack_visual_indexes": list(range(sizes.deepstack_layers or 3)),
    }
    text = "qwen3_vl_moe_text" if facts.experts else "qwen3_vl_text"
    return _with_vision(text, vision)(facts)


_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 896,
    "vision_use_head": False,
}
_PIXTRAL = {
    "model_type": "pixtral",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 1540,
}
_BASE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "patch_size": 16,
    "image_size": 512,
}
_CONFIGS: dict[str, Any] = {
    "llama": lambda a: ("Llama", _dense(a)),
    "mistral": lambda a: ("Mistral", _dense(a)),
    "mixtral": lambda a: ("Mixtral", _experts(a)),
    "qwen2": lambda a: ("Qwen2", _dense(a)),
    "qwen3": lambda a: ("Qwen3", _dense(a)),
    "qwen3_moe": lambda a: ("Qwen3Moe", _experts(a)),
    "gemma2": lambda a: ("Gemma2", _dense(a)),
    "gemma3_text": lambda a: ("Gemma3Text", _dense(a)),
    "gemma3n": lambda a: ("Gemma3nText", _gemma3n(a)),
    "phi3": lambda a: ("Phi3", _dense(a)),
    "phimoe": lambda a: ("Phimoe", {**_experts(a), "attention_bias": True, "lm_head_bias": True}),
    "gpt_oss": lambda a: ("GptOss", _experts(a)),
    "seed_oss": lambda a: ("SeedOss", {**_dense(a), "attention_bias": True}),
    "granitemoehybrid": lambda a: ("GraniteMoeHybrid", _granite(a)),
    "kimi_k2": lambda a: ("DeepseekV3", _latent(a)),
    "gpt2": lambda a: ("GPT2", _gpt2(a)),
    "stablelm_epoch": lambda a: ("StableLm", _dense(a)),
    "bert": lambda a: ("Bert", _dense(a)),
    "moondream1": lambda a: ("Phi", _dense(a)),
    "qwen3_vl": lambda a: ("Qwen3VL", _qwen3_vl(a)),
    "qwen3_vl_moe": lambda a: ("Qwen3VLMoe", _qwen3_vl(a)),
    "gemma3": lambda a: (
        "Gemma3",
        _with_vision("gemma3_text", _SIGLIP, mm_tokens_per_image=256)(a),
    ),
    "mistral3": lambda a: ("Mistral3", _with_vision("ministral3", _PIXTRAL)(a)),
    "idefics3": lambda a: ("Idefics3", _with_vision("llama", _BASE, scale_factor=4)(a)),
}
FAMILIES = tuple(_CONFIGS)
