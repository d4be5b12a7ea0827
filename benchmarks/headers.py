"""Time the header of a checkpoint of 160 shards, beside safetensors opening each shard.

python benchmarks/headers.py [--shards 160] [--tensors 1000] [--times 7]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save_file

from workbench.catalog import safetensors_header
from workbench.catalog.header import read_header


def write(folder: Path, shards: int, tensors: int) -> None:
    """Write a checkpoint of tiny tensors with its index."""
    weights: dict[str, str] = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        names = [
            f"model.layers.{number}.mlp.experts.{number % 64}.gate_proj.weight"
            for number in range(shard * tensors // shards, (shard + 1) * tensors // shards)
        ]
        arrays = {each: np.zeros((4, 4), np.float16) for each in names}
        save_file(arrays, folder / name, metadata={"format": "pt"})
        weights.update(dict.fromkeys(names, name))
    index = {"metadata": {"total_size": 32 * tensors}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def by_the_library(folder: Path) -> int:
    """Ask safetensors for shape and dtype of every tensor."""
    found = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                piece = file.get_slice(name)
                found += bool(piece.get_shape() and piece.get_dtype())
    return found


def anew(folder: Path) -> int:
    """Read the header with nothing remembered from before."""
    safetensors_header._checked.cache_clear()
    return len(read_header(folder).tensors)


def again(folder: Path) -> int:
    """Read the header of files that have not changed since."""
    return len(read_header(folder).tensors)


def facts(folder: Path) -> int:
    """Read it anew, count parameters and derive the architecture."""
    safetensors_header._checked.cache_clear()
    header = read_header(folder)
    header.architecture()
    return len(header.tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=160)
    parser.add_argument("--tensors", type=int, default=1000)
    parser.add_argument("--times", type=int, default=7)
    options = parser.parse_args()
    ways: dict[str, Callable[[Path], int]] = {
        "safetensors.safe_open, each shard": by_the_library,
        "read_header, first time": anew,
        "read_header, unchanged files": again,
        "read_header and architecture": facts,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, options.shards, options.tensors)
        for _ in range(options.times):
            for way, read in ways.items():  # interleaved, so that all meet the same machine
                start = time.perf_counter()
                found = read(folder)
                seconds[way].append(time.perf_counter() - start)
                assert found == options.tensors, (way, found)
    print(f"{platform.machine()}, Python {platform.python_version()}, ", end="")
    print(f"safetensors {safetensors.__version__}, {options.shards} shards, ", end="")
    print(f"{options.tensors} tensors, median of {options.times}")
    first = statistics.median(seconds["safetensors.safe_open, each shard"])
    for way, taken in seconds.items():
        middle = statistics.median(taken)
        print(f"{way:36} {middle * 1000:9.1f} ms   {middle / first:6.2f} x")


if __name__ == "__main__":
    main()
