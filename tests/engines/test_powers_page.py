"""The table of powers is that of the data, and the data are those of tests that exist."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import workbench as wb
from workbench.catalog.capabilities import engine_facts
from workbench.engines.base import Power

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = json.loads((ROOT / "data" / "powers.json").read_text(encoding="utf-8"))
SHOWN = [(engine, power) for engine, powers in DATA["shown"].items() for power in powers]


def test_the_table_in_the_guide_is_current() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "powers.py"), "--check"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(("engine", "power"), SHOWN)
def test_what_is_shown_is_stated_and_named_by_tests_that_note_it(engine: str, power: str) -> None:
    assert power in engine_facts()[engine].powers
    tests = DATA["shown"][engine][power]["tests"]
    assert tests
    for test in tests:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        (function,) = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name == name
        ]
        assert "shows" in [argument.arg for argument in function.args.args]


def test_the_engines_that_run_here_are_shown_where_it_counts() -> None:
    basic = {Power.TOKENIZE, Power.RENDER, Power.COMPLETE}
    for engine in ("transformers", "llama.cpp", "mlx", "llama-server", "openai", "scripted"):
        assert basic <= set(DATA["shown"][engine]), engine
    for engine in ("transformers", "llama.cpp", "mlx"):
        for power in (Power.SCORE, Power.LOGPROBS, Power.ADAPTERS):
            ways = " ".join(DATA["shown"][engine][power]["ways"])
            assert "in this process" in ways
    assert not {"sglang", "tensorrt-llm"} & set(DATA["shown"]), "neither was ever started here"


def test_the_display_of_engines_tells_stated_from_shown() -> None:
    table = wb.engines()
    text = repr(table)
    assert "powers         tokenize, render, complete" in text
    assert "(images)" in text
    assert table.note in text
    assert table["transformers"].shown == set(DATA["shown"]["transformers"])
    assert table["scripted"].lacks["score"] == "A script has no probabilities."
    assert all(len(line) <= 110 for line in text.splitlines())
    page = table._repr_mimebundle_()["text/html"]
    assert "<b>powers</b>" in page
    assert "(images)" in page
