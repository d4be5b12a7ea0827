"""Compare the weights of a float GGUF file with the safetensors it was made from, bit by bit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.catalog import ModelFiles
from workbench.catalog.header import check_gguf
from workbench.formats.safetensors import header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_KINDS = {0: "F32", 1: "F16", 30: "BF16"}
_AS_THEY_ARE = ("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "smollm3")
"""Model types whose weights the converter only renames and reorders."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SameWeights:
    """How many tensors of a GGUF file are the source's, rounded to the file's type.

    Attributes:
        equal: Tensors with exactly the source's values.
        total: Tensors of the file.
        differing: Names of the others.
        expected: Whether all should be equal: for other architectures the converter computes some
            tensors, for example a norm plus one.
    """

    equal: int
    total: int
    differing: tuple[str, ...]
    expected: bool

    @property
    def ok(self) -> bool:
        """Whether nothing differs that should be equal."""
        return not (self.differing and self.expected)


def compare_weights(gguf: Path, files: ModelFiles) -> SameWeights:
    """Look for each tensor of a float GGUF file among the source's tensors.

    Query and key rows, which the converter reorders for rotary embeddings, are tried in both
    orders. Tensors are compared by digest, so memory holds one at a time.

    Args:
        gguf: A file of F32, F16 or BF16.
        files: The safetensors it was made from.
    """
    read = check_gguf(gguf)
    used = {_KINDS[tensor.kind] for tensor in read.tensors if tensor.kind in _KINDS}
    config = json.loads((files.path / "config.json").read_text(encoding="utf-8"))
    known = {
        _digest(_rounded(values, kind))
        for path in files.weights
        for name, tensor in _tensors(path)
        for values in _orders(name, tensor, config)
        for kind in used
    }
    differing = []
    with gguf.open("rb") as stream:
        for tensor in read.tensors:
            stream.seek(read.data_start + tensor.offset)
            if hashlib.sha256(stream.read(tensor.size or 0)).digest() not in known:
                differing.append(tensor.name)
    # computed from the configuration, in no checkpoint
    differing = [name for name in differing if not name.startswith("rope_")]
    return SameWeights(
        equal=len(read.tensors) - len(differing),
        total=len(read.tensors),
        differing=tuple(differing),
        expected=config.get("model_type") in _AS_THEY_ARE,
    )


def _tensors(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield name and values as float32 of every float tensor in a safetensors file."""
    import numpy as np

    entries = header(path)
    with path.open("rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        for name, entry in entries.items():
            first, last = entry["data_offsets"]
            stream.seek(start + first)
            data = stream.read(last - first)
            values: Any
            if entry["dtype"] == "BF16":
                values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
            elif entry["dtype"] in ("F16", "F32"):
                kind = "<f2" if entry["dtype"] == "F16" else "<f4"
                values = np.frombuffer(data, kind).astype(np.float32)
            else:
                continue
            yield name, values.reshape(entry["shape"])


def _orders(
    name: str, values: NDArray[np.float32], config: dict[str, Any]
) -> Iterator[NDArray[np.float32]]:
    """Yield the values as stored; queries and keys also with the halves of heads interleaved."""
    yield values
    heads = {
        "q_proj": config.get("num_attention_heads"),
        "k_proj": config.get("num_key_value_heads") or config.get("num_attention_heads"),
    }
    for part, count in heads.items():
        if part in name and count and values.shape[0] % (2 * count) == 0:
            halves = values.reshape(count, 2, values.shape[0] // count // 2, *values.shape[1:])
            yield halves.swapaxes(1, 2).reshape(values.shape)


def _rounded(values: NDArray[np.float32], kind: str) -> bytes:
    """Return the bytes of ``values`` in a GGUF float type, rounded to nearest even."""
    import numpy as np

    if kind == "F32":
        return values.tobytes()
    if kind == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).tobytes()
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
