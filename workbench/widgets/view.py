"""What our widgets share: numbered messages to the front end, checked ones from it.

A view has no synced state but its script: whatever it shows travels in messages, so that nothing
ends in a notebook's metadata, and a front end that missed one asks for the whole state again.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import importlib.util
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from workbench import notebook
from workbench.errors import InputError, MissingPackageError, WorkbenchError, did_you_mean
from workbench.widgets import assets

Handler = Callable[[Mapping[str, Any]], object]
HELLO, STATE, ERROR = "hello", "state", "error"
_PACKAGES = ("anywidget", "ipywidgets", "IPython")
_LOSES_MESSAGES = (7, 0), (7, 4)
_MIME = "application/vnd.jupyter.widget-view+json"
_open: weakref.WeakSet[View] = weakref.WeakSet()


def require_packages() -> None:
    """Refuse where the packages of live widgets are not installed.

    Raises:
        MissingPackageError: One is not.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"A live widget needs {', '.join(missing)}, which is not installed.",
            hint="pip install 'llm-workbench[lab]', then restart the kernel.",
        )


class View:
    """A widget of ours as the kernel sees it.

    Messages go out in order with ``seq`` counting from 1; any thread may send. Messages that come
    in are checked for their type; what a handler raises goes back as one ``error`` message and
    never into the output of some cell. ``hello`` is answered by ``state`` with everything.

    Args:
        entry: Name of the widget in ``assets``.
        state: Returns the whole state, called with ``lock`` held.
        handlers: What to do for each type of message but ``hello``; they must return soon, since
            all widgets of a kernel share one thread.
        lock: Held while a message is numbered and sent; share it to keep state and messages in
            step.

    Attributes:
        lock: As given.
        greeted: Whether a front end ever said hello; nothing is sent before.
        subshell: Whether messages arrive beside a running cell (a front end with subshells).
    """

    def __init__(
        self,
        entry: str,
        *,
        state: Callable[[], Mapping[str, Any]],
        handlers: Mapping[str, Handler],
        lock: threading.RLock | None = None,
    ) -> None:
        require_packages()
        self.lock: Any = lock or threading.RLock()
        self.greeted = False
        self.subshell = False
        self._state, self._handlers = state, handlers
        self._number = 0
        self._widget: Any = _widget_class(entry)()
        _guard(getattr(self._widget, "comm", None))
        _warn_of_lost_messages()
        self._widget.on_msg(self._arrived)
        _open.add(self)

    @property
    def model_id(self) -> str:
        """The widget's id in the front end."""
        return str(self._widget.model_id) if self._widget is not None else ""

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._widget is None

    def send(self, kind: str, **values: Any) -> None:
        """Send one message to every front end; one that cannot be reached is no error here."""
        with self.lock:
            if self._widget is None or not self.greeted:
                return
            self._number += 1
            with contextlib.suppress(Exception):  # the connection is the front end's to renew
                self._widget.send({"type": kind, "seq": self._number, **values})

    def fail(self, error: BaseException) -> None:
        """Tell the front end what went wrong."""
        self.send(ERROR, **told(error))

    def send_state(self, view: str | None = None) -> None:
        """Send the whole state; ``view`` names the one that asked for it."""
        with self.lock:
            if self.greeted:
                self.send(STATE, view=view, **self._state())

    def _arrived(self, widget: Any, content: Any, buffers: Any) -> None:
        self.receive(content)

    def receive(self, content: Any) -> None:
        """Take one message of the front end; it may be anything."""
        with self.lock:
            if threading.current_thread() is not threading.main_thread():
                self.subshell = True
        try:
            kind, values = _checked(content, (HELLO, *self._handlers))
            if kind == HELLO:
                view, self.greeted = values.get("view"), True
                self.send_state(view if isinstance(view, str) else None)
            else:
                self._handlers[kind](values)
        except Exception as error:
            self.fail(error)

    def show(self) -> None:
        """Display the widget in the cell that runs."""
        spec = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        display = importlib.import_module("IPython.display")
        # No text/html beside it: a saved state would win over it; the static copy is an output
        # of its own.
        display.display({_MIME: spec, "text/plain": ""}, raw=True)

    def close(self) -> None:
        """Take the widget out of the front ends; safe to call twice."""
        with self.lock:
            widget, self._widget = self._widget, None
        _open.discard(self)
        if widget is not None:
            with contextlib.suppress(Exception):
                widget.close()


class StaticCopy:
    """An output that stands beside a live view and is replaced wherever it is shown."""

    def __init__(self) -> None:
        self._id = f"workbench-{id(self):x}-{threading.get_ident():x}"
        self.shown = False

    def show(self, bundle: Mapping[str, str]) -> None:
        """Display it in the cell that runs."""
        display = importlib.import_module("IPython.display")
        display.display(dict(bundle), raw=True, display_id=self._id)
        self.shown = True

    def update(self, bundle: Mapping[str, str]) -> None:
        """Replace it in all cells that show it; any thread may."""
        if not self.shown or not notebook.in_kernel():
            return
        display = importlib.import_module("IPython.display")
        with contextlib.suppress(Exception):  # the kernel may be going down
            display.update_display(dict(bundle), raw=True, display_id=self._id)


def told(error: BaseException) -> dict[str, str | None]:
    """Return an error as ``message`` and ``hint``."""
    if isinstance(error, WorkbenchError):
        return {"message": error.message, "hint": error.hint}
    return {"message": f"{type(error).__name__}: {error}", "hint": None}


def _checked(content: Any, known: tuple[str, ...]) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(content, Mapping) or not isinstance(content.get("type"), str):
        raise InputError("A message of the front end has no type.")
    kind = content["type"]
    if kind not in known:
        raise InputError(
            f"The front end sent a message of the unknown type {kind[:40]!r}.",
            hint=did_you_mean(kind[:40], known),
        )
    return kind, content


@functools.cache
def _widget_class(entry: str) -> Any:
    anywidget = importlib.import_module("anywidget")
    names = {"_esm": assets.script(entry), "_css": assets.style(entry), "__doc__": entry}
    return type(f"{entry.capitalize()}Widget", (anywidget.AnyWidget,), names)


def _guard(comm: Any) -> None:
    """Let a front end choose the thread that its messages run in.

    ipykernel 7.4 answers in the shell of the last message that a comm sent: a widget that was made
    in a cell would then wait for the cell that runs. It asks this method first.
    """
    if comm is not None and hasattr(comm, "_reply_subshell_for"):
        with contextlib.suppress(AttributeError):
            comm._reply_subshell_for = _as_asked


@functools.cache
def _warn_of_lost_messages() -> None:
    """Say once that this ipykernel may stop to hear its front end.

    Its answers go past the stream that reads the socket and can swallow the wake-up of a message
    that came in the meantime (github.com/ipython/ipykernel/pull/1529, mended in 7.4).
    """
    if not notebook.in_kernel():
        return
    ipykernel = importlib.import_module("ipykernel")
    first, mended = _LOSES_MESSAGES
    if first <= ipykernel.version_info[:2] < mended:
        warnings.warn(
            f"ipykernel {ipykernel.__version__} may lose a message of the front end, and the "
            "notebook then waits for ever until its page is reloaded. "
            "pip install 'ipykernel>=7.4', then restart the kernel.",
            stacklevel=2,
        )


def _as_asked(data: Any = None, default: Any = None, *_: Any, **__: Any) -> Any:
    return default


@atexit.register
def _close_all() -> None:
    for view in list(_open):
        view.close()
