"""Streaming through a Model against the same library used directly, side by side in one run.

    python benchmarks/streaming.py [--rounds 15] [--tokens 200] [--threads 1] [--engines mlx]
                                   [--shape 0.5B]

With --shape the weights are random, in the shape of that Qwen2.5, and lie in a temporary folder.

Each round streams the same prompt once by each way, in turns; end tokens are ignored by all, so
that every way decodes the same number of tokens, and they must be the same tokens. Measured is the
time from the call to the last piece, prompt included, divided by the tokens; the table has medians
over the rounds, and of the differences within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from random_model import add_shape, gguf_of, model_for, named

import workbench as wb
from workbench.engines.model import Model
from workbench.machine import machine
from workbench.messages import Sampling

QUESTION = "Tell me a story."
WARM_UP = 2
CONTEXT = 2048
CONTROL = re.compile(r"<\|\w+\|>")
"""Control tokens, which mlx-lm writes out after the end of a reply, and we do not."""
Way = Callable[[], Iterator[str]]
"""Streams the reply once, in pieces of text."""


def by_model(model: Model, tokens: int) -> Iterator[str]:
    for piece in model.stream(QUESTION, Sampling(max_tokens=tokens, ignore_end=True)):
        yield piece.text


def by_llama(llama: Any, prompt: list[int], tokens: int) -> Iterator[str]:
    """``create_completion(stream=True)``; its own prompt cache is emptied, as ours is."""
    import llama_cpp

    llama.reset()
    with ends_ignored(llama_cpp):
        chunks = llama.create_completion(
            prompt, max_tokens=tokens, stream=True, temperature=0.0, repeat_penalty=1.0
        )
        for chunk in chunks:
            yield chunk["choices"][0]["text"]


@contextlib.contextmanager
def ends_ignored(llama_cpp: Any) -> Iterator[None]:
    """Let llama-cpp-python find no end token: it has no setting for that."""
    module = llama_cpp.llama_cpp
    original = module.llama_vocab_is_eog
    module.llama_vocab_is_eog = lambda vocab, token: False
    try:
        yield
    finally:
        module.llama_vocab_is_eog = original


def by_mlx(raw: Any, tokenizer: Any, prompt: list[int], tokens: int) -> Iterator[str]:
    """``mlx_lm.stream_generate``, with a tokenizer that knows no end."""
    import mlx_lm

    for response in mlx_lm.stream_generate(raw, tokenizer, prompt, max_tokens=tokens):
        yield response.text


def endless_tokenizer(model: Model) -> Any:
    """Return mlx-lm's tokenizer of the model's files; it would end a reply at an end token."""
    from mlx_lm.utils import load_tokenizer

    assert model.plan.files is not None
    tokenizer = load_tokenizer(model.plan.files.path)
    tokenizer._eos_token_ids = set()
    return tokenizer


def by_streamer(model: Model, prompt: list[int], tokens: int) -> Iterator[str]:
    """``generate`` in a thread with a TextIteratorStreamer, as its documentation shows."""
    import torch
    from transformers import TextIteratorStreamer

    raw, tokenizer = model.raw, model._session.tokenizer
    ids = torch.tensor([prompt], device=raw.device)
    ends, raw.generation_config.eos_token_id = raw.generation_config.eos_token_id, None
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    arguments = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": tokens,
        "do_sample": False,
        "streamer": streamer,
    }
    try:
        thread = threading.Thread(target=raw.generate, kwargs=arguments)
        thread.start()
        yield from streamer
        thread.join()
    finally:
        raw.generation_config.eos_token_id = ends


def raw_way(engine: str, model: Model, tokens: int) -> tuple[str, Way]:
    """Return the library's own way of streaming, with its name."""
    prompt = model.prompt_ids(QUESTION)
    if engine == "llama.cpp":
        name = "llama_cpp `create_completion(stream=True)`"
        return name, lambda: by_llama(model.raw, prompt, tokens)
    if engine == "mlx":
        tokenizer = endless_tokenizer(model)
        name = "mlx_lm `stream_generate`"
        return name, lambda: by_mlx(model.raw, tokenizer, prompt, tokens)
    name = "transformers `generate` with TextIteratorStreamer"
    return name, lambda: by_streamer(model, prompt, tokens)


def measured(way: Way, tokens: int) -> tuple[float, float, str]:
    """Return seconds per token, seconds to the first piece, and the text."""
    began = time.perf_counter()
    first = last = 0.0
    text = []
    for piece in way():
        last = time.perf_counter()
        first = first or last
        text.append(piece)
    return (last - began) / tokens, first - began, "".join(text)


def compare(ways: dict[str, Way], *, rounds: int, tokens: int) -> list[list[str]]:
    """Run the ways in turns; return one row each, against the first."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds + WARM_UP):
        texts = set()
        for name in names[number % len(names) :] + names[: number % len(names)]:
            per_token, first, text = measured(ways[name], tokens)
            texts.add(CONTROL.sub("", text).strip())  # mlx-lm trims the first blank
            if number >= WARM_UP:
                found[name].append((per_token, first))
        if len(texts) != 1:
            shown = "; ".join(repr(text[:120]) for text in texts)
            sys.exit(f"the ways gave {len(texts)} different texts, nothing is comparable: {shown}")
    plain = found[names[0]]
    rows = []
    for name in names:
        own = found[name]
        added = [mine[0] - his[0] for mine, his in zip(own, plain, strict=True)]
        ratio = [mine[0] / his[0] for mine, his in zip(own, plain, strict=True)]
        rows.append(
            [
                name,
                f"{statistics.median(value for value, _ in own) * 1e6:.0f}",
                "" if name == names[0] else f"{statistics.median(added) * 1e6:+.0f}",
                "" if name == names[0] else f"{statistics.median(ratio):.3f}",
                f"{statistics.median(value for _, value in own) * 1e3:.1f}",
            ]
        )
    return rows


def table(rows: list[list[str]]) -> str:
    head = ["way", "µs per token", "added µs per token", "ratio", "ms to the first piece"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure(given: argparse.Namespace, model: str) -> list[list[str]]:
    """Compare the ways of each engine that is asked for."""
    tokens = given.tokens
    llama = {"engine": "llama.cpp", "threads": given.threads, "context": CONTEXT}
    torch = {"engine": "transformers", "dtype": given.dtype, "threads": given.threads}
    for settings in (llama, torch):  # the raw libraries compute each prompt anew
        settings["prefix_reuse"] = False
    mlx = {"engine": "mlx", "dtype": given.dtype, "prefix_reuse": False}
    rows: list[list[str]] = []
    for engine, settings in (("llama.cpp", llama), ("transformers", torch), ("mlx", mlx)):
        if engine not in given.engines:
            continue
        source = model
        if engine == "llama.cpp":
            source, form = gguf_of(model, given.quantization)
            settings |= form
        with (
            wb.load(source, **settings) as here,
            wb.load(source, isolate=True, **settings) as there,
        ):
            name, way = raw_way(engine, here, tokens)
            ways: dict[str, Way] = {
                name: way,
                f"`Model.stream`, {engine}": lambda here=here: by_model(here, tokens),
                f"`Model.stream`, {engine}, child process": lambda there=there: by_model(
                    there, tokens
                ),
            }
            rows += compare(ways, rounds=given.rounds, tokens=tokens)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny-chat")
    parser.add_argument("--quantization", default="F16", help="of the GGUF")
    parser.add_argument("--dtype", default="fp32", help="of the transformers model")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    add_shape(parser)
    parser.add_argument("--engines", nargs="+", default=["llama.cpp", "transformers", "mlx"])
    given = parser.parse_args()
    with model_for(given.shape) as folder:
        rows = measure(given, given.model if given.shape is None else folder)
    print(table(rows))
    this = machine()
    versions = ", ".join(
        f"{name} {this.versions[name]}"
        for name in ("llama-cpp-python", "transformers", "torch", "mlx-lm")
        if name in this.versions
    )
    print(f"\nMachine: {this.summary()}; Python {this.python}, {versions}.")
    what = named(given.shape) if given.shape else given.model
    print(
        f"{what}: GGUF {given.quantization} and {given.dtype}, {given.tokens} tokens, "
        f"{given.threads} thread(s), medians of {given.rounds} rounds in turns."
    )
    print(f"Command: `python {' '.join(sys.argv)}`")


if __name__ == "__main__":
    main()
