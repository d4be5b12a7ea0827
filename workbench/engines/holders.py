"""Who still holds an object: names of variables, frames, threads and outputs, found from it."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from types import FrameType, GeneratorType, ModuleType
from typing import Any

from workbench.notebook import in_kernel

_DEPTH = 8
_WIDTH = 300  # referrers followed at each step: a search that grows wider finds no name anyway
_MOST = 6
_OWN = ("workbench.engines.model", "workbench.engines.unload", "workbench.engines.holders")
_HISTORY = ("Out", "_oh")


def holders(objects: Sequence[Any]) -> tuple[str, ...]:
    """Return the names of what keeps the objects alive, at most six; empty when none is found.

    Referrers are followed from the objects upwards until something has a name: a variable of a
    module or of the notebook, a local of a running function, a frame that an error keeps.

    Args:
        objects: What should be gone.
    """
    names: list[str] = []
    seen = {id(each) for each in objects}
    through = dict.fromkeys(seen, "")
    layer: list[Any] = list(objects)
    modules = _namespaces()
    for _ in range(_DEPTH):
        if not layer or len(names) >= _MOST:
            break
        here = {id(each): through.get(id(each), "") for each in layer}
        names += _running(here)
        found = gc.get_referrers(*layer)
        above: list[Any] = []
        for each in found:
            if id(each) in seen or each is layer or each is found or _is_ours(each):
                continue
            seen.add(id(each))
            way = next((here[id(part)] for part in _parts(each) if id(part) in here), "")
            if id(each) in modules:
                names += _variables(each, modules[id(each)], here)
            else:
                through[id(each)] = _way(each, way, here)
                above.append(each)
        layer = above[:_WIDTH]
    return tuple(dict.fromkeys(names))[:_MOST]


def _namespaces() -> dict[int, str]:
    found: dict[int, str] = {}
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType):
            found.setdefault(id(vars(module)), name)  # multiprocessing gives __main__ two names
    return found


def _variables(namespace: dict[str, Any], module: str, here: dict[int, str]) -> Iterator[str]:
    for name, value in list(namespace.items()):
        if id(value) not in here:
            continue
        way = here[id(value)]
        if name in _HISTORY:
            yield f"the notebook's output history{way}"
        elif module == "__main__" and in_kernel():
            yield f"the variable {name} in the notebook{way}"
        else:
            yield f"the variable {name} of {module}{way}"


def _way(each: Any, below: str, here: Collection[int]) -> str:
    """Return how an object leads to what it holds, to be put behind the name of what holds it."""
    if isinstance(each, FrameType):
        local = next((name for name, value in _locals(each) if id(value) in here), "a value")
        return f" (an error that keeps {local} of {_place(each)})"
    if isinstance(each, GeneratorType):
        return f" (the generator {each.__qualname__}, not read to its end)"
    if below or isinstance(each, dict | list | tuple | set | BaseException):
        return below
    kind = type(each)
    return below if kind.__module__ in ("builtins", "types") else f" (a {kind.__qualname__})"


def _running(here: dict[int, str]) -> Iterator[str]:
    """Yield the locals of running functions that are among the objects."""
    threads = {thread.ident: thread for thread in threading.enumerate()}
    for ident, top in sys._current_frames().items():
        frame: FrameType | None = top
        while frame is not None:
            if frame.f_globals.get("__name__") not in _OWN and frame.f_code.co_name != "<module>":
                for name, value in _locals(frame):
                    if id(value) in here:
                        where = _thread(threads.get(ident))
                        yield f"the local {name} of {_place(frame)}{where}{here[id(value)]}"
            frame = frame.f_back


def _thread(thread: threading.Thread | None) -> str:
    if thread is None or thread is threading.main_thread():
        return ", which is running"
    return f", running in the thread {thread.name!r}"


def _place(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_qualname}() at {code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}"


def _locals(frame: FrameType) -> list[tuple[str, Any]]:
    return [] if frame.f_locals is frame.f_globals else list(frame.f_locals.items())


def _parts(each: Any) -> list[Any]:
    return gc.get_referents(each)


def _is_ours(each: Any) -> bool:
    return isinstance(each, FrameType) and each.f_globals.get("__name__") in _OWN
