"""What transformers holds in RAM while it unpacks a GGUF file, against its own tensors."""

from pathlib import Path
from typing import Any

import pytest
from empty_gguf import write_empty
from small_models import facts

from workbench.memory import estimate


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe"])
def test_every_tensor_is_in_ram_before_the_first_goes_to_the_device(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig, modeling_utils

    name = "convert_and_load_state_dict_in_model"
    original = getattr(modeling_utils, name)
    held: list[int] = []

    def seen(**given: Any) -> Any:
        tensors = [tensor[...] for tensor in given["state_dict"].values()]
        assert all(tensor.device.type == "cpu" for tensor in tensors)
        held.append(sum(tensor.nbytes for tensor in tensors))
        return original(**given)

    monkeypatch.setattr(modeling_utils, name, seen)
    write_empty(tmp_path / "m.gguf", facts(family), context=512)
    AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file="m.gguf", dtype=torch.bfloat16, local_files_only=True,
        quantization_config=GgufConfig(dequantize=True),
    )  # fmt: skip
    given = {"quantization": "bf16", "dtype": "bf16", "context": 512}
    found = estimate(facts(family), unpacks=True, **given)
    part = found.part("unpacking in RAM")
    assert part is not None
    experts = 0 if family != "qwen3_moe" else 4 * 8 * 3 * 256 * 128
    assert held == [found.weights + 2 * experts]  # 32 bits of an expert's values
    largest = 8 * 256 * 128 if experts else 768 * 256
    assert part.bytes == held[0] + 8 * largest
    assert part.place == "host"
    assert estimate(facts(family), **given).part(part.name) is None
    there = estimate(facts(family), unpacks=True, device="cpu", **given).part(part.name)
    assert (there.bytes if there else 0) == 4 * experts  # the rest becomes the model's own
    exact = estimate(
        facts(family),
        unpacks=True,
        device="cpu",
        **{**given, "dtype": "fp32", "quantization": "fp32"},
    )
    assert exact.part(part.name) is None


def test_copies_of_large_ends_are_gone_before_the_layers_are_read() -> None:
    """A large vocabulary rules the peak of a small model, and adds nothing to a large one's."""
    wide = facts("llama").model_copy(update={"vocab_size": 200_000, "tied_embeddings": False})
    found = estimate(wide, quantization="bf16", dtype="bf16", context=512, unpacks=True)
    ends, each = 2 * 200_000 * 256, 200_000 * 256
    part = found.part("unpacking in RAM")
    assert part is not None
    assert part.bytes == pytest.approx(2 * ends + 8 * each, rel=1e-4)
    assert part.bytes > found.weights
    large = estimate(
        "llama-3.1-8b-instruct", quantization="bf16", dtype="bf16", context=512, unpacks=True
    )
    deep = large.part("unpacking in RAM")
    assert deep is not None
    assert deep.bytes == large.weights + 8 * 14336 * 4096
