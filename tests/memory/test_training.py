"""Training: what autograd keeps, counted over the real model code, and the shares of devices."""

from typing import Any

import pytest
import torch
from live_bytes import LiveBytes, flash
from small_models import config, facts

from workbench.finetune.recipe import Recipe
from workbench.memory import estimate_training
from workbench.memory.saved import Adapted, saved_bytes

TOKENS, RANK = 512, 8
LLAMA = ("llama", "mistral", "qwen2", "qwen3", "granite", "gemma2", "gemma3_text", "phi3")
SIZES = {
    "attn_q": (512, 256),
    "attn_k": (128, 256),
    "attn_v": (128, 256),
    "attn_output": (256, 512),
    "ffn_gate": (768, 256),
    "ffn_up": (768, 256),
    "ffn_down": (256, 768),
}


def built(family: str, *, layers: int, targets: Any, dtype: torch.dtype, checkpoint: bool) -> Any:
    """Return the model on the meta device, with LoRA unless ``targets`` is None."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register("lean", flash)
    ALL_MASK_ATTENTION_FUNCTIONS.register("lean", lambda *_, **__: None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config(family, layers=layers), dtype=torch.bfloat16, attn_implementation="lean"
        )
    if targets is not None:
        lora = LoraConfig(r=RANK, target_modules=targets, task_type="CAUSAL_LM")
        model = get_peft_model(model, lora, autocast_adapter_dtype=False, low_cpu_mem_usage=True)
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data = torch.empty(weight.shape, dtype=dtype, device="meta")
    model.train()
    if checkpoint:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if targets is not None:
            model.enable_input_require_grads()
    return model


def passed(model: Any) -> tuple[int, int]:
    """Return live bytes after the forward pass, and at the peak of both passes."""
    ids = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    with LiveBytes() as live:
        out = inner.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        loss = out.last_hidden_state.sum()
        del out
        kept = live.now
        loss.backward()
    return kept, live.peak


def kept_per_layer(family: str, *, targets: Any, dtype: torch.dtype, checkpoint: bool) -> float:
    """Return bytes of one token in one layer: the difference of two depths."""
    layers = (2, 4)
    least, most = (
        passed(built(family, layers=n, targets=targets, dtype=dtype, checkpoint=checkpoint))[0]
        for n in layers
    )
    return (most - least) / TOKENS / 2


def roles(family: str, names: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    if family == "phi3":
        fused = {"attn_qkv": (384, 256), "attn_output": (256, 256), "ffn_up": (1536, 256)}
        return {**fused, "ffn_down": (256, 768)}
    sizes = dict(SIZES)
    if family in ("qwen2", "granite"):
        sizes |= {"attn_q": (256, 256), "attn_k": (64, 256), "attn_output": (256, 256)}
    return {name: sizes[name] for name in names}


@pytest.mark.parametrize("family", LLAMA)
def test_a_full_training_keeps_what_the_rule_says(family: str) -> None:
    counted = kept_per_layer(family, targets=None, dtype=torch.bfloat16, checkpoint=False)
    rule = saved_bytes(facts(family), width=2, adapted=None)
    assert rule.certain
    assert counted == pytest.approx(rule.kept, rel=0.005)


@pytest.mark.parametrize("family", LLAMA)
@pytest.mark.parametrize("cast", ["same", "fp32"])
def test_lora_on_all_layers_keeps_what_the_rule_says(family: str, cast: Any) -> None:
    dtype = torch.float32 if cast == "fp32" else torch.bfloat16
    counted = kept_per_layer(family, targets="all-linear", dtype=dtype, checkpoint=False)
    adapted = Adapted(roles=roles(family, tuple(SIZES)), rank=RANK, cast=cast)
    rule = saved_bytes(facts(family), width=2, adapted=adapted)
    assert counted == pytest.approx(rule.kept, rel=0.005)


def test_llamas_bytes_are_exact() -> None:
    """The formulas of the docs: h = 256, A = 512, K = 128, f = 768, 8 heads, rank 8."""
    h, a, k, f, heads, r = 256, 512, 128, 768, 8, RANK
    full = 16 * h + 4 * a + 4 * k + 8 * f + 4 * heads + 8
    pair = 16 * h + 4 * a + 4 * k + 6 * f + 8 * r + 4 * heads + 8
    every = 28 * h + 8 * a + 4 * k + 10 * f + 28 * r + 4 * heads + 8
    two = Adapted(roles=roles("llama", ("attn_q", "attn_v")), rank=r, cast="fp32")
    all_of = Adapted(roles=roles("llama", tuple(SIZES)), rank=r, cast="fp32")
    for expected, adapted, targets in (
        (full, None, None),
        (pair, two, ["q_proj", "v_proj"]),
        (every, all_of, "all-linear"),
    ):
        dtype = torch.float32
        assert saved_bytes(facts("llama"), width=2, adapted=adapted).kept == expected
        counted = kept_per_layer("llama", targets=targets, dtype=dtype, checkpoint=False)
        assert counted == expected


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("cast", ["same", "fp32"])
def test_the_peak_with_checkpointing_is_near(family: str, cast: Any) -> None:
    dtype = torch.float32 if cast == "fp32" else torch.bfloat16
    model = built(family, layers=4, targets="all-linear", dtype=dtype, checkpoint=True)
    counted = passed(model)[1]
    adapted = Adapted(roles=roles(family, tuple(SIZES)), rank=RANK, cast=cast)
    rule = saved_bytes(facts(family), width=2, adapted=adapted)
    layer = adapted.parameters * (4 if cast == "fp32" else 2)
    expected = TOKENS * (4 * 2 * 256 + 4 * 256 + rule.kept + rule.moment) + layer
    assert counted == pytest.approx(expected, rel=0.06)


def test_checkpointing_keeps_the_input_of_each_layer() -> None:
    counted = kept_per_layer("llama", targets="all-linear", dtype=torch.float32, checkpoint=True)
    assert counted == 2 * 256


def test_autocast_keeps_16_bit_copies_of_the_inputs() -> None:
    """On the CPU, because the meta device has no autocast; real arithmetic, tiny model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register("lean", flash)
    kept, casts = [], []
    for layers in (1, 2):
        base = AutoModelForCausalLM.from_config(
            config("llama", layers=layers), dtype=torch.bfloat16, attn_implementation="lean"
        )
        lora = LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base, lora).train()
        model.enable_input_require_grads()
        ids = torch.zeros(1, 128, dtype=torch.long)
        with LiveBytes() as live, torch.autocast("cpu", dtype=torch.bfloat16):
            inner = model.get_base_model().model
            out = inner(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            loss = out.last_hidden_state.sum()
            del out
            kept.append(live.now)
        casts.append(2 * sum(p.numel() for p in model.parameters() if p.requires_grad))
        del loss
    counted = (kept[1] - kept[0] - (casts[1] - casts[0])) / 128
    adapted = Adapted(roles=roles("llama", tuple(SIZES)), rank=RANK, cast="autocast")
    assert counted == saved_bytes(facts("llama"), width=2, adapted=adapted).kept


def test_plain_cross_entropy_takes_twelve_bytes_for_each_logit() -> None:
    plain = estimate_training("llama-3.1-8b-instruct", loss="plain", gradient_checkpointing=True)
    fused = estimate_training("llama-3.1-8b-instruct", gradient_checkpointing=True)
    assert plain.part("loss").bytes == 4096 * 128256 * 12  # type: ignore[union-attr]
    assert "at the loss" in plain.notes[0]
    assert fused.total() < plain.total()


def test_the_defaults_are_the_recipes() -> None:
    recipe, found = Recipe(), estimate_training("llama-3.1-8b-instruct")
    assert found.conditions["method"] == recipe.method
    assert found.conditions["rank"] == recipe.rank
    assert found.conditions["dropout"] == recipe.dropout
    assert found.conditions["targets"] == recipe.target_modules
    assert found.conditions["batch"] == recipe.batch_size
    assert found.conditions["sequence"] == recipe.max_length
    assert found.conditions["checkpointing"] == recipe.gradient_checkpointing
    assert found.conditions["accumulation"] == recipe.gradient_accumulation


def test_states_of_lora_and_of_a_full_training() -> None:
    lora = estimate_training("llama-3.1-8b-instruct")
    trained = lora.conditions["trained_parameters"]
    assert trained == 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    assert lora.part("optimizer states").bytes == 8 * trained  # type: ignore[union-attr]
    full = estimate_training("llama-3.2-3b-instruct", method="full", gradient_checkpointing=True)
    count = 3212749824
    assert full.conditions["trained_parameters"] == count
    assert full.part("optimizer states").bytes == 4 * count  # type: ignore[union-attr]
    assert full.part("gradients").bytes == 2 * count  # type: ignore[union-attr]
    eight = estimate_training("llama-3.2-3b-instruct", method="full", optimizer="adamw-8bit")
    assert eight.part("optimizer states").bytes == 2 * count  # type: ignore[union-attr]
    master = estimate_training("llama-3.2-3b-instruct", method="full", master_weights=True)
    assert master.part("optimizer states").bytes == 8 * count  # type: ignore[union-attr]
    assert master.part("fp32 master weights").bytes == 4 * count  # type: ignore[union-attr]


def test_qlora_quantizes_the_base_and_unpacks_one_matrix() -> None:
    found = estimate_training("llama-3.1-8b-instruct", method="qlora", quantization="nf4")
    linear = 6979321856
    base = found.weights - found.part("LoRA weights").bytes  # type: ignore[union-attr]
    assert base == pytest.approx(0.5625 * linear + 2 * (8030261248 - linear), rel=0.001)
    assert found.part("unpacked matrix").bytes == 2 * 4096 * 14336  # type: ignore[union-attr]
    ready = estimate_training(
        "llama-3.1-8b-instruct", method="qlora", quantization="nf4", prepare_for_kbit=True
    )
    cast = ready.part("fp32 cast").bytes  # type: ignore[union-attr]
    assert cast == 2 * (8030261248 - linear)
    assert ready.total() > found.total() + cast


def test_devices_share_what_their_method_shares() -> None:
    card = "llama-3.1-8b-instruct"
    base = {"method": "full", "gradient_checkpointing": True}
    alone = estimate_training(card, **base)  # type: ignore[arg-type]

    def shared(name: str) -> Any:
        return estimate_training(card, **base, devices=4, sharding=name)  # type: ignore[arg-type]

    def size(found: Any, name: str) -> int:
        part = found.part(name)
        return 0 if part is None else int(part.bytes)

    states = size(alone, "optimizer states")
    assert size(shared("ddp"), "optimizer states") == states
    assert size(shared("ddp"), "DDP buckets") == 2 * 8030261248
    assert size(shared("zero1"), "optimizer states") == states // 4
    assert shared("zero1").weights == alone.weights
    zero3 = shared("zero3")
    assert zero3.weights - size(zero3, "gathered layers") == pytest.approx(alone.weights / 4)
    assert zero3.total() < shared("zero2").total() < shared("zero1").total()


def test_offload_moves_states_to_ram() -> None:
    base = {"method": "full", "gradient_checkpointing": True}
    here = estimate_training("llama-3.1-8b-instruct", **base)  # type: ignore[arg-type]
    away = estimate_training("llama-3.1-8b-instruct", **base, offload=["optimizer"])  # type: ignore[arg-type]
    states = here.part("optimizer states").bytes  # type: ignore[union-attr]
    assert away.total("host") - here.total("host") == states
    assert away.total() < here.total()


def test_a_family_that_was_not_counted_is_said_to_be_uncertain() -> None:
    assert estimate_training("llama-3.1-8b-instruct").uncertain is None
    assert "gpt_oss" in str(estimate_training("gpt-oss-20b").uncertain)
