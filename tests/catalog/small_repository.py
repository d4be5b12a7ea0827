"""A small repository that has more files than a model needs."""

from __future__ import annotations

import json

from workbench.catalog import Card

NAME = "owner/small"
CARD = Card(id="small", repository=NAME)


def weights(size: int, *, seed: int = 0) -> bytes:
    """Return a safetensors file with one tensor of ``size`` bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    body = bytes((index * 7 + seed) % 251 for index in range(4096)) * (size // 4096 + 1)
    return len(header).to_bytes(8, "little") + header + body[:size]


def files(**more: bytes) -> dict[str, bytes]:
    """Return a repository that has more than a model needs."""
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    index["weight_map"]["b"] = "model-00002-of-00002.safetensors"
    return {
        "config.json": b"{}",
        "tokenizer.json": b'{"a": 1}',
        "chat_template.jinja": b"hello",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00001-of-00002.safetensors": weights(300_000),
        "model-00002-of-00002.safetensors": weights(200_000, seed=1),
        "consolidated.safetensors": weights(500_000, seed=2),
        "pytorch_model.bin": b"pickle",
        "onnx/model.onnx": b"onnx",
        "original/params.json": b"{}",
        "modeling.py": b"raise SystemExit",
        "README.md": b"# small",
        **more,
    }


WANTED = {
    "config.json",
    "tokenizer.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
}
SHARD = "model-00001-of-00002.safetensors"
