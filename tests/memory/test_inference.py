"""Inference: activations against live tensors, totals against published measurements."""

import pytest
import torch
from live_bytes import LiveBytes, flash
from small_models import config, facts

from workbench.catalog import catalog
from workbench.memory import estimate
from workbench.memory.activations import prefill_part
from workbench.memory.overhead import block_bytes

GIB, MIB = 2**30, 2**20
EXACT = ("llama", "mistral", "qwen2", "qwen3", "granite", "gemma2", "phi3", "stablelm")
# torch.cuda.max_memory_allocated in GiB, batch 1, 2048 new tokens, FlashAttention 2, A100 80 GB
# (QwenLM/Qwen3, docs/source/benchmark/speed_benchmark.rst).
PROMPTS = (1, 6144, 14336, 30720)
PUBLISHED = {
    "none": (14.38, 15.38, 16.91, 19.97),
    "gptq-8": (8.42, 9.43, 10.96, 14.01),
    "awq": (5.39, 6.39, 7.92, 10.98),
}


def peak_of_prefill(family: str, tokens: int, *, attention: str) -> tuple[int, int]:
    """Return live bytes at the peak and at the end of reading a prompt, without weights."""
    from transformers import AutoModelForCausalLM, DynamicCache
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register("lean", flash)
    ALL_MASK_ATTENTION_FUNCTIONS.register("lean", lambda *_, **__: None)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(
            config(family), dtype=torch.bfloat16, attn_implementation=attention
        )
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    cache = DynamicCache(config=made.config)
    with torch.no_grad(), LiveBytes() as live:
        made.eval()(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return live.peak, live.now


@pytest.mark.parametrize("family", EXACT)
def test_activations_are_the_bytes_alive(family: str) -> None:
    peak, cache = peak_of_prefill(family, 512, attention="lean")
    rule = prefill_part(
        facts(family), tokens=512, sequences=1, dtype="bf16", attention="flash", place="device"
    )
    assert peak - cache == pytest.approx(rule.bytes, abs=4096)


@pytest.mark.parametrize(("family", "margin"), [("qwen3_moe", 0.03), ("gpt_oss", 0.06)])
def test_activations_of_experts_are_near(family: str, margin: float) -> None:
    peak, cache = peak_of_prefill(family, 512, attention="lean")
    rule = prefill_part(
        facts(family), tokens=512, sequences=1, dtype="bf16", attention="flash", place="device"
    )
    assert peak - cache == pytest.approx(rule.bytes, rel=margin)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_eager_attention_holds_every_score(family: str) -> None:
    peak, cache = peak_of_prefill(family, 512, attention="eager")
    rule = prefill_part(
        facts(family), tokens=512, sequences=1, dtype="bf16", attention="eager", place="device"
    )
    assert peak - cache == pytest.approx(rule.bytes, rel=0.02)


def test_published_measurements_are_met_within_three_per_cent() -> None:
    errors = []
    for form, row in PUBLISHED.items():
        for prompt, measured in zip(PROMPTS, row, strict=True):
            found = estimate(
                "qwen2.5-7b-instruct",
                engine="transformers",
                quantization=form,
                context=prompt + 2048,
                prompt=prompt,
                attention="flash",
            )
            errors.append(abs(found.total(what="allocated") / GIB / measured - 1))
    assert sum(errors) / len(errors) < 0.01
    assert max(errors) < 0.03


def test_the_32b_awq_row_is_met() -> None:
    """18.67 GiB at a prompt of one token and 2048 new ones, of the same table."""
    found = estimate(
        "qwen2.5-32b-instruct-awq", engine="transformers", context=2049, prompt=1, attention="flash"
    )
    assert found.total(what="allocated") / GIB == pytest.approx(18.67, rel=0.03)


def test_the_peak_moves_from_the_answer_to_the_prompt() -> None:
    short = estimate("qwen2.5-7b-instruct", context=2049, prompt=1)
    long = estimate("qwen2.5-7b-instruct", context=8192, prompt=6144)
    assert "end of the answer" in short.notes[-1]
    assert short.part("activations") is None
    assert "end of the prompt" in long.notes[-1]
    assert long.part("activations") is not None


def test_all_logits_cost_six_bytes_each() -> None:
    one = estimate("qwen2.5-7b-instruct", context=4096)
    every = estimate("qwen2.5-7b-instruct", context=4096, all_logits=True)
    grown = every.total(group="logits") - one.total(group="logits")
    assert grown == 4095 * 152064 * 6


def test_a_block_is_rounded_as_the_allocator_does() -> None:
    assert block_bytes(100) == 512
    assert block_bytes(9 * MIB + 1) == 9 * MIB + 512
    assert block_bytes(129 * MIB + MIB // 2) == 130 * MIB
    assert block_bytes(24 * MIB + MIB // 2) == 24 * MIB + MIB // 2


def test_on_a_cpu_all_is_in_ram_and_nothing_is_cudas() -> None:
    found = estimate("qwen3-0.6b", device="cpu", dtype="fp32", context=1024)
    assert found.total("device") == 0
    assert not any("CUDA" in part.name for part in found.parts)
    parameters = catalog()["qwen3-0.6b"].architecture.parameters
    assert found.weights == 4 * parameters  # type: ignore[operator]
    assert found.cache >= 28 * 1024 * 2 * 8 * 128 * 4


def test_vllm_fills_its_share_of_the_device() -> None:
    found = estimate("llama-3.1-8b-instruct", engine="vllm", context=8192, device_bytes=80 * GIB)
    assert found.total("device") == pytest.approx(0.92 * 80 * GIB, rel=0.001)
    cache = found.part("KV cache")
    assert cache is not None
    assert f"{int(cache.bytes / 131072) // 16 * 16:,} tokens" in cache.rule


def test_vllm_says_that_it_does_not_start() -> None:
    found = estimate("llama-3.3-70b-instruct", engine="vllm", context=8192, device_bytes=80 * GIB)
    assert any("does not start" in note for note in found.notes)
    shared = estimate(
        "llama-3.3-70b-instruct", engine="vllm", context=8192, device_bytes=80 * GIB,
        tensor_parallel=4,
    )  # fmt: skip
    assert not any("does not start" in note for note in shared.notes)
    assert shared.weights == pytest.approx(2 * 70.55e9 / 4, rel=0.01)


def test_a_fixed_cache_overrides_the_share() -> None:
    found = estimate(
        "llama-3.1-8b-instruct", engine="vllm", context=4096, device_bytes=80 * GIB,
        kv_cache_memory_bytes=2 * GIB,
    )  # fmt: skip
    assert found.cache == 2 * GIB
    assert "16,384 tokens" in str(found.part("KV cache").rule)  # type: ignore[union-attr]


def test_mlx_reads_prompts_in_steps() -> None:
    base = {"engine": "mlx", "quantization": "4bit", "device": "mps"}
    short = estimate("qwen3-8b", context=2048, **base)  # type: ignore[arg-type]
    long = estimate("qwen3-8b", context=32768, **base)  # type: ignore[arg-type]
    assert short.part("activations") == long.part("activations")
    assert long.cache == 36 * 32768 * 2 * 8 * 128 * 2
    assert estimate("qwen3-8b", context=300, **base).cache == 36 * 512 * 4096  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("card", "form", "measured"),
    [
        ("qwen3-4b", "none", 9.02),
        ("qwen3-4b", "8bit", 5.254),
        ("qwen3-4b", "6bit", 4.25),
        ("qwen3-4b", "5bit", 3.86),
        ("qwen3-4b", "4bit", 3.35),
        ("qwen3-30b-a3b", "8bit", 33.46),
    ],
)
def test_mlx_lms_published_peaks_are_met_within_five_per_cent(
    card: str, form: str, measured: float
) -> None:
    """GB at a prompt of 2048 and 128 new tokens (ml-explore/mlx-lm, BENCHMARKS.md), same shapes."""
    found = estimate(card, engine="mlx", quantization=form, device="mps", context=2176, prompt=2048)
    assert found.total("device") / 1e9 == pytest.approx(measured, rel=0.05)


def test_an_embedding_model_keeps_no_cache_in_transformers() -> None:
    assert estimate("qwen3-embedding-0.6b", engine="transformers", context=1024).cache == 0
    assert estimate("mxbai-embed-large-v1", engine="llama.cpp", context=512).cache == 0
    assert estimate("qwen3-embedding-0.6b", engine="llama.cpp", context=1024).cache > 0


def test_images_lengthen_the_prompt() -> None:
    plain = estimate("gemma-3-4b-it", context=4096, prompt=1000)
    seen = estimate("gemma-3-4b-it", context=4096, prompt=1000, images=2)
    assert seen.conditions["prompt"] == 1000 + 2 * 256
    assert seen.total() > plain.total()
