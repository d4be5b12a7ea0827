"""The command line says what the functions say; errors are one line, without a trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.cli import _joined_parameters


def workbench(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workbench.cli", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=300,
        env={**os.environ, "COLUMNS": "200"},
        check=False,
    )


def test_parameter_pairs_are_joined() -> None:
    words = ["run", "20_compare", "-p", "limit", "5", "-p", "model=x", "-f", "a.yaml"]
    assert _joined_parameters(words) == [
        *("run", "20_compare", "-p", "limit=5", "-p", "model=x", "-f", "a.yaml")
    ]


def test_models_lists_the_embedded_model() -> None:
    done = workbench("models")
    assert done.returncode == 0
    assert "tiny-chat" in done.stdout


def test_an_error_is_one_line_and_exit_1() -> None:
    done = workbench("plan", "tiny-chta")
    assert done.returncode == 1
    assert "tiny-chat" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "20_compare", "-p", "limt", "5"], ["limt", "limit"]),
        (["run", "20_compare", "-p", "limit", "many"], ["limit", "many"]),
        (["run", "20_compar"], ["20_compare"]),
        (["load", "tiny-chat", "--engine", "lama.cpp"], ["llama.cpp"]),
        (["load", "tiny-chat", "--engine", "llama.cpp", "--quantization", "nf4"], ["nf4"]),
    ],
)
def test_bad_input_names_what_is_near(arguments: list[str], words: list[str], home: Path) -> None:
    done = workbench(*arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not list((home / "outputs").glob("runs/*/run.json"))


def test_load_asks_and_shows_the_timings() -> None:
    done = workbench("load", "tiny-chat", "--ask", "What is 3 + 4?", "--max-tokens", "32")
    assert done.returncode == 0, done.stderr
    assert "7" in done.stdout
    assert "TTFT" in done.stdout


def test_chat_remembers_and_ends_at_the_end_of_input() -> None:
    done = workbench("chat", "tiny-chat", stdin="What is 3 + 4?\nWho are you?\n")
    assert done.returncode == 0, done.stderr
    assert "7" in done.stdout
    assert "Tiny Chat" in done.stdout
