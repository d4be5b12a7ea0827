"""Merging: the same probabilities as the adapter, the base's own files, or one clear error."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from workbench.errors import (
    DiskSpaceError,
    FormatError,
    InputError,
    NotFoundError,
    ParityError,
    UnsupportedError,
)
from workbench.export.limits import Limit
from workbench.receipts import receipts


def log_probabilities(folder: Path, adapter: Path | None = None) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    ids = torch.arange(3, 203)[None]
    with torch.inference_mode():
        return torch.log_softmax(model(input_ids=ids).logits[0].double(), -1)


def mean_kl(expected: Any, found: Any) -> float:
    return float((expected.exp() * (expected - found)).sum(-1).mean())


def test_the_merged_model_is_the_adapter_on_its_base(
    adapter: Path, base: Path, tmp_path: Path
) -> None:
    out = wb.merge(adapter, tmp_path / "merged")
    expected, found = log_probabilities(base, adapter), log_probabilities(out)
    assert mean_kl(expected, found) < 1e-5  # rounded to float16 once
    assert mean_kl(expected, log_probabilities(base)) > 1e-2  # the adapter changes something
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    assert (out / "generation_config.json").read_bytes() == (
        base / "generation_config.json"
    ).read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert (config["dtype"], config["tie_word_embeddings"]) == ("float16", True)
    assert (out / "model.safetensors").stat().st_mode & 0o777 == (
        (out / "config.json").stat().st_mode & 0o777
    )
    assert json.loads((out / "merge.json").read_text()) == {
        "adapter": "random-lora",
        "base": "tiny-chat",
        "dtype": "fp16",
    }
    receipt = receipts(what="merge", where="here")[0]
    assert receipt.result["mean_kl"] < 1e-5
    assert list(tmp_path.glob(".partial-*")) == []


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge here, where the libraries are imported already: these tests are about what is merged.

    That a child merges, and that its errors arrive, the other tests show.
    """
    import torch

    def run(module: str, arguments: Sequence[str], **_: Any) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []

        def emit(event: str, **values: Any) -> None:
            if event == "result":
                results.append(values["values"])

        merger = importlib.import_module(module)
        monkeypatch.setattr(merger, "emit", emit)
        with torch.enable_grad():  # the merger turns it off for its process
            merger.main(arguments)
        return results

    monkeypatch.setattr(sys.modules["workbench.export.merge"], "run_child", run)


@pytest.mark.usefixtures("in_this_process")
def test_tied_embeddings_part_when_the_adapter_changes_one(
    make_adapter: Callable[..., Path], base: Path, tmp_path: Path
) -> None:
    """Merged into the shared tensor, a LoRA on the output would change the input as well."""
    adapter = make_adapter(tmp_path / "head", target_modules=["q_proj", "lm_head"], use_rslora=True)
    out = wb.merge(adapter, tmp_path / "merged", dtype="fp32")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    from safetensors import safe_open

    with safe_open(out / "model.safetensors", framework="pt") as tensors:
        source = safe_open(base / "model.safetensors", framework="pt")
        before = source.get_tensor("model.embed_tokens.weight").float()
        assert tensors.get_tensor("model.embed_tokens.weight").equal(before)
        assert not tensors.get_tensor("lm_head.weight").equal(before)


@pytest.mark.usefixtures("in_this_process")
def test_a_merge_that_differs_leaves_nothing(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = {"merged": Limit(mean_kl=1e-300, top1=1, perplexity=1e-9)}
    monkeypatch.setattr(sys.modules["workbench.export.merge"], "limits", lambda: strict)
    with pytest.raises(ParityError, match="differs from the adapter on its base: mean KL"):
        wb.merge(adapter, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == []


def test_a_wrong_base_is_named(adapter: Path, base: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base)
    config.num_hidden_layers = 3
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).half().save_pretrained(tmp_path / "other")
    shutil.copy(base / "tokenizer.json", tmp_path / "other")
    with pytest.raises(FormatError, match=r"random-lora does not fit the base other"):
        wb.merge(adapter, tmp_path / "merged", base=tmp_path / "other")
    assert not (tmp_path / "merged").exists()


def copied(adapter: Path, tmp_path: Path, **changes: Any) -> Path:
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_bad_adapters(adapter: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no adapter_config\.json"):
        wb.merge(base)
    with pytest.raises(InputError, match=r"is no merged model of ours\..*stays as is"):
        wb.merge(adapter, base)
    with pytest.raises(InputError, match="no dtype 'fp8'"):
        wb.merge(adapter, dtype="fp8")
    folder = copied(adapter, tmp_path, peft_type="PROMPT_TUNING")
    with pytest.raises(UnsupportedError, match="of the kind PROMPT_TUNING"):
        wb.merge(folder)
    shutil.rmtree(folder)
    folder = copied(adapter, tmp_path, base_model_name_or_path="someone/model")
    with pytest.raises(NotFoundError, match="'someone/model' of the adapter"):
        wb.merge(folder)
    shutil.rmtree(folder)
    folder = copied(adapter, tmp_path)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FormatError, match="not a whole safetensors file"):
        wb.merge(folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(UnsupportedError, match="pickle"):
        wb.merge(folder)


def test_a_quantized_base_is_refused(adapter: Path, base: Path, tmp_path: Path) -> None:
    other = shutil.copytree(base, tmp_path / "nf4", ignore=shutil.ignore_patterns("builder"))
    config = json.loads((other / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=r"quantized \(bitsandbytes\)"):
        wb.merge(adapter, base=other)


def test_no_room_on_the_disk(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1_000_000})()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskSpaceError, match="Merging random-lora needs"):
        wb.merge(adapter, tmp_path / "full" / "merged")
    assert not (tmp_path / "full").exists()
