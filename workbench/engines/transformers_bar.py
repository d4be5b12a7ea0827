"""The bar of transformers' loader, counted on ours: tensors read so far."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import Any

from workbench.progress import Bar, others_silent, progress

_PATIENCE = 1.0
_bar: ContextVar[Bar | None] = ContextVar("loading bar", default=None)
_lock = threading.Lock()
_blocks = 0
_before: Any = None


@contextlib.contextmanager
def weights_shown() -> Iterator[None]:
    """Count the tensors that transformers reads within the block, and keep its own bar out."""
    with others_silent(), progress("weights", unit="tensors", patience=_PATIENCE) as bar:
        token = _bar.set(bar)
        _hook(+1)
        try:
            yield
        finally:
            _hook(-1)
            _bar.reset(token)


def _hook(change: int) -> None:
    """Put our hook in for the first of several loads, the user's back after the last."""
    global _blocks, _before
    from transformers.utils import logging

    exchange = getattr(logging, "set_tqdm_hook", None)
    if exchange is None:
        return
    with _lock:
        _blocks += change
        if change > 0 and _blocks == 1:
            _before = exchange(_counted)
        elif _blocks == 0:
            exchange(_before)


def _counted(make: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Return what the library takes for its own bar; ours follows what is taken from it."""
    bar = _bar.get()
    if bar is None or not given or given[0] is None:
        return make(*given, **named)
    items = given[0]
    bar.update(done=0, total=len(items) if isinstance(items, Sized) else None)
    return make(_advancing(items, bar), *given[1:], **named)


def _advancing(items: Iterable[Any], bar: Bar) -> Iterator[Any]:
    for item in items:
        yield item
        bar.advance()
