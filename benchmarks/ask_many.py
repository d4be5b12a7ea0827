"""Model.ask_many against a loop of Model.ask over the same prompts, side by side in one run.

    python benchmarks/ask_many.py [--prompts 64] [--tokens 32] [--rounds 3] [--threads 1]
                                  [--shape 0.5B] [--engines transformers llama.cpp] [--ends]

End tokens are ignored, so that both ways decode the same number of tokens; with --ends replies are
as long as they are. Each round runs both ways once, in turns. Engines without the power ``batch``
answer one after another in both ways, and the table says so. A batch adds numbers in another order
than a single prompt does: where a reply differs, the gap between the two tokens at the first
difference is told, in nats, by the model's own probabilities.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from random_model import add_shape, gguf_of, model_for, named

import workbench as wb
from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.figures import Table
from workbench.machine import machine
from workbench.messages import Reply, Sampling

SETTINGS: dict[str, dict[str, Any]] = {
    "transformers": {"engine": "transformers", "dtype": "fp32"},
    "llama.cpp": {"engine": "llama.cpp"},
    "mlx": {"engine": "mlx", "dtype": "fp32"},
}
QUESTIONS = (
    "What is {a} + {b}?",
    "Tell me a story of {a} ships and {b} birds.",
    "Which is larger, {a} or {b}?",
    "Count from {a} to {b}.",
)


def prompts(count: int) -> list[str]:
    """Return different questions of different lengths."""
    return [QUESTIONS[n % len(QUESTIONS)].format(a=n, b=3 * n + 1) for n in range(count)]


def compare(model: Model, asked: list[str], sampling: Sampling, rounds: int) -> dict[str, Any]:
    """Return the medians of both ways, and how many replies were equal."""
    model.ask_many(asked[:2], sampling)
    alone: list[float] = []
    together: list[float] = []
    ratios: list[float] = []
    single: list[Reply] = []
    batched: list[Reply] = []
    for _ in range(rounds):
        began = time.perf_counter()
        single = [model.ask(question, sampling) for question in asked]
        middle = time.perf_counter()
        batched = model.ask_many(asked, sampling)
        ended = time.perf_counter()
        alone.append(middle - began)
        together.append(ended - middle)
        ratios.append(alone[-1] / together[-1])
    failed = [reply.error for reply in batched if reply.finish_reason == "error"]
    if failed:
        sys.exit(f"{len(failed)} replies failed, the first by: {failed[0]}")
    tokens = sum(len(reply.token_ids) for reply in single)
    gaps = [
        gap_at_first_difference(model, question, one.token_ids, other.token_ids)
        for question, one, other in zip(asked, single, batched, strict=True)
        if one.token_ids != other.token_ids
    ]
    return {
        "engine": model.plan.engine,
        "batches": "yes" if Power.BATCH in model.powers else "no, one after another",
        "loop s": statistics.median(alone),
        "ask_many s": statistics.median(together),
        "times faster": statistics.median(ratios),
        "loop tokens/s": tokens / statistics.median(alone),
        "equal replies": f"{len(asked) - len(gaps)} of {len(asked)}",
        "largest gap, nats": max(gaps, default=0.0),
    }


def gap_at_first_difference(
    model: Model, question: str, one: Sequence[int], other: Sequence[int]
) -> float:
    """Return by how much the two replies' tokens differ in log-probability where they part."""
    same = next(n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    ids = [*model.prompt_ids(question), *one[:same], one[same]]
    logs = model.log_probabilities(ids)[-1]
    return abs(float(logs[one[same]] - logs[other[same]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=None, help="most prompts at a time")
    parser.add_argument("--ends", action="store_true", help="let replies end by themselves")
    parser.add_argument("--engines", nargs="+", default=["transformers"], choices=list(SETTINGS))
    add_shape(parser)
    given = parser.parse_args()
    sampling = Sampling(max_tokens=given.tokens, ignore_end=not given.ends)
    rows = []
    with model_for(given.shape) as source:
        for engine in given.engines:
            settings = {**SETTINGS[engine], "threads": given.threads, "context": 1024}
            if given.batch is not None:
                settings["batch"] = given.batch
            loaded = source
            if engine == "llama.cpp":
                loaded, form = gguf_of(source, "F16")
                settings |= form
            with wb.load(loaded, **settings) as model:
                rows.append(compare(model, prompts(given.prompts), sampling, given.rounds))
    this = machine()
    print(f"Machine: {this.summary()}; Python {this.python}, " + ", ".join(
        f"{name} {this.versions[name]}"
        for name in ("transformers", "torch", "llama-cpp-python", "mlx-lm")
        if name in this.versions
    ) + ".")  # fmt: skip
    print(
        f"{named(given.shape)}: {given.prompts} prompts, {given.tokens} new tokens each, "
        f"{given.threads} thread(s), medians of {given.rounds} rounds in turns."
    )
    formats = {"loop s": ".2f", "ask_many s": ".2f", "times faster": ".2f",
               "loop tokens/s": ".0f", "largest gap, nats": ".4f"}  # fmt: skip
    print(Table(rows, caption="ask_many against a loop of ask", formats=formats))
    print(f"Command: `python {' '.join(sys.argv)}`")


if __name__ == "__main__":
    main()
