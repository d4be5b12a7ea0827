"""The rules for llama.cpp against what llama.cpp itself would allocate, without any weights."""

from pathlib import Path

import pytest
from empty_gguf import write_empty
from oracle_context import ask

from workbench.catalog import catalog
from workbench.memory import estimate
from workbench.memory.estimate import Estimate

MIB = 2**20
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q5_1": 7, "q8_0": 8, "bf16": 30}
COMPUTE = 0.05
"""Most that a compute buffer may be off; qwen3-vl alone is further off, and is not in here."""
CASES = [
    ("llama-3.1-8b-instruct", {"context": 32768}),
    ("qwen2.5-7b-instruct", {"context": 32768, "cache_type": "q8_0", "ubatch": 2048}),
    ("qwen3-8b", {"context": 8192, "flash_attention": False}),
    ("phi-3-mini-4k-instruct", {"context": 4096}),
    ("gemma-2-9b-it", {"context": 8192}),
    ("gemma-3-4b-it", {"context": 32768}),
    ("gemma-3-4b-it", {"context": 8192, "swa_full": True}),
    ("gemma-3n-e4b-it", {"context": 8192}),
    ("gpt-oss-20b", {"context": 4096, "batch": 4}),
    ("qwen3-30b-a3b", {"context": 8192, "cache_type": "q4_0"}),
    ("granite-4.0-h-tiny", {"context": 8192, "batch": 3}),
    ("granite-4.0-h-small", {"context": 1000}),
    ("kimi-k2-instruct", {"context": 4096}),
    ("phi-3.5-moe-instruct", {"context": 4096}),
    ("mistral-nemo-instruct-2407", {"context": 4096}),
    ("seed-oss-36b-instruct", {"context": 4096}),
    ("smollm2-135m-instruct", {"context": 1000, "ubatch": 256}),
    ("japanese-stablelm-3b-4e1t-instruct", {"context": 4096}),
    ("japanese-gpt2-small", {"context": 1024}),
]


def oracle(card: str, path: Path, options: dict[str, object]) -> dict[str, float]:
    """Return llama.cpp's own figures in MiB for the same question."""
    facts = catalog()[card].architecture
    sequences = int(options.get("batch", 1))  # type: ignore[call-overload]
    kind = TYPES[str(options.get("cache_type", "f16"))]
    found = ask(
        write_empty(path, facts, context=catalog()[card].context_length or 4096),
        n_ctx=int(options["context"]) * sequences,  # type: ignore[call-overload]
        n_seq_max=sequences,
        n_batch=2048,
        n_ubatch=options.get("ubatch", 512),
        swa_full=options.get("swa_full", False),
        flash_attn_type=1 if options.get("flash_attention", True) else 0,
        type_k=kind,
        type_v=kind,
    )
    return {name: float(value) for name, value in found.items()}


def of_group(found: Estimate, group: str, *names: str) -> float:
    parts = [part for part in found.parts if part.group == group]
    return sum(part.bytes for part in parts if not names or part.name in names) / MIB


@pytest.mark.parametrize(("card", "options"), CASES)
def test_cells_and_state_are_exact_and_compute_buffers_close(
    card: str, options: dict[str, object], tmp_path: Path
) -> None:
    said = oracle(card, tmp_path / "empty.gguf", options)
    found = estimate(card, engine="llama.cpp", quantization="F16", device="cpu", **options)  # type: ignore[arg-type]
    state = of_group(found, "cache", "recurrent state")
    assert of_group(found, "cache") - state == pytest.approx(said["kv"], abs=0.011)
    assert state == pytest.approx(said["state"], abs=0.006)
    assert of_group(found, "compute") == pytest.approx(said["compute"], rel=COMPUTE)
    assert of_group(found, "logits") == pytest.approx(said["output"], abs=0.006)


def test_a_window_saves_what_swa_full_takes() -> None:
    window = estimate("gemma-3-27b-it", engine="llama.cpp", context=32768)
    full = estimate("gemma-3-27b-it", engine="llama.cpp", context=32768, swa_full=True)
    assert window.cache == (2560 + 624) * MIB
    assert full.cache == 62 * 32768 * 2 * 16 * 128 * 2
    assert any("swa_full" in note for note in full.notes)


def test_layers_go_to_the_device_from_the_end_with_their_cache() -> None:
    card = "qwen2.5-7b-instruct"
    whole = estimate(card, engine="llama.cpp", quantization="Q4_K_M", context=4096)
    part = estimate(card, engine="llama.cpp", quantization="Q4_K_M", context=4096, gpu_layers=11)
    none = estimate(card, engine="llama.cpp", quantization="Q4_K_M", context=4096, gpu_layers=0)
    assert whole.total("device", group="cache") == 28 * 4096 * 2048
    assert part.total("device", group="cache") == 10 * 4096 * 2048  # the output counts as one
    assert part.total("host", group="cache") == 18 * 4096 * 2048
    assert none.total("device") == 0
    assert none.weights == part.weights == whole.weights


def test_experts_in_ram_leave_the_device() -> None:
    base = {"engine": "llama.cpp", "quantization": "Q4_K_M", "context": 4096}
    whole = estimate("qwen3-30b-a3b", **base)  # type: ignore[arg-type]
    some = estimate("qwen3-30b-a3b", **base, experts_on_cpu=10)  # type: ignore[arg-type]
    every = estimate("qwen3-30b-a3b", **base, experts_on_cpu=-1)  # type: ignore[arg-type]
    assert some.weights == every.weights == whole.weights
    assert every.total("device", group="weights") < some.total("device", group="weights")
    assert every.total("device", group="weights") < 0.1 * whole.weights


def test_the_embedding_is_on_the_host_once_more_where_it_is_tied() -> None:
    tied = estimate("llama-3.2-3b-instruct", engine="llama.cpp", quantization="Q8_0")
    matrix = 128256 * 3072 * 34 // 32
    assert tied.part("token embedding").bytes == matrix  # type: ignore[union-attr]
    assert tied.part("token embedding").place == "host"  # type: ignore[union-attr]
    assert tied.part("output matrix").place == "device"  # type: ignore[union-attr]
