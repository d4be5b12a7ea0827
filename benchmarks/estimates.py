"""How long an estimate takes, and how far llama.cpp's own allocation agrees with the rules.

    python benchmarks/estimates.py [--rounds 20]
    python benchmarks/estimates.py --oracle [--context 8192]

The first estimates every card for every engine, cold and again, and says whether PyTorch was
imported. The second asks llama.cpp, which needs no weights for it, about every card of a family
that it knows, and prints the table of docs/memory.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from workbench.catalog import Card, catalog
from workbench.errors import WorkbenchError
from workbench.figures import Table
from workbench.memory import estimate, estimate_training

MIB = 2**20
FORMS = (
    ("transformers", "none"),
    ("transformers", "nf4"),
    ("llama.cpp", "Q4_K_M"),
    ("mlx", "4bit"),
    ("vllm", "none"),
)


def timed(rounds: int) -> Table:
    """Return milliseconds of one estimate by engine; the first of a card is the cold one."""
    rows = []
    for engine, form in (*FORMS, ("training", "qlora")):
        cold, warm = [], []
        for card in catalog():
            if card.architecture.layers is None:
                continue
            times = [one(card, engine, form) for _ in range(rounds + 1)]
            if times[0] is not None:
                cold.append(times[0])
                warm.append(statistics.median(t for t in times[1:] if t is not None))
        rows.append(
            {
                "estimate": f"{engine}, {form}",
                "cards": len(cold),
                "first (ms, median)": statistics.median(cold),
                "first (ms, worst)": max(cold),
                "again (ms, median)": statistics.median(warm),
            }
        )
    return Table(rows, caption="Time of one estimate")


def one(card: Card, engine: str, form: str) -> float | None:
    start = time.perf_counter()
    try:
        if engine == "training":
            estimate_training(card, method="qlora", sequence=256)
        else:
            estimate(card, engine=engine, quantization=form, context=256)
    except WorkbenchError:
        return None
    return 1000 * (time.perf_counter() - start)


def oracle(context: int) -> Table:
    """Return llama.cpp's MiB beside ours for every card whose family it knows."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "memory"))
    from empty_gguf import write_empty
    from oracle_context import ask

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for card in catalog():
            facts = card.architecture
            tokens = min(context, card.context_length or context)
            try:
                path = write_empty(
                    Path(folder) / "empty.gguf", facts, context=card.context_length or context
                )
                said = ask(path, n_ctx=tokens, swa_full=False, flash_attn_type=1)
                found = estimate(
                    card, engine="llama.cpp", quantization="F16", device="cpu", context=tokens
                )
            except (WorkbenchError, RuntimeError, KeyError, TypeError, AttributeError) as error:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:60]}"
                rows.append({"model": card.id, "family": facts.model_type, "failed": reason})
                continue
            state = sum(p.bytes for p in found.parts if p.name == "recurrent state") / MIB
            compute = sum(p.bytes for p in found.parts if p.group == "compute") / MIB
            rows.append(
                {
                    "model": card.id,
                    "family": facts.model_type,
                    "tokens": tokens,
                    "cells": found.cache / MIB - state,
                    "llama.cpp": said["kv"],
                    "state": state,
                    "llama.cpp ": said["state"],
                    "compute": compute,
                    "llama.cpp  ": said["compute"],
                    "off": compute / said["compute"] - 1,
                }
            )
    formats = {name: ".2f" for name in rows[0] if name not in ("model", "family", "tokens", "off")}
    return Table(rows, caption="MiB by rule and by llama.cpp", formats={**formats, "off": "+.1%"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--oracle", action="store_true")
    parser.add_argument("--context", type=int, default=8192)
    options = parser.parse_args()
    if options.oracle:
        table = oracle(options.context)
        print(table)
        known = [row for row in table if "off" in row]
        exact = sum(abs(row["cells"] - row["llama.cpp"]) < 0.011 for row in known)
        off = sorted(abs(row["off"]) for row in known)
        print(
            f"{len(known)} of {len(table)} cards: cells exact in {exact}; compute buffers off by "
            f"{statistics.mean(off):.2%} on average, {off[-1]:.1%} at most; "
            f"{sum(each < 0.001 for each in off)} exact"
        )
        return
    print(timed(options.rounds))
    heavy = [name for name in ("torch", "transformers") if name in sys.modules]
    print(f"imported: {', '.join(heavy) or 'neither torch nor transformers'}")


if __name__ == "__main__":
    main()
