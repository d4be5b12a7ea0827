"""The KV rule for transformers equals the bytes that its own caches hold."""

from typing import Any

import pytest
import torch
from small_models import config, facts

from workbench.memory.cache import CacheUse, cache_parts

FAMILIES = (
    "llama", "qwen2", "qwen3", "granite", "gemma2", "gemma3_text", "phi3", "gpt_oss",
    "granitemoehybrid", "deepseek_v3",
)  # fmt: skip
PROMPT, ANSWER = 160, 3


def held(cache: Any) -> int:
    """Return the bytes of every storage that a cache keeps alive, views by what they show of."""
    found: dict[int, int] = {}
    for layer in cache.layers:
        tensors = [getattr(layer, "keys", None), getattr(layer, "values", None)]
        for name in ("conv_states", "recurrent_states"):
            states = getattr(layer, name, None) or []
            tensors += list(states.values()) if isinstance(states, dict) else list(states)
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                found[storage._cdata] = storage.nbytes()
    return sum(found.values())


@pytest.mark.parametrize(
    ("family", "sequences"), [*((family, 1) for family in FAMILIES), ("gemma2", 3), ("llama", 2)]
)
def test_cache_holds_what_the_rule_says(family: str, sequences: int) -> None:
    from transformers import AutoModelForCausalLM, DynamicCache

    layers = 6 if family == "gemma3_text" else 4
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(family, layers=layers), dtype=torch.bfloat16)
    model.eval()
    cache = DynamicCache(config=model.config)
    use = CacheUse(
        engine="transformers", tokens=PROMPT + ANSWER, prompt=PROMPT, sequences=sequences,
        cache_type="bf16", dtype="bf16",
    )  # fmt: skip
    ids = torch.randint(0, 400, (sequences, PROMPT))
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        prefill = CacheUse(**{**_values(use), "prefill": True})
        assert held(cache) == _bytes(family, layers, prefill)
        for _ in range(ANSWER):
            model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
    assert held(cache) == _bytes(family, layers, use)


def _values(use: CacheUse) -> dict[str, Any]:
    return {name: getattr(use, name) for name in CacheUse.__dataclass_fields__}


def _bytes(family: str, layers: int, use: CacheUse) -> int:
    return sum(part.bytes for part in cache_parts(facts(family, layers=layers), use))
