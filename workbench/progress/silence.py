"""Keep the bars of other libraries silent while our code calls them."""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterator

_lock = threading.RLock()
_silent_blocks = 0
_restore: list[Callable[[], None]] = []


@contextlib.contextmanager
def others_silent() -> Iterator[None]:
    """Keep the bars of libraries out of the block; what the user had set holds again afterwards.

    Blocks may be nested and may overlap in several threads. Only libraries that are imported when
    a block begins are silenced: import before.
    """
    global _silent_blocks
    with _lock:
        _silent_blocks += 1
        _restore.extend(_silenced())
    try:
        yield
    finally:
        with _lock:
            _silent_blocks -= 1
            if _silent_blocks == 0:
                while _restore:
                    _restore.pop()()


def _silenced() -> Iterator[Callable[[], None]]:
    """Switch off the bars of the libraries that are imported, and yield what undoes each."""
    hub = sys.modules.get("huggingface_hub.utils.tqdm")
    if hub is not None:
        states, before = hub.progress_bar_states, dict(hub.progress_bar_states)
        yield lambda: states.update(before)
        yield states.clear
        _switch(hub.disable_progress_bars)
    data = sys.modules.get("datasets.utils")
    if data is not None and not data.are_progress_bars_disabled():
        _switch(data.disable_progress_bars)
        yield data.enable_progress_bars
    models = sys.modules.get("transformers.utils.logging")
    if models is not None and models.is_progress_bar_enabled():
        _switch(models.disable_progress_bar)
        yield models.enable_progress_bar


def _switch(change: Callable[[], object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variable of the user's may forbid it, and wins
        change()
