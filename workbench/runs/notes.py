"""What a cell says to the run around it: a key number, a named output, the conclusion."""

from __future__ import annotations

import dataclasses
import html
import os
from pathlib import Path
from typing import Any

from workbench import notebook
from workbench.errors import InputError, NotFoundError
from workbench.figures.figure import rounded, short


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A key number of a run; displays itself.

    Attributes:
        name: What it is, a few words.
        value: The number, or a short text.
        unit: Its unit, or nothing.
        good: Whether it is within its limit; None where there is none.
    """

    name: str
    value: float | int | str | None
    unit: str = ""
    good: bool | None = None

    def __str__(self) -> str:
        verdict = {True: " (good)", False: " (not good)", None: ""}[self.good]
        gap = "" if self.unit in ("", "%") else " "
        return f"{self.name}: {short(self.value)}{gap}{self.unit}{verdict}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": str(self), "text/html": f"<div>{html.escape(str(self))}</div>"}


def number(name: str, value: Any, *, unit: str = "", good: bool | None = None) -> Number:
    """Record a key number: it stands on top of the run's report and in run.json.

    The last one of a name counts. Outside a run it is only returned, and displays itself.

    Args:
        name: What it is, a few words.
        value: A number (also of numpy), or a short text.
        unit: Its unit.
        good: Whether it is within its limit; None where there is none.

    Raises:
        InputError: The value is neither number nor text.
    """
    try:
        plain = rounded(value)
    except (TypeError, ValueError):
        raise InputError(
            f"The key number {name!r} is a {type(value).__name__}.",
            hint="Give a number or a short text.",
        ) from None
    made = Number(name=name, value=plain, unit=unit, good=None if good is None else bool(good))
    notebook.note("number", **dataclasses.asdict(made))
    return made


def leave(name: str, path: str | Path) -> Path:
    """Name a file or folder that this run leaves for a later step, ``${step.name}`` in a run file.

    Args:
        name: What later steps call it: letters, digits and ``_``.
        path: Where it is; must exist. Relative paths are relative to the current folder.

    Returns:
        The absolute path.

    Raises:
        NotFoundError: The path does not exist.
        InputError: The name is not usable.
    """
    if not name.isidentifier():
        raise InputError(
            f"{name!r} cannot name an output.", hint="Use letters, digits and underscores."
        )
    absolute = Path(path).expanduser().absolute()
    if not absolute.exists():
        raise NotFoundError(
            f"The output {name!r} does not exist: {path}.", hint="Write it before you name it."
        )
    folder = notebook.run_folder()
    if folder is not None:
        notebook.note("output", name=name, path=os.path.relpath(absolute, folder.absolute()))
    return absolute


def conclude(text: str) -> str:
    """Record the run's result in a sentence or two; it stands under the title of the report."""
    notebook.note("conclusion", text=str(text))
    return text
