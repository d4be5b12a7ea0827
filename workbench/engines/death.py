"""How a child process ended, in words: its signal, whether it was memory, and what helps."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

from workbench.machine.container import memory_kills

_MEMORY_HINT = "Try a smaller form or a shorter context."
_OUT_OF_MEMORY = frozenset({"MemoryError", "OutOfMemoryError"})
_SAID = (
    "out of memory",
    "std::bad_alloc",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate",
    "unable to allocate",
)


class Watch:
    """Tells afterwards whether the kernel ended processes for memory since it was made."""

    def __init__(self) -> None:
        self._kills = memory_kills()

    def killed_for_memory(self) -> bool:
        """Return whether the kernel's count of such kills has risen."""
        return memory_kills() > self._kills


def is_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, by its type's name or its words."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & _OUT_OF_MEMORY) or says_memory(str(error))


def says_memory(text: str) -> bool:
    """Return whether a text has the words of a failed allocation."""
    return any(words in text.lower() for words in _SAID)


def cause_of(code: int, *, killed_for_memory: bool, last_words: str) -> tuple[str, bool]:
    """Return how a child ended, as the end of a sentence, and whether memory is the likely cause.

    Args:
        code: Its return code; below 0 it is the signal.
        killed_for_memory: Whether the kernel's count of such kills rose while it lived.
        last_words: What it printed last.
    """
    said = says_memory(last_words)
    if code >= 0:
        return f"ended with exit code {code}{', out of memory' if said else ''}", said
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if -code != signal.SIGKILL:
        return f"was killed by {name}{', out of memory' if said else ''}", said
    if killed_for_memory:
        return f"was killed by {name}, by the kernel, for memory", True
    return f"was killed by {name}, probably for memory, unless somebody ended it", True


def advice(changes: Sequence[str] = ()) -> str:
    """Return what to do where memory ran out: the plan's own changes, or in general."""
    if not changes:
        return _MEMORY_HINT
    numbered = " ".join(f"({number}) {said}" for number, said in enumerate(changes, 1))
    return f"What would need less: {numbered}"


def memory_hint(error: BaseException, changes: Sequence[str] = ()) -> str | None:
    """Return the advice for an error that says memory ran out, None for others."""
    hint: Any = getattr(error, "hint", None)
    return str(hint) if hint else advice(changes) if is_memory(error) else None
