"""Small weight files written by hand, right or wrong on purpose."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from workbench.catalog.header import DTYPE_BITS, read_header
from workbench.errors import WorkbenchError

Described = Mapping[str, tuple[str, Iterable[int]]]


def safetensors_header(tensors: Described) -> dict[str, Any]:
    """The header of tensors that lie one behind the other."""
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    return header


def safetensors_bytes(header: Mapping[str, Any] | str, data: int | bytes | None = None) -> bytes:
    text = header if isinstance(header, str) else json.dumps(header, ensure_ascii=False)
    if data is None:
        ends = [e["data_offsets"][1] for k, e in dict(header).items() if k != "__metadata__"]
        data = max(ends, default=0)
    body = bytes(data) if isinstance(data, int) else data
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw + body


def save(path: Path, tensors: Described) -> Path:
    path.write_bytes(safetensors_bytes(safetensors_header(tensors)))
    return path


def save_model(folder: Path, tensors: Described, config: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "model.safetensors", tensors)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_shards(folder: Path, shards: list[Described]) -> Path:
    """A checkpoint of shards with its index."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    weights = {}
    for name, tensors in zip(names, shards, strict=True):
        save(folder / name, tensors)
        weights.update(dict.fromkeys(tensors, name))
    index = {"metadata": {"total_size": 0}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def save_gguf(
    path: Path,
    tensors: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
    *,
    architecture: str = "llama",
    splits: int = 0,
) -> Path:
    """A GGUF file by its own library; a tensor is an array, or (quantization, shape)."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=splits)
    for key, value in (facts or {}).items():
        name = key if key.startswith(("general.", "tokenizer.")) else f"{architecture}.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_array(name, value)
    for name, value in tensors.items():
        if isinstance(value, tuple):
            kind = gguf.GGMLQuantizationType[value[0]]
            shape = gguf.quant_shape_to_byte_shape(value[1], kind)
            writer.add_tensor(name, np.zeros(shape, np.uint8), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refused_or_read(path: Path, *, beyond: int = 12) -> bool:
    """Read a spoiled file: True when it was refused, within memory of a multiple of its size."""
    size = path.stat().st_size
    tracemalloc.start()
    try:
        header = read_header(path)
        header.architecture()
        str(header)
        refused, said = False, path.name
    except WorkbenchError as error:
        refused, said = True, str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert path.name.encode() in said.encode()
    assert peak < 1_500_000 + beyond * size, (peak, size)
    return refused
