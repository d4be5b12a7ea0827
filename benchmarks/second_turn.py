"""The second turn's time to first token, through a Model against raw generate, in one run.

    python benchmarks/second_turn.py [--history 1500] [--rounds 5] [--small] [--threads 2]

A conversation with a history of that many tokens is answered once; measured is what a second
question then costs to its first token. The Model keeps the KV cache of the first turn, raw
``generate`` gets the same messages and computes them anew. The weights are random, in the shape of
Qwen2.5-0.5B (with --small in a shape of a tenth of that): they take the time that trained ones
take. Both must give the same first token.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

from random_model import model_for, named

import workbench as wb
from workbench.engines.model import Model
from workbench.machine import machine
from workbench.messages import Sampling

TALK = "The station clock showed nine when the last train came in, and the rain had stopped. "
REPLY_TOKENS = 8


def history(model: Model, tokens: int) -> list[dict[str, str]]:
    """Return turns that make a prompt of about so many tokens."""
    turns = [{"role": "user", "content": "Go on."}]
    while len(model.prompt_ids(turns)) < tokens:
        turns[-1]["content"] += " " + TALK
    return turns


def by_model(model: Model, turns: list[dict[str, str]]) -> tuple[float, int]:
    """Return seconds to the first token of the second turn, and that token."""
    began = time.perf_counter()
    stream = model.stream(turns, Sampling(max_tokens=REPLY_TOKENS, ignore_end=True))
    first = next(stream)
    seconds = time.perf_counter() - began
    stream.close()
    return seconds, int(first.token_id or 0)


def by_generate(raw: Any, tokenizer: Any, turns: list[dict[str, str]]) -> tuple[float, int]:
    """The same by ``generate`` of one token."""
    began = time.perf_counter()
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
    found = raw.generate(**ids, max_new_tokens=1, do_sample=False)
    return time.perf_counter() - began, int(found[0, -1])


def measure(model: Model, tokens: int, rounds: int) -> tuple[list[float], list[float]]:
    """Return the seconds of both ways, in turns; each round has a conversation of its own."""
    kept, plain = [], []
    raw, tokenizer = model.raw, model._session.tokenizer
    for number in range(rounds):
        turns = history(model, tokens)
        turns[0]["content"] = f"{number}. {turns[0]['content']}"
        said = model.ask(turns, max_tokens=REPLY_TOKENS, ignore_end=True)
        turns += [
            {"role": "assistant", "content": said.text},
            {"role": "user", "content": "And what came then?"},
        ]
        mine, his = by_model(model, turns), by_generate(raw, tokenizer, turns)
        if mine[1] != his[1]:
            sys.exit(f"the first tokens differ ({mine[1]}, {his[1]}): nothing is comparable")
        kept.append(mine[0])
        plain.append(his[0])
    return kept, plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--history", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    shape = "0.05B" if given.small else "0.5B"
    settings: dict[str, Any] = {"context": 4096, "dtype": "fp32", "threads": given.threads}
    with (
        model_for(shape, dtype="float32") as path,
        wb.load(path, engine="transformers", **settings) as model,
    ):
        kept, plain = measure(model, given.history, given.rounds)
    ratio = statistics.median(his / mine for mine, his in zip(kept, plain, strict=True))
    print(f"Machine: {machine().summary()}.")
    print(
        f"{named(shape)}, fp32, {given.threads} thread(s), a history of "
        f"{given.history} tokens, {given.rounds} conversations."
    )
    print(
        f"Second turn's time to first token, medians: Model {statistics.median(kept):.3f} s, "
        f"raw generate {statistics.median(plain):.3f} s; within a conversation it is "
        f"{ratio:.1f} times faster."
    )
    print(f"Command: `python {' '.join(sys.argv)}`")


if __name__ == "__main__":
    main()
