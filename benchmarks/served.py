"""vLLM through the workbench against a bare client, on one server in one run.

    python benchmarks/served.py [--tokens 128] [--rounds 9] [--concurrent 8] [--threads 1]
                                [--shape 0.5B] [--engine vllm]

The workbench starts the server; both ways then ask it the same, in turns: one stream at a time, and
so many at once. The bare client is ``openai`` where that is installed; else it is httpx reading the
event stream line by line, as the last line says. Both ignore end tokens and must get the same text.
A ratio is tokens per second of the workbench by those of the bare client within a round; 0.97 and
more is the aim.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from random_model import add_shape, model_for, named

import workbench as wb
from workbench.engines.model import Model
from workbench.figures import Table
from workbench.machine import machine
from workbench.messages import Sampling

QUESTION = "Tell me a story of {n} ships."
WARM_UP = 2
Ask = Callable[[str], str]
"""Streams the reply to a question and returns its text."""


def by_workbench(model: Model, tokens: int) -> Ask:
    sampling = Sampling(max_tokens=tokens, ignore_end=True)
    return lambda question: "".join(piece.text for piece in model.stream(question, sampling))


def by_openai(url: str, key: str | None, name: str, tokens: int) -> Ask:
    """The client of the package ``openai``."""
    import openai

    client = openai.OpenAI(base_url=url, api_key=key or "none")

    def ask(question: str) -> str:
        chunks = client.chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": question}],
            stream=True,
            temperature=0.0,
            max_tokens=tokens,
            extra_body={"ignore_eos": True},
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    return ask


def by_httpx(url: str, key: str | None, name: str, tokens: int) -> Ask:
    """Httpx and ``json.loads``, nothing else."""
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    client = httpx.Client(headers=headers, timeout=None)

    def ask(question: str) -> str:
        body = {
            "model": name,
            "messages": [{"role": "user", "content": question}],
            "stream": True,
            "temperature": 0.0,
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        text = []
        with client.stream("POST", f"{url}/chat/completions", json=body) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                choices = json.loads(line[6:])["choices"]
                text.append(choices[0]["delta"].get("content") or "" if choices else "")
        return "".join(text)

    return ask


def bare(model: Model, tokens: int) -> tuple[str, Ask]:
    """Return the bare client's name and way."""
    session: Any = model._session
    key = session.server.command.key
    given = session.http.url, key, session.model, tokens
    if importlib.util.find_spec("openai") is not None:
        return "openai", by_openai(*given)
    return "httpx", by_httpx(*given)


def one_round(ask: Ask, questions: list[str], concurrent: int) -> tuple[float, list[str]]:
    """Return the seconds of all questions, so many at a time, and the replies."""
    began = time.perf_counter()
    if concurrent == 1:
        texts = [ask(question) for question in questions]
    else:
        with ThreadPoolExecutor(concurrent) as pool:
            texts = list(pool.map(ask, questions))
    return time.perf_counter() - began, texts


def compare(ours: Ask, other: Ask, *, concurrent: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Run both ways in turns; every round has questions of its own, which no cache holds."""
    mine: list[float] = []
    his: list[float] = []
    equal = asked = 0
    for number in range(rounds + WARM_UP):
        questions = [QUESTION.format(n=number * concurrent + each) for each in range(concurrent)]
        found: dict[bool, tuple[float, list[str]]] = {}
        for is_ours in (True, False) if number % 2 else (False, True):
            found[is_ours] = one_round(ours if is_ours else other, questions, concurrent)
        if number < WARM_UP:
            continue
        mine.append(found[True][0])
        his.append(found[False][0])
        asked += concurrent
        equal += sum(a == b for a, b in zip(found[True][1], found[False][1], strict=True))
    if concurrent == 1 and equal != asked:
        sys.exit(f"only {equal} of {asked} replies are equal: nothing is comparable")
    made = concurrent * tokens
    return {
        "at once": concurrent,
        "bare tokens/s": made / statistics.median(his),
        "workbench tokens/s": made / statistics.median(mine),
        "ratio": statistics.median(b / a for a, b in zip(mine, his, strict=True)),
        "equal replies": f"{equal} of {asked}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--concurrent", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--engine", default="vllm", help="vllm or sglang")
    add_shape(parser)
    given = parser.parse_args()
    settings: dict[str, Any] = {
        "engine": given.engine,
        "dtype": given.dtype,
        "context": 1024,
        "threads": given.threads,
        "parallel": max(2, given.concurrent),
    }
    with model_for(given.shape) as source, wb.load(source, **settings) as model:
        name, other = bare(model, given.tokens)
        ours = by_workbench(model, given.tokens)
        rows = [
            compare(ours, other, concurrent=count, tokens=given.tokens, rounds=given.rounds)
            for count in dict.fromkeys((1, given.concurrent))
        ]
    this = machine()
    print(f"Machine: {this.summary()}; Python {this.python}.")
    print(
        f"{named(given.shape)}, {given.dtype}, {given.engine} on {model.plan.device}, "
        f"{given.tokens} tokens a reply, medians of {given.rounds} rounds in turns."
    )
    formats = {"bare tokens/s": ".1f", "workbench tokens/s": ".1f", "ratio": ".3f"}
    print(Table(rows, caption=f"{given.engine} through the workbench", formats=formats))
    print(f"The bare client is {name}. Command: `python {' '.join(sys.argv)}`")


if __name__ == "__main__":
    main()
