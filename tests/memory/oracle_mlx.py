"""Ask mlx-lm how many bytes it would hold; MLX is lazy, so nothing is computed or allocated."""

from typing import Any

from oracle_transformers import config_of

from workbench.catalog.architecture import Architecture

# What mlx-lm wants and transformers does not write, or writes in other words.
_ALWAYS = {
    "rope_theta": 10000.0,
    "rope_local_base_freq": 10000.0,
    "n_ctx": 1024,
    "norm_topk_prob": True,
}


def quantized_bytes(facts: Architecture, *, bits: int, group: int, mode: str = "affine") -> int:
    """Return the bytes of a model that mlx-lm quantized, all it does not quantize in bf16."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes, quantize_model

    config = _config(facts)
    model_class, arguments = _get_classes(config)
    model = model_class(arguments.from_dict(config))
    if facts.model_type in ("gemma3", "gemma3_text"):
        inner = getattr(model, "language_model", model)
        inner.sanitize({})  # a checkpoint without an output matrix ties it
    model.set_dtype(mx.bfloat16)
    model, _ = quantize_model(model, config, group, bits, mode=mode)
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def _config(facts: Architecture) -> dict[str, Any]:
    config = {**config_of(facts), **_ALWAYS}
    if facts.experts:
        config["num_experts"] = facts.experts.experts
    if facts.model_type == "granitemoehybrid":
        attends = facts.attention_layers or range(facts.layers or 0)
        kinds = ["attention" if i in attends else "mamba" for i in range(facts.layers or 0)]
        config |= {"layer_types": kinds}
    if facts.model_type == "gemma3n":
        config = {"model_type": "gemma3n", "text_config": {**config, "intermediate_size": 16384}}
    if "text_config" in config:
        config["text_config"] |= _ALWAYS
        if facts.experts:
            config["text_config"]["num_experts"] = facts.experts.experts
    return config
