"""Types and bytes of GGUF tensors by the workbench's rules, beside llama.cpp's own quantizer.

    python benchmarks/gguf_bytes.py [--cards llama-3.1-8b-instruct,...] [--types Q4_K_M,...]

For every card, file type, and with and without an importance matrix, llama.cpp is asked by a dry
run on a file that has metadata and tensor infos but no weights; each tensor's type is compared. The
table has one row for each family. Needs the extras ``llama`` and ``dev``.
"""

from __future__ import annotations

import argparse
import collections
import importlib.metadata
import platform
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "memory"))

from oracle_quantize import dry_runs, write_sparse

from workbench.catalog import Card, catalog
from workbench.catalog.shapes import shapes
from workbench.errors import UnsupportedError
from workbench.figures import Table
from workbench.memory.gguf_mix import FILE_TYPES, mix_bytes, mixed
from workbench.progress import progress

MIB = 2**20
ROUNDING = 0.006  # llama.cpp prints MiB with two digits
# Float files are the converter's work; Q1_0 is refused where its blocks do not divide the rows.
LEFT_OUT = ("F32", "F16", "BF16", "Q1_0")


def compare(card: Card, types: list[str], found: dict[str, dict[str, float]]) -> None:
    """Add the differences of one card to its family's row."""
    tensors = shapes(card.architecture)
    family = found[card.architecture.model_type or ""]
    family["models"] += 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_sparse(path, card.architecture, mixed(tensors, "BF16"))
        for imatrix in (False, True):
            (answers,) = dry_runs([path], types, imatrix=imatrix)
            for file_type, answer in answers.items():
                size = float(answer.pop("MiB"))
                mix = mixed(tensors, file_type, imatrix=imatrix)
                family["mixes"] += 1
                family["tensors"] += len(mix)
                names = {shape.name: kind for shape, kind in mix}
                either = names.keys() | answer.keys()
                family["other type"] += sum(names.get(n) != answer.get(n) for n in either)
                off = max(0.0, abs(mix_bytes(mix) / MIB - size) - ROUNDING)
                family["bytes off %"] = max(family["bytes off %"], 100 * off / size)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cards", default="", help="ids, by comma; all by default")
    parser.add_argument("--types", default="", help="file types, by comma; all by default")
    given = parser.parse_args()
    wanted = given.cards.split(",") if given.cards else None
    types = given.types.split(",") if given.types else [t for t in FILE_TYPES if t not in LEFT_OUT]
    cards = [
        card
        for card in catalog()
        if card.architecture.model_type and (wanted is None or card.id in wanted)
    ]
    found: dict[str, dict[str, float]] = collections.defaultdict(
        lambda: dict.fromkeys(("models", "mixes", "tensors", "other type", "bytes off %"), 0.0)
    )
    left_out = []
    with progress("Asking llama.cpp", total=len(cards)) as bar:
        for card in cards:
            try:
                compare(card, types, found)
            except (UnsupportedError, RuntimeError) as error:
                left_out.append(f"{card.id}: {str(error).splitlines()[0][:200]}")
            bar.advance()
    rows = [
        {"family": name, **{k: int(v) if k != "bytes off %" else v for k, v in row.items()}}
        for name, row in sorted(found.items())
    ]
    version = importlib.metadata.version("llama-cpp-python")
    print(Table(rows, caption=f"{len(types)} file types, with and without an importance matrix"))
    print(f"llama-cpp-python {version}, Python {platform.python_version()}, {platform.machine()}")
    print("python benchmarks/gguf_bytes.py " + " ".join(sys.argv[1:]))
    for line in left_out:
        print("not compared:", line)
    return int(any(row["other type"] or row["bytes off %"] for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
