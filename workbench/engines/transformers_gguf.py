"""GGUF under transformers: unpacked while loading, refused where it would be read wrong.

transformers leaves out what it does not know: the scaling of positions, and tensors without a
place in its model. It says nothing of it, and the model then answers, only worse.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from workbench.catalog.header import Header, read_header
from workbench.engines.transformers_packed import check_packed
from workbench.errors import FormatError, UnsupportedError
from workbench.planning import Plan

READ_RIGHT = ("llama", "qwen2", "qwen3", "qwen3moe")
"""Architectures whose scores were compared with those of their safetensors, and are equal.

Of others transformers 5.19 loses windows or positions (gemma3), or ends in an error (gpt-oss,
qwen2moe).
"""
_OWN_WIDTH = ("llama", "qwen3", "qwen3moe")
"""Those whose heads have a width of their own; transformers takes its default instead of it."""
_LEFT_OUT = ("rope.scaling.type", "attention.sliding_window")
_ENDS = ("eos", "eot", "eom")
_LLAMA = "Load it with engine='llama.cpp', which reads every GGUF."


class GgufFile:
    """One GGUF file, checked to be one that transformers reads whole.

    Args:
        plan: The plan; its files are GGUF.

    Raises:
        MissingPackageError: The package ``gguf`` or ``accelerate`` is not installed.
        UnsupportedError: transformers does not know the architecture or would leave out a part.
        FormatError: The file is damaged.
    """

    def __init__(self, plan: Plan) -> None:
        assert plan.files is not None
        check_packed({"quant_method": "gguf"}, plan.card.id)
        if len(plan.files.weights) > 1:
            raise UnsupportedError(
                f"{plan.card.id} lies in {len(plan.files.weights)} GGUF files; transformers reads "
                "only single ones.",
                hint=_LLAMA,
            )
        self.path, self.name = plan.files.path, plan.card.id
        self.header: Header = read_header(self.path)
        self._said: Mapping[str, Any] = self.header.metadata
        self.architecture = str(self._said.get("general.architecture", ""))
        self._check_architecture()
        self._check_positions()

    def arguments(self) -> dict[str, Any]:
        """Return what ``from_pretrained`` needs besides the folder to read this file.

        Weights are always unpacked: kernels for packed ones would be fetched from the hub.
        """
        import transformers

        found: dict[str, Any] = {"gguf_file": self.path.name}
        width = self._said.get(f"{self.architecture}.attention.key_length")
        if isinstance(width, int) and self.architecture in _OWN_WIDTH:
            found["head_dim"] = width
        if hasattr(transformers, "GgufConfig"):  # earlier ones know no kernels
            found["quantization_config"] = transformers.GgufConfig(dequantize=True)
        return found

    def complete(self, model: Any) -> None:
        """Give the model what transformers left out: scaled positions, and every end token.

        Raises:
            UnsupportedError: Other tensors were left out.
        """
        self._check_whole(model)
        factors = self._rope_factors()
        if factors is not None:
            _divide_frequencies(model, factors, self.name)
        given = model.generation_config.eos_token_id
        known = {given} if isinstance(given, int) else set(given or ())
        model.generation_config.eos_token_id = sorted(known | self._ends()) or None

    def correct(self, tokenizer: Any) -> None:
        """Let the tokenizer begin a raw text as the file says."""
        wanted = self._said.get("tokenizer.ggml.add_bos_token")
        if isinstance(wanted, bool) and tokenizer.bos_token_id is not None:
            tokenizer.add_bos_token = wanted

    def _ends(self) -> set[int]:
        found = (self._said.get(f"tokenizer.ggml.{name}_token_id") for name in _ENDS)
        return {value for value in found if isinstance(value, int)}

    def _check_architecture(self) -> None:
        if self.architecture not in READ_RIGHT:
            raise UnsupportedError(
                f"{self.name} is a GGUF of the architecture {self.architecture!r}; transformers "
                f"reads right only those of {', '.join(READ_RIGHT)}.",
                hint=_LLAMA,
            )

    def _check_positions(self) -> None:
        """Refuse windows and scaled positions that transformers leaves out."""
        said = {name: self._said.get(f"{self.architecture}.{name}") for name in _LEFT_OUT}
        found = [f"{name} = {value}" for name, value in said.items() if value not in (None, "none")]
        found += [each.name for each in self.header.tensors if each.name.startswith("rope_factors")]
        if found:
            raise UnsupportedError(
                f"transformers leaves out what the GGUF of {self.name} says of its attention "
                f"({', '.join(found)}); its answers would be wrong.",
                hint=_LLAMA,
            )

    def _rope_factors(self) -> Any:
        """Return what divides each frequency (Llama 3.1 and later), float32, or None."""
        if not any(tensor.name == "rope_freqs.weight" for tensor in self.header.tensors):
            return None
        from gguf import GGUFReader

        reader = GGUFReader(str(self.path))
        tensor = next(each for each in reader.tensors if each.name == "rope_freqs.weight")
        return tensor.data.astype("float32").reshape(-1)

    def _check_whole(self, model: Any) -> None:
        """Refuse a model with fewer values than the file: the rest was left out unsaid."""
        tied = bool(model.config.get_text_config().tie_word_embeddings)
        layers = int(model.config.get_text_config().num_hidden_layers)
        stored = sum(
            tensor.weights or 0
            for tensor in self.header.counted
            if not tensor.tensor.name.startswith("rope_")
            and not (tied and tensor.tensor.name == "output.weight")
            and _layer(tensor.tensor.name) < layers
        )
        kept = {id(each): each.numel() for each in model.state_dict(keep_vars=True).values()}
        held = sum(kept.values())
        if held < stored:
            raise UnsupportedError(
                f"transformers left out {stored - held:,} of {stored:,} values of the GGUF of "
                f"{self.name}; its answers would be wrong.",
                hint=_LLAMA,
            )


def _layer(name: str) -> int:
    """Return the layer of a tensor, -1 for none: layers after the last predict several tokens."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" and parts[1].isdigit() else -1


def _divide_frequencies(model: Any, factors: Any, name: str) -> None:
    """Divide the rotary frequencies by the file's factors, as llama.cpp does."""
    import torch

    found = [module for module in model.modules() if hasattr(module, "inv_freq")]
    if not found or any(module.inv_freq.numel() != len(factors) for module in found):
        raise FormatError(f"The GGUF of {name} has {len(factors)} rope_freqs; they do not fit.")
    for module in found:
        for buffer in ("inv_freq", "original_inv_freq"):
            values = getattr(module, buffer, None)
            if values is not None:
                divided = values / torch.as_tensor(factors, device=values.device)
                setattr(module, buffer, divided)


@contextlib.contextmanager
def quiet_unpacking() -> Iterator[None]:
    """Keep the bar of the unpacking out of the notebook; it has no switch of its own."""
    from transformers import modeling_gguf_pytorch_utils as unpacking

    original = unpacking.tqdm
    unpacking.tqdm = lambda tensors, **_: tensors
    try:
        yield
    finally:
        unpacking.tqdm = original
