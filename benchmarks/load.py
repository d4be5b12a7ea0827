"""Loading and unloading by the workbench against the plain library, side by side in one run.

    python benchmarks/load.py [--rounds 9] [--threads 1]

Each round loads the embedded model once by each way, in turns, and frees it again; files are in
the page cache by then, and packages are imported. The overhead is the median of the differences
within a round, the checks of memory and the receipt included. Then the memory of a process before
loading, after it and after closing, as the receipt of the unloading has it.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import workbench as wb
from workbench.figures import Table
from workbench.machine import machine
from workbench.paths import shipped

WARM_UP = 1
Load = Callable[[], Callable[[], Any]]
"""Loads a model and returns what frees it."""


def by_workbench(settings: dict[str, Any]) -> Load:
    def load() -> Callable[[], Any]:
        return wb.load("tiny-chat", **settings).close

    return load


def by_transformers() -> Callable[[], Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(shipped("data", "tiny-chat"))
    kept = [
        AutoTokenizer.from_pretrained(folder, local_files_only=True),
        AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval(),
    ]
    return lambda: (kept.clear(), gc.collect())


def by_llama(path: str, threads: int) -> Load:
    def load() -> Callable[[], Any]:
        import llama_cpp

        return llama_cpp.Llama(path, n_ctx=2048, n_threads=threads, verbose=False).close

    return load


def timed(load: Load) -> tuple[float, float]:
    """Return the seconds of loading and of freeing."""
    began = time.perf_counter()
    free = load()
    loaded = time.perf_counter()
    free()
    return loaded - began, time.perf_counter() - loaded


def compared(name: str, ours: Load, plain: Load, rounds: int) -> dict[str, Any]:
    for _ in range(WARM_UP):
        timed(ours)
        timed(plain)
    pairs = [(timed(plain), timed(ours)) for _ in range(rounds)]
    middle = statistics.median
    return {
        "engine": name,
        "plain load s": middle(plain[0] for plain, _ in pairs),
        "workbench load s": middle(ours[0] for _, ours in pairs),
        "overhead s": middle(ours[0] - plain[0] for plain, ours in pairs),
        "plain free s": middle(plain[1] for plain, _ in pairs),
        "workbench close s": middle(ours[1] for _, ours in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    forms = {
        "transformers": {"engine": "transformers", "dtype": "fp32"},
        "llama.cpp": {"engine": "llama.cpp", "quantization": "F16"},
    }
    forms = {name: {**form, "threads": given.threads} for name, form in forms.items()}
    with wb.load("tiny-chat", **forms["llama.cpp"]) as model:
        files = model.plan.files
    assert files is not None
    plain = {
        "transformers": by_transformers,
        "llama.cpp": by_llama(str(files.path), given.threads),
    }
    rows = [
        compared(name, by_workbench(form), plain[name], given.rounds)
        for name, form in forms.items()
    ]
    here = machine()
    print(f"python benchmarks/load.py --rounds {given.rounds} --threads {given.threads}")
    print(f"{here.processor}; " + ", ".join(f"{k} {v}" for k, v in here.versions.items()))
    formats = dict.fromkeys(list(rows[0])[1:], ".3f")
    print(Table(rows, caption="Medians over the rounds, in seconds", formats=formats))
    for form in forms.values():
        model = wb.load("tiny-chat", **form)
        model.ask("Tell me a story.", max_tokens=100)
        print(model.close())


if __name__ == "__main__":
    main()
