"""The JavaScript and CSS of a widget: files of this package, joined in a written order."""

from __future__ import annotations

import functools
from pathlib import Path

from workbench.chats.formulas import formula_style
from workbench.errors import NotFoundError

_FOLDER = Path(__file__).resolve().parent
_FILES: dict[str, tuple[str, ...]] = {
    "chat": ("js/tree.js", "js/chat_*.js", "js/chat.js"),
    "arena": ("js/tree.js", "js/chat_*.js", "js/arena_*.js", "js/arena.js"),
    "curves": ("js/curves.js",),
}
"""Widget -> its scripts; a pattern stands for its files by name, the last has the export."""
_STYLES: dict[str, tuple[str, ...]] = {
    "chat": ("css/chat*.css",),
    "arena": ("css/chat*.css", "css/arena.css"),
    "curves": ("css/curves.css",),
}


@functools.cache
def script(widget: str) -> str:
    """Return the ES module of a widget as one text.

    The files are joined as they are: only the last has ``export default``, none imports anything.

    Raises:
        NotFoundError: The installation is incomplete.
    """
    return _joined(_FILES[widget])


@functools.cache
def style(widget: str) -> str:
    """Return the CSS of a widget as one text."""
    formulas = [] if widget == "curves" else [formula_style()]
    return "\n".join([_joined(_STYLES[widget]), *formulas])


def _joined(names: tuple[str, ...]) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for name in names for path in _found(name))


def _found(name: str) -> list[Path]:
    found = sorted(_FOLDER.glob(name))
    if not found:
        raise NotFoundError(
            f"workbench/widgets/{name} does not ship with this installation.",
            hint="Install the package again: its files are missing.",
        )
    return found
