"""Where a chat or an arena is seen: live with a static copy below, as that in batch, or printed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from workbench import notebook
from workbench.chats.markdown import clean
from workbench.widgets.view import StaticCopy, View, require_packages

if TYPE_CHECKING:
    from workbench.widgets.view import Handler


class Copy(Protocol):
    """A static copy as of now."""

    def _repr_mimebundle_(self) -> dict[str, str]: ...


class Surface:
    """The outputs of one chat or arena.

    Args:
        entry: Name of its widget.
        copy: Returns a static copy as of now, which the live view with that id hides.
        text: Returns it as text for a terminal.
        state: The whole state for a front end.
        handlers: What a front end may ask for.
        lock: The chat's.
    """

    def __init__(
        self,
        entry: str,
        *,
        copy: Callable[[str | None], Copy],
        text: Callable[[], str],
        state: Callable[[], Mapping[str, Any]],
        handlers: Mapping[str, Handler],
        lock: Any,
    ) -> None:
        if notebook.in_kernel() and notebook.live():
            require_packages()  # told where the chat is made, not where it is displayed
        self._entry, self._static, self._text = entry, copy, text
        self._state, self._handlers, self._lock = state, handlers, lock
        self._view: View | None = None
        self._copy = StaticCopy()

    @property
    def seen(self) -> bool:
        """Whether a front end draws what is sent."""
        return self._view is not None and self._view.greeted

    @property
    def live_id(self) -> str | None:
        """What the live view and its copy know each other by."""
        return self._view.model_id or None if self._view is not None else None

    def tell(self, kind: str, **values: Any) -> None:
        """Send one message to the front end, if there is one."""
        view = self._view
        if view is None:
            return
        if kind == "state":
            view.send_state()
            return
        if kind == "busy":
            values["subshell"] = view.subshell
        view.send(kind, **values)

    def show(self) -> None:
        """Show the chat in the cell that runs."""
        if not notebook.in_kernel():
            sys.stdout.write(f"{self._text()}\n")
            return
        if notebook.live():
            if self._view is None:
                self._view = View(
                    self._entry, state=self._whole, handlers=self._handlers, lock=self._lock
                )
            self._view.show()
        self._copy.show(self._bundle())

    def ensure(self) -> None:
        """Show the chat in this cell where no cell of a notebook shows it yet."""
        if notebook.in_kernel() and not self._copy.shown:
            self.show()

    def update(self) -> None:
        """Bring the static copy up to date, wherever it is shown."""
        if self._copy.shown:
            with contextlib.suppress(Exception):  # a copy is no reason to lose an answer
                self._copy.update(self._bundle())

    def close(self) -> None:
        """Take the live view out of the notebook; the copy stays and is seen then."""
        if self._view is not None:
            self._view.close()

    def _whole(self) -> dict[str, Any]:
        """Return the state with what the outputs know."""
        beside = self._view is not None and self._view.subshell
        return {**self._state(), "subshell": beside, "live": self.live_id}

    def _bundle(self) -> dict[str, str]:
        return self._static(self.live_id)._repr_mimebundle_()


class Printer:
    """Prints an answer as it grows, where somebody sits at a terminal."""

    def __init__(self) -> None:
        self._written = 0
        self._on = not notebook.in_kernel() and sys.stdout.isatty()

    def follow(self, text: str) -> None:
        """Write what is new of a text that grows."""
        if self._on and len(text) > self._written:
            sys.stdout.write(clean(text[self._written :]))
            sys.stdout.flush()
            self._written = len(text)

    def end(self, text: str) -> None:
        """Write the rest and end the line."""
        self.follow(text)
        if self._on and text:
            sys.stdout.write("\n")
