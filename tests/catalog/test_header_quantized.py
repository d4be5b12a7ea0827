"""Weights that came quantized: their parameters unpacked, and the method found by content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from header_files import save_model

from workbench.catalog.header import Header, read_header
from workbench.paths import shipped

IN, OUT, GROUP = 256, 128, 64
M = "model.layers.0.self_attn.q_proj"
REST = {
    "model.embed_tokens.weight": ("BF16", (10, IN)),
    "model.norm.weight": ("BF16", (IN,)),
    "lm_head.weight": ("BF16", (10, IN)),
}
REST_WEIGHTS = 2 * 10 * IN + IN


def gptq(bits: int) -> dict[str, Any]:
    """AutoGPTQ: rows of the input are packed."""
    return {
        f"{M}.qweight": ("I32", (IN * bits // 32, OUT)),
        f"{M}.qzeros": ("I32", (IN // GROUP, OUT * bits // 32)),
        f"{M}.scales": ("F16", (IN // GROUP, OUT)),
        f"{M}.g_idx": ("I32", (IN,)),
    }


AWQ = {  # AutoAWQ "gemm": columns of the output are packed
    f"{M}.qweight": ("I32", (IN, OUT // 8)),
    f"{M}.qzeros": ("I32", (IN // GROUP, OUT // 8)),
    f"{M}.scales": ("F16", (IN // GROUP, OUT)),
}
PACKED = {
    f"{M}.weight_packed": ("I32", (OUT, IN // 8)),
    f"{M}.weight_scale": ("BF16", (OUT, IN // GROUP)),
    f"{M}.weight_shape": ("I64", (2,)),
}
FP8 = {
    f"{M}.weight": ("F8_E4M3", (OUT, IN)),
    f"{M}.weight_scale_inv": ("F32", (1, 2)),
}
NVFP4 = {
    f"{M}.weight": ("U8", (OUT, IN // 2)),
    f"{M}.weight_scale": ("F8_E4M3", (OUT, IN // 16)),
    f"{M}.weight_scale_2": ("F32", ()),
    f"{M}.input_scale": ("F32", ()),
    f"{M}.k_scale": ("F32", ()),
}
NF4 = {
    f"{M}.weight": ("U8", (OUT * IN // 2, 1)),
    f"{M}.weight.absmax": ("U8", (OUT * IN // 64,)),
    f"{M}.weight.nested_absmax": ("F32", (2,)),
    f"{M}.weight.nested_quant_map": ("F32", (256,)),
    f"{M}.weight.quant_map": ("F32", (16,)),
    f"{M}.weight.quant_state.bitsandbytes__nf4": ("U8", (90,)),
}
INT8 = {
    f"{M}.weight": ("I8", (OUT, IN)),
    f"{M}.SCB": ("F32", (OUT,)),
    f"{M}.weight_format": ("U8", ()),
}
MLX = {
    f"{M}.weight": ("U32", (OUT, IN * 4 // 32)),
    f"{M}.scales": ("BF16", (OUT, IN // GROUP)),
    f"{M}.biases": ("BF16", (OUT, IN // GROUP)),
}
WEIGHTS = {"num_bits": 4, "type": "int", "group_size": 64, "symmetric": True, "strategy": "group"}
FLOATS = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}


def compressed(weights: dict[str, Any], form: str) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": groups,
        "ignore": ["lm_head"],
    }


# case: tensors, quantization_config, facts of the stored form, bytes of all of the module's tensors
CASES: dict[str, tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any], int]] = {
    **{
        f"gptq {bits}": (
            gptq(bits),
            {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "sym": True},
            {"method": "gptq", "bits": bits, "group_size": GROUP, "zero_point": False},
            IN * OUT * bits // 8 + 4 * OUT * bits // 8 + 4 * OUT * 2 + 4 * IN,
        )
        for bits in (2, 3, 4, 8)
    },
    "gptq unsaid": (gptq(3), None, {"method": "gptq", "bits": 3}, 0),
    "awq": (
        AWQ,
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True,
         "modules_to_not_convert": ["visual"]},
        {"method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True,
         "not_quantized": ("visual",)},
        IN * OUT // 2 + 4 * OUT // 2 + 4 * OUT * 2,
    ),
    "awq unsaid": (AWQ, None, {"method": "awq", "bits": 4}, 0),
    "auto-round": (
        AWQ,
        {"quant_method": "auto-round", "bits": 4, "group_size": GROUP, "sym": False},
        {"method": "awq", "bits": 4, "zero_point": True, "detail": "auto-round"}, 0,
    ),
    "pack-quantized": (
        PACKED,
        compressed(WEIGHTS, "pack-quantized"),
        {"method": "compressed-tensors", "bits": 4, "group_size": GROUP, "zero_point": False,
         "detail": "pack-quantized", "not_quantized": ("lm_head",)},
        IN * OUT // 2 + OUT * 4 * 2 + 16,
    ),
    "packed with zero points, unsaid": (
        {**PACKED, f"{M}.weight_zero_point": ("I32", (OUT // 8, IN // GROUP))}, None,
        {"method": "compressed-tensors", "bits": 4}, 0,
    ),
    "fp8": (
        FP8,
        {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
        {"method": "fp8", "bits": 8, "block": (128, 128)}, IN * OUT + 8,
    ),
    "fp8 unsaid": (FP8, None, {"method": "fp8", "bits": 8}, 0),
    "fp8 by compressed-tensors": (
        {f"{M}.weight": ("F8_E4M3", (OUT, IN)), f"{M}.weight_scale": ("BF16", (1, 2)),
         f"{M}.input_scale": ("BF16", ())},
        compressed(FLOATS, "float-quantized"),
        {"method": "compressed-tensors", "bits": 8, "block": (128, 128),
         "detail": "float-quantized"}, IN * OUT + 4 + 2,
    ),
    "nvfp4": (NVFP4, {"quant_method": "modelopt", "quant_algo": "NVFP4"},
              {"method": "other", "bits": 4, "detail": "modelopt"}, 0),
    "nf4": (
        NF4,
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
         "bnb_4bit_use_double_quant": True, "llm_int8_skip_modules": None},
        {"method": "bnb", "bits": 4, "detail": "nf4, double"},
        IN * OUT // 2 + IN * OUT // 64 + 8 + 1024 + 64 + 90,
    ),
    "nf4 unsaid": (NF4, None, {"method": "bnb", "bits": 4, "detail": "nf4, double"}, 0),
    "int8": (INT8, {"load_in_8bit": True}, {"method": "bnb", "bits": 8, "detail": "int8"},
             IN * OUT + 4 * OUT + 1),
    "int8 unsaid": (INT8, None, {"method": "bnb", "bits": 8, "detail": "int8"}, 0),
    "mlx": (MLX, {"group_size": 64, "bits": 4}, {"method": "mlx", "bits": 4, "group_size": 64},
            IN * OUT // 2 + 2 * OUT * 4 * 2),
    "mlx, module by module": (
        MLX, {"group_size": 64, "bits": 8, M: {"group_size": 64, "bits": 4}}, {"method": "mlx"}, 0,
    ),
}  # fmt: skip


def model(folder: Path, tensors: dict[str, Any], said: dict[str, Any] | None) -> Header:
    config = {"model_type": "llama", "tie_word_embeddings": False} | (
        {"quantization_config": said} if said else {}
    )
    return read_header(save_model(folder, {**REST, **tensors}, config))


@pytest.mark.parametrize("case", CASES)
def test_packed_weights_are_counted_and_the_method_found(case: str, tmp_path: Path) -> None:
    tensors, said, facts, size = CASES[case]
    header = model(tmp_path, tensors, said)
    assert header.parameters == IN * OUT + REST_WEIGHTS
    assert header.stored is not None
    found = header.stored.model_dump()
    assert {name: found[name] for name in facts} == facts
    if size:
        assert header.stored.bytes_per_parameter == size / (IN * OUT)


def test_experts_of_gpt_oss_are_unpacked(tmp_path: Path) -> None:
    experts, hidden, width = 4, 64, 96
    at = "model.layers.0.mlp.experts"
    tensors = {
        f"{at}.gate_up_proj_blocks": ("U8", (experts, 2 * width, hidden // 32, 16)),
        f"{at}.gate_up_proj_scales": ("U8", (experts, 2 * width, hidden // 32)),
        f"{at}.gate_up_proj_bias": ("BF16", (experts, 2 * width)),
        f"{at}.down_proj_blocks": ("U8", (experts, hidden, width // 32, 16)),
        f"{at}.down_proj_scales": ("U8", (experts, hidden, width // 32)),
        "model.layers.0.mlp.router.weight": ("BF16", (experts, hidden)),
    }
    weights = experts * 3 * width * hidden
    others = experts * 2 * width + experts * hidden + REST_WEIGHTS
    for said in ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, None):
        header = model(tmp_path, tensors, said)
        assert header.parameters == weights + others
        assert header.stored is not None
        assert (header.stored.method, header.stored.bits) == ("mxfp4", 4)
        assert header.stored.bytes_per_parameter == 17 / 32
    header = read_header(
        save_model(tmp_path, {**REST, **tensors}, {
            "model_type": "gpt_oss", "tie_word_embeddings": False,
            "num_local_experts": experts, "num_experts_per_tok": 1,
            "intermediate_size": width,
        })
    )  # fmt: skip
    routed = weights + experts * 2 * width
    assert header.architecture().active_parameters == weights + others - routed + routed // experts


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (PACKED, None),
        (MLX, None),
        ({f"{M}.W_q": ("U8", (OUT, IN // 2))}, {"quant_method": "hqq"}),
        ({f"{M}.weight": ("U8", (OUT, IN // 2))}, {"quant_method": "torchao"}),
    ],
)
def test_a_packing_that_nobody_tells_is_not_guessed(
    tensors: dict[str, Any], said: dict[str, Any] | None, tmp_path: Path
) -> None:
    header = model(tmp_path, tensors, said)
    assert header.parameters is None
    assert header.architecture().parameters is None
    assert header.stored is not None
    if said:
        assert (header.stored.method, header.stored.detail) == ("other", said["quant_method"])


def test_plain_weights_are_no_quantization(tmp_path: Path) -> None:
    plain = {f"{M}.weight": ("BF16", (OUT, IN)), f"{M}.bias": ("BF16", (OUT,))}
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (32,)),
        "h.0.attn.bias": ("BOOL", (1, 1, 64, 64)),
        "embeddings.position_ids": ("I64", (1, 512)),
        "model.layer_scale": ("F32", (7,)),
    }
    header = model(tmp_path, {**plain, **buffers}, None)
    assert header.stored is None
    assert header.parameters == IN * OUT + OUT + 7 + REST_WEIGHTS


@pytest.mark.parametrize(
    "said",
    [
        {"quant_method": 7},
        {"quant_method": "awq", "bits": 10**9, "group_size": "x"},
        {"quant_method": "gptq", "bits": [4], "sym": {}},
        {"config_groups": {"a": 1, "b": {"weights": []}}},
        {"config_groups": {"a": {"weights": {"num_bits": "many", "group_size": -7}}}},
        {"bits": 0, "group_size": None},
    ],
)
def test_an_odd_configuration_breaks_nothing(said: dict[str, Any], tmp_path: Path) -> None:
    header = model(tmp_path, AWQ, said)
    assert header.stored is not None
    assert header.parameters == IN * OUT + REST_WEIGHTS


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_what_transformers_saves_of_the_embedded_model(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes")
    settings = (
        {"load_in_8bit": True}
        if kind == "int8"
        else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    )
    transformers.AutoModelForCausalLM.from_pretrained(
        shipped("data", "tiny-chat"),
        quantization_config=transformers.BitsAndBytesConfig(**settings),
        device_map="cpu",
    ).save_pretrained(tmp_path)
    plain, header = read_header(shipped("data", "tiny-chat")), read_header(tmp_path)
    assert header.parameters == plain.parameters
    assert header.stored is not None
    assert (header.stored.method, header.stored.detail) == ("bnb", kind)
    assert header.weight_bytes < plain.weight_bytes
    ours, theirs = header.architecture(), plain.architecture()
    assert ours.changed(model_type="llama") == theirs
