"""Start-up of the catalog as a process, beside an empty Python, in turns.

    python benchmarks/catalog.py [--rounds 9] [--cards 0] [--receipts 0]

Each round starts ``python -c pass``, ``import workbench``, ``workbench --help``, ``workbench
models`` and a search once, in turns; the table has medians of the time from start to end.
``--cards`` adds throw-away cards and ``--receipts`` throw-away receipts, in a home of their own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from workbench.catalog import catalog
from workbench.figures import Table
from workbench.machine import machine
from workbench.receipts import Receipt, write

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import workbench": ["-c", "import workbench"],
    "workbench --help": ["-m", "workbench.cli", "--help"],
    "workbench models": ["-m", "workbench.cli", "models"],
    "workbench models qwen --language ja": [
        *("-m", "workbench.cli", "models", "qwen", "--language", "ja"),
    ],
    "workbench receipts": ["-m", "workbench.cli", "receipts"],
}
CARD = """id: {id}
repository: nobody/{id}
context_length: 32768
architecture: {{model_type: llama, parameters: {parameters}, layers: 32, hidden_size: 4096}}
licence: MIT
languages: [en, ja]
tasks: [chat]
notes: A card that is thrown away.
"""


def seconds(arguments: list[str], home: Path) -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        check=True,
        env=surroundings(home),
    )
    return time.perf_counter() - began


def surroundings(home: Path) -> dict[str, str]:
    """As a user has it: compiled modules are kept, here in the home that is thrown away."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "WORKBENCH_HOME": str(home), "PYTHONPYCACHEPREFIX": str(home / "compiled")}


def fill(home: Path, *, cards: int, receipts: int) -> None:
    folder = home / "outputs" / "models" / "cards"
    folder.mkdir(parents=True)
    for number in range(cards):
        text = CARD.format(id=f"thrown-{number}", parameters=(number + 1) * 10**7)
        (folder / f"thrown-{number}.yaml").write_text(text, encoding="utf-8")
    facts = machine()
    for number in range(receipts):
        receipt = Receipt(
            what="load",
            model=f"thrown-{number % max(cards, 1)}",
            outcome="done" if number % 3 else "failed",
            plan={"engine": "transformers", "quantization": "none", "context": 2048},
            machine=facts.describe(),
            versions=facts.versions,
        )
        write(receipt, folder=home / "outputs" / "receipts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cards", type=int, default=0)
    parser.add_argument("--receipts", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        fill(home, cards=given.cards, receipts=given.receipts)
        times: dict[str, list[float]] = {command: [] for command in COMMANDS}
        for _ in range(given.rounds + 1):
            for command, arguments in COMMANDS.items():
                times[command].append(seconds(arguments, home))
    base = statistics.median(times["python -c pass"][1:])
    rows = [
        {
            "command": command,
            "median_s": statistics.median(
                found[1:]
            ),  # the first one compiles, and fills the disk's cache
            "least_s": min(found[1:]),
            "over": statistics.median(found[1:]) - base,
        }
        for command, found in times.items()
    ]
    shown = Table(
        rows,
        columns={
            "command": "command",
            "median_s": "median (s)",
            "least_s": "least (s)",
            "over": "over an empty Python (s)",
        },
        formats=dict.fromkeys(("median_s", "least_s", "over"), ".3f"),
        caption=f"{len(catalog()) + given.cards} cards, {given.receipts} receipts, "
        f"{given.rounds} rounds",
    )
    print(shown)
    print(f"\n{machine().summary()}, Python {machine().python}")
    print(f"python benchmarks/catalog.py --rounds {given.rounds} --cards {given.cards} ", end="")
    print(f"--receipts {given.receipts}")


if __name__ == "__main__":
    main()
