"""mlx-lm without the side effects of its import, its devices, and arrays ready for any thread."""

from __future__ import annotations

import contextlib
import importlib
import resource
import threading
from collections.abc import Iterable
from typing import Any

from workbench.errors import EngineError

_importing = threading.RLock()  # a file of this name in the user's folder may import us again


def import_library() -> None:
    """Import mlx-lm; the limit of open files stays as it is.

    mlx-lm 0.32 lowers the hard limit to 4096 as it is imported, which no process may undo: a
    server or a notebook kernel keeps that for good.
    """
    with _importing:
        original = resource.setrlimit
        resource.setrlimit = lambda *_: None
        try:
            importlib.import_module("mlx_lm")
        finally:
            resource.setrlimit = original


def on_device(device: str) -> contextlib.AbstractContextManager[Any]:
    """Return the context of a device, ``cpu`` or ``mps``; never hold it over a yield."""
    import mlx.core as mx

    chosen = mx.gpu if device == "mps" else mx.cpu
    if mx.default_device() == mx.Device(chosen):
        return contextlib.nullcontext()
    stream: contextlib.AbstractContextManager[Any] = mx.stream(chosen)
    return stream


def settle(*trees: Any) -> None:
    """Compute all arrays of models, caches and lists now, the private ones of layers too.

    An array that is not computed yet belongs to the stream of the thread that made it, and no
    other thread can compute it (``There is no Stream(cpu, 1) in current thread``).
    """
    import mlx.core as mx

    mx.eval(*trees)


def begin(*trees: Any) -> None:
    """Have all arrays computed meanwhile: they are bound to no thread from now on."""
    import mlx.core as mx

    mx.async_eval(*trees)  # type: ignore[no-untyped-call]


def states(cache: Iterable[Any]) -> list[Any]:
    """Return what a prompt cache holds, layer by layer."""
    return [layer.state for layer in cache]


def check_finite(finite: Any) -> None:
    """Refuse to go on where the largest logit of a prompt is no number.

    Raises:
        EngineError: As it says.
    """
    if not bool(finite.item()):
        raise EngineError(
            "The model's output is not a number (NaN or infinite).",
            hint="Its dtype may be too small for these weights: try dtype='bf16' or 'fp32'.",
        )
