"""vLLM on the CPU as a supervised server: its adapters, its heads, and how it ends.

What it answers is held against the other engines by the conformance suite.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from vllm_environment import need_vllm

import workbench as wb
from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.errors import ChildDiedError, EngineError, InputError
from workbench.paths import shipped

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


def test_an_adapter_is_switched_on_and_off(
    vllm: Model, tmp_path: Path, shows: Callable[..., None]
) -> None:
    base = vllm.ask("Tell me a story.", max_tokens=12)
    vllm.use_adapter(adapter(tmp_path / "adapter"))
    adapted = vllm.ask("Tell me a story.", max_tokens=12)
    vllm.use_adapter(None)
    assert adapted.token_ids != base.token_ids
    assert vllm.ask("Tell me a story.", max_tokens=12).token_ids == base.token_ids
    with pytest.raises(InputError, match="not a LoRA adapter"):
        vllm.use_adapter(tmp_path)
    shows(vllm, Power.ADAPTERS)
    assert Power.SLEEP not in vllm.powers, "a CPU has no memory to give back for a while"


def adapter(folder: Path) -> Path:
    """Write a LoRA adapter of random weights that changes what the model says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(shipped("data", "tiny-chat"), dtype="float32")
    settings = LoraConfig(r=8, lora_alpha=64, target_modules=["q_proj", "v_proj"], bias="none")
    changed = get_peft_model(model, settings)
    with torch.no_grad():
        for name, weight in changed.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    changed.save_pretrained(folder)
    return folder


def test_closing_ends_every_process(vllm: Model) -> None:
    session = vllm._session
    processes = session.server.processes()
    assert len(processes) >= 4, "launcher, server, engine and worker"
    vllm.close()
    assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    freed = session.freed
    assert freed.before.rss_bytes > 1e9
    assert freed.after.processes == 0
    assert not freed.forced


def test_heads_that_vllm_cannot_do_are_named(tmp_path: Path) -> None:
    need_vllm()
    folder = model_with_heads_of(24, tmp_path / "heads-of-24")
    with wb.load(folder, engine="vllm", dtype="fp32", context=128, threads=1) as model:
        processes = model._session.server.processes()
        with pytest.raises(ChildDiedError, match="no attention for heads of 24 values"):
            model.ask("Hello", max_tokens=4)
        with pytest.raises(EngineError, match="heads of 24"):
            model.ask("Again", max_tokens=4)
    assert model.unloaded is not None
    assert model.unloaded.freed, "a server that died holds nothing"
    assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def model_with_heads_of(size: int, folder: Path) -> Path:
    """Write a Llama of random weights with the embedded model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=2816,
        hidden_size=2 * size,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=size,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    for path in shipped("data", "tiny-chat").iterdir():
        if path.name.startswith(("token", "special", "chat_template")):
            shutil.copy(path, folder / path.name)
    return folder
