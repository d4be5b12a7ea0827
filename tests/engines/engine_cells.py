"""Functions that the tests run in child processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from workbench.errors import FormatError


def double(number: int) -> dict[str, Any]:
    return {"doubled": number * 2, "pid": os.getpid(), "text": "猫"}


def count(to: int, progress: Callable[[Any], None]) -> int:
    for number in range(to):
        progress({"done": number})
    return to


def count_slowly(to: int, progress: Callable[[Any], None]) -> None:
    for number in range(to):
        time.sleep(0.02)
        progress(number)


def refuse() -> None:
    raise FormatError("the file is sour", hint="Sweeten it.")


def stumble() -> None:
    raise ZeroDivisionError("one over nothing")


def return_an_object() -> object:
    return object()


def die(how: str) -> None:
    print("GGML_ASSERT(what is wrong) failed", file=sys.stderr, flush=True)
    if how == "abort":
        os.abort()
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def wait_with_a_file(path: str) -> None:
    """Say who we are, then wait to be ended."""
    with open(path, "w") as stream:
        stream.write(str(os.getpid()))
    time.sleep(600)
