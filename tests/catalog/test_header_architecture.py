"""Architecture facts come from the files: transformers' own models, and GGUF keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from header_files import save_gguf, save_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.catalog.architecture import Architecture
from workbench.catalog.header import read_header

BASE = {
    "vocab_size": 160, "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
HYBRID = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1}
MLA = {
    "kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
KINDS = ["mamba", "mamba", "attention", "mamba", "mamba", "attention"]
STATE = {"heads": 4, "head_dim": 32, "state_size": 16, "inner_size": 128, "conv_kernel": 4}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": ({}, {"head_dim": 16, "tied_embeddings": False, "output_parameters": 10_240,
                   "qkv_bias": False, "kv_cache_bytes_per_token_16bit": 768}),
    "qwen2": ({"tie_word_embeddings": True}, {"qkv_bias": True, "tied_embeddings": True,
                                              "output_parameters": 0, "sliding_window": None}),
    "qwen3": ({"head_dim": 32}, {"head_dim": 32, "qk_norm": True, "qkv_bias": False,
                                 "kv_cache_bytes_per_token_16bit": 1536}),
    "gemma2": ({"head_dim": 32, "sliding_window": 16},
               {"sliding_window.size": 16, "sliding_window.sliding_layers": 3,
                "sliding_window.full_layers": 3, "tied_embeddings": True}),
    "gemma3_text": ({"head_dim": 32, "sliding_window": 16},
                    {"sliding_window.sliding_layers": 5, "sliding_window.full_layers": 1,
                     "qk_norm": True}),
    "phi3": ({"sliding_window": 16}, {"sliding_window.sliding_layers": 6, "qkv_bias": False,
                                      "head_dim": 16, "kv_heads": 2}),
    "mistral": ({"sliding_window": None}, {"sliding_window": None, "attention_layers": None}),
    "mixtral": (EXPERTS, {"experts.experts": 4, "experts.experts_per_token": 2,
                          "experts.intermediate_size": 96,
                          "active_parameters": -2 * 6 * 3 * 64 * 96}),
    "qwen3_moe": ({"head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2,
                   "moe_intermediate_size": 32},
                  {"experts.intermediate_size": 32, "active_parameters": -2 * 6 * 3 * 64 * 32}),
    "gpt_oss": ({**EXPERTS, "head_dim": 32, "sliding_window": 16},
                {"sliding_window.sliding_layers": 3, "qkv_bias": True, "experts.experts": 4}),
    "granitemoehybrid": ({**EXPERTS, **HYBRID, "shared_intermediate_size": 48,
                          "layer_types": KINDS, "mamba_expand": 2},
                         {"attention_layers": (2, 5), "experts.shared_intermediate_size": 48,
                          "kv_cache_bytes_per_token_16bit": 256,
                          **{f"state_space.{name}": value for name, value in STATE.items()}}),
    "bamba": ({**HYBRID, "attn_layer_indices": [2, 5]},
              {"attention_layers": (2, 5), "state_space.state_size": 16, "experts": None}),
    "mamba2": ({"num_heads": 4, "head_dim": 32, "state_size": 16, "n_groups": 1, "expand": 2},
               {"attention_layers": (), "state_space.heads": 4,
                "kv_cache_bytes_per_token_16bit": 0}),
    "deepseek_v2": ({**MLA, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
                     "moe_intermediate_size": 32, "n_shared_experts": 1, "topk_group": 1,
                     "first_k_dense_replace": 1, "num_key_value_heads": 4},
                    {"experts.shared_experts": 1, "experts.dense_layers": 1, "head_dim": None,
                     "kv_cache_bytes_per_token_16bit": 2 * 6 * 20, "kv_heads": 4,
                     "active_parameters": -2 * 5 * 3 * 64 * 32,
                     **{f"latent_attention.{name}": value for name, value in MLA.items()}}),
    "gpt2": ({"n_embd": 64, "n_layer": 6, "n_head": 4},
             {"layers": 6, "hidden_size": 64, "attention_heads": 4, "kv_heads": 4,
              "qkv_bias": True, "head_dim": 16}),
}  # fmt: skip


def fact(architecture: Architecture, name: str) -> Any:
    value: Any = architecture
    for part in name.split("."):
        value = getattr(value, part)
    return value


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Save a model of a few parameters with transformers; return its folder and their number."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def save(family: str, values: dict[str, Any]) -> tuple[Path, int]:
        config = transformers.CONFIG_MAPPING[family](**values)
        kind = getattr(transformers, config.architectures[0]) if config.architectures else None
        maker = kind._from_config if kind else transformers.AutoModelForCausalLM.from_config
        model = maker(config, dtype=torch.bfloat16)
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        return folder, sum(parameter.numel() for parameter in model.parameters())

    return save


@pytest.mark.parametrize("family", FAMILIES)
def test_the_facts_of_a_family_as_transformers_saves_it(family: str, saved: Any) -> None:
    values, expected = FAMILIES[family]
    base = {"vocab_size": 160} if family == "gpt2" else BASE
    folder, parameters = saved(family, {**base, **values})
    header = read_header(folder)
    found = header.architecture()
    assert found.parameters == header.parameters == parameters
    assert found.model_type == family
    assert (found.layers, found.hidden_size, found.vocab_size) == (6, 64, 160)
    assert found.input_embedding_parameters == 160 * 64
    for name, value in expected.items():
        wanted = parameters + value if name == "active_parameters" else value
        assert fact(found, name) == wanted, name


def test_older_configurations_leave_the_pattern_to_the_architecture(saved: Any) -> None:
    """Files saved before ``layer_types`` existed; transformers' own rule is the reference."""
    for family, period in (("gemma2", None), ("gemma3_text", 6), ("cohere2", 4), ("gpt_oss", None)):
        folder, _ = saved(
            family, {**BASE, **FAMILIES.get(family, ({}, {}))[0], "sliding_window": 16}
        )
        now = read_header(folder).architecture().sliding_window
        path = folder / "config.json"
        config = json.loads(path.read_text())
        assert config.pop("layer_types")
        path.write_text(json.dumps(config | ({"sliding_window_pattern": period} if period else {})))
        before = read_header(folder).architecture().sliding_window
        assert now is not None
        assert before is not None
        assert (before.sliding_layers, before.full_layers) == (now.sliding_layers, now.full_layers)


def test_a_model_that_sees_has_two_parts(saved: Any) -> None:
    folder, parameters = saved(
        "gemma3",
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": {**BASE, "head_dim": 32, "sliding_window": 16},
            "vision_config": {
                "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                "num_attention_heads": 2, "patch_size": 8, "image_size": 32,
            },
            "mm_tokens_per_image": 4,
        },
    )  # fmt: skip
    header = read_header(folder)
    found = header.architecture()
    assert found.parameters == parameters
    assert found.vision is not None
    assert found.vision.parameters is not None
    assert found.vision.text_parameters is not None
    assert found.vision.parameters + found.vision.text_parameters == parameters
    assert (found.vision.depth, found.vision.hidden_size, found.vision.patch) == (2, 32, 8)
    assert found.vision.text_parameters > 160 * 64
    assert (found.layers, found.hidden_size, found.kv_heads, found.head_dim) == (6, 64, 2, 32)
    assert found.sliding_window is not None
    assert found.tied_embeddings is True
    assert found.attention_layers is None


def test_hybrid_layers_are_seen_in_the_tensors_where_the_configuration_is_silent(
    tmp_path: Path,
) -> None:
    tensors = {"model.embed_tokens.weight": ("F32", (4, 8))}
    for layer in range(4):
        attends = layer in (1, 3)
        name = "self_attn.q_proj" if attends else "mamba.in_proj"
        tensors[f"model.layers.{layer}.{name}.weight"] = ("F32", (8, 8))
        if attends:
            tensors[f"model.layers.{layer}.self_attn.k_proj.weight"] = ("F32", (4, 8))
    config = {"num_hidden_layers": 4, "hidden_size": 8, "num_attention_heads": 2}
    found = read_header(save_model(tmp_path, tensors, config)).architecture()
    assert found.attention_layers == (1, 3)
    assert (found.head_dim, found.kv_heads) == (4, 1)
    assert found.kv_cache_bytes_per_token_16bit == 2 * 2 * 4 * 2
    config["num_hidden_layers"] = 8  # half of the shards: nothing is said of the rest
    found = read_header(save_model(tmp_path, tensors, config)).architecture()
    assert found.attention_layers is None


def test_nothing_is_said_without_a_configuration(tmp_path: Path) -> None:
    found = read_header(save_model(tmp_path, {"w": ("F32", (4, 8))})).architecture()
    assert found == Architecture(parameters=32, active_parameters=32)


EMBEDDINGS = {"model.embed_tokens.weight": ("F32", (9, 4))}
OUTPUT = {"lm_head.weight": ("F32", (9, 4))}


def gguf_facts(tmp_path: Path, name: str, facts: dict[str, Any], tensors: Any = None) -> Any:
    tensors = tensors or {"token_embd.weight": np.zeros((12, 64), np.float32)}
    path = save_gguf(tmp_path / "m.gguf", tensors, facts, architecture=name)
    return read_header(path).architecture()


COMMON = {
    "block_count": 6, "embedding_length": 64, "feed_forward_length": 96, "context_length": 512,
    "attention.head_count": 4, "attention.head_count_kv": 2,
}  # fmt: skip


def test_a_plain_gguf(tmp_path: Path) -> None:
    found = gguf_facts(tmp_path, "llama", COMMON)
    assert (found.model_type, found.layers, found.hidden_size, found.kv_heads) == (
        "llama",
        6,
        64,
        2,
    )
    assert (found.head_dim, found.vocab_size, found.intermediate_size) == (16, 12, 96)
    assert found.tied_embeddings is True
    assert found.kv_cache_bytes_per_token_16bit == 2 * 6 * 2 * 16 * 2
    assert read_header(tmp_path / "m.gguf").context_length == 512


def test_gguf_experts_and_sliding_layers(tmp_path: Path) -> None:
    experts = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
    tensors = {
        "token_embd.weight": np.zeros((12, 64), np.float32),
        "output.weight": np.ones((12, 64), np.float32),
        "blk.0.attn_q.weight": np.zeros((128, 64), np.float32),
        "blk.0.attn_q.bias": np.zeros((128,), np.float32),
        "blk.0.ffn_up_exps.weight": ("MXFP4", (4, 32, 64)),
        "blk.0.ffn_up_shexp.weight": ("Q8_0", (32, 64)),
        "rope_freqs.weight": np.zeros((8,), np.float32),
    }
    found = gguf_facts(
        tmp_path, "gpt-oss",
        {**COMMON, **experts, "attention.key_length": 32, "attention.sliding_window": 16}, tensors,
    )  # fmt: skip
    assert found.experts.model_dump(exclude_none=True) == {
        "experts": 4, "experts_per_token": 2, "intermediate_size": 32,
    }  # fmt: skip
    assert (found.sliding_window.sliding_layers, found.sliding_window.full_layers) == (3, 3)
    total = 2 * 12 * 64 + 128 * 65 + 4 * 32 * 64 + 32 * 64
    assert (found.parameters, found.active_parameters) == (total, total - 2 * 32 * 64)
    assert (found.qkv_bias, found.tied_embeddings, found.output_parameters) == (True, False, 768)
    flags = [True, True, False, True, True, False]
    found = gguf_facts(
        tmp_path, "gemma3n",
        {**COMMON, "attention.sliding_window": 16, "attention.sliding_window_pattern": flags,
         "attention.shared_kv_layers": 2},
    )  # fmt: skip
    assert (found.sliding_window.sliding_layers, found.kv_layers) == (4, 4)
    assert found.kv_cache_bytes_per_token_16bit == 2 * 4 * 2 * 16 * 2


def test_gguf_latent_attention_by_both_kinds_of_keys(tmp_path: Path) -> None:
    latent = {"attention.kv_lora_rank": 16, "attention.q_lora_rank": 24, "rope.dimension_count": 4}
    absorbed = {
        "attention.key_length": 20, "attention.value_length": 16, "attention.head_count_kv": 1,
        "attention.key_length_mla": 12, "attention.value_length_mla": 8,
    }  # fmt: skip
    for widths in (absorbed, {"attention.key_length": 12, "attention.value_length": 8}):
        found = gguf_facts(tmp_path, "deepseek2", {**COMMON, **latent, **widths})
        assert found.latent_attention.model_dump() == {**MLA}
        assert found.kv_cache_bytes_per_token_16bit == 2 * 6 * 20


def test_a_gguf_hybrid_says_its_key_heads_for_each_layer(tmp_path: Path) -> None:
    state = {
        "ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 16,
        "ssm.time_step_rank": 4, "ssm.group_count": 1,
    }  # fmt: skip
    found = gguf_facts(
        tmp_path,
        "granitehybrid",
        {**COMMON, **state, "attention.head_count_kv": [0, 0, 2, 0, 0, 2]},
    )
    assert found.attention_layers == (2, 5)
    assert found.kv_heads == 2
    assert {name: getattr(found.state_space, name) for name in STATE} == STATE
    assert found.kv_cache_bytes_per_token_16bit == 2 * 2 * 2 * 16 * 2
    uneven = {
        **COMMON,
        "attention.head_count_kv": [4, 2, 2, 2, 0, 2],
        "feed_forward_length": [1, 2],
    }
    found = gguf_facts(tmp_path, "deci", uneven)
    assert found.kv_heads is None
    assert found.intermediate_size is None
    assert found.kv_cache_bytes_per_token_16bit == 2 * 12 * 16 * 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = [
    *BASE, *HYBRID, *MLA, *EXPERTS, "layer_types", "sliding_window", "sliding_window_pattern",
    "text_config", "vision_config", "quantization_config", "architectures", "model_type",
    "hybrid_override_pattern", "attn_layer_indices", "num_kv_shared_layers", "max_window_layers",
    "use_sliding_window", "mlp_only_layers", "tie_word_embeddings", "head_dim",
]  # fmt: skip


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(st.sampled_from(KEYS), JSON | st.integers(-2, 2**70), max_size=12))
def test_no_configuration_breaks_it(tmp_path: Path, config: dict[str, Any]) -> None:
    header = read_header(save_model(tmp_path, EMBEDDINGS | OUTPUT, config))
    assert isinstance(header.architecture(), Architecture)
    assert header.parameters in (36, 72)
    str(header)
    assert header.stored is None or config["quantization_config"]


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(st.sampled_from(sorted(COMMON)), st.integers(0, 2**32 - 1)
                       | st.lists(st.integers(0, 9), min_size=1, max_size=9) | st.text(max_size=3)
                       | st.booleans(), max_size=6))  # fmt: skip
def test_no_metadata_breaks_it(tmp_path: Path, facts: dict[str, Any]) -> None:
    assert isinstance(gguf_facts(tmp_path, "llama", facts), Architecture)
