"""The command line: parse, call one function, print."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from workbench.cli import chat, machine, models, planning, receipts, runs, work
from workbench.cli.options import app
from workbench.errors import WorkbenchError

__all__ = ["app", "chat", "machine", "main", "models", "planning", "receipts", "runs", "work"]


def _joined_parameters(arguments: Sequence[str]) -> list[str]:
    """Turn ``-p NAME VALUE`` into ``-p NAME=VALUE``."""
    joined: list[str] = []
    rest = iter(arguments)
    for word in rest:
        joined.append(word)
        if word in ("-p", "--parameter"):
            name = next(rest, "")
            joined.append(name if "=" in name else f"{name}={next(rest, '')}")
    return joined


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error of ours is one line on stderr and exit code 1."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["run"]:
        words = _joined_parameters(words)
    try:
        app(args=words)
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        raise SystemExit(130) from None
