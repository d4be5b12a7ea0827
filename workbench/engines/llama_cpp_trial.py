"""Try a GGUF file in a process of its own before it is loaded here: llama.cpp aborts on some.

An assertion of llama.cpp ends the whole process, a notebook's kernel included. The trial reads the
header, makes every tensor without its memory, and a context; what passed is remembered by path,
size and time, so that a file is tried once.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.engines.child import call
from workbench.errors import ChildDiedError, EngineError
from workbench.paths import atomic_file, cache

_SECONDS = 120.0
_MOST_REMEMBERED = 500
_INSIDE = "workbench.engines.inside"


def try_out(path: Path, *, version: str, cache_types: tuple[int, int], flash: bool) -> None:
    """Open a file without memory in a child, unless that went well before.

    Args:
        path: The GGUF file, or the first of its parts.
        version: llama-cpp-python's.
        cache_types: ggml's numbers of the types of keys and values.
        flash: Whether flash attention is used.

    Raises:
        EngineError: llama.cpp refuses the file, or ends its process over it.
    """
    if _INSIDE in sys.modules:  # this process may end: it is a child, and nothing else is in it
        return
    stat = path.stat()
    state = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{version}:{cache_types}:{flash}"
    if state in _remembered():
        return
    arguments = {"path": str(path), "keys": cache_types[0], "values": cache_types[1]}
    try:
        reason = call(f"{__name__}:open_empty", {**arguments, "flash": flash}, timeout=_SECONDS)
    except ChildDiedError as error:
        said = error.message.partition("Its last words: ")[2] or error.message
        raise EngineError(
            f"llama.cpp breaks on {path.name} and would end this process: {said.strip('. ')}.",
            hint="The file is damaged, or of a kind that this version of llama.cpp does not load.",
        ) from None
    if reason:
        raise EngineError(f"llama.cpp cannot load {path.name}: {reason}.")
    _remember(state)


def open_empty(path: str, keys: int, values: int, flash: bool) -> str:
    """Return why llama.cpp refuses a file, "" when it takes it (child side)."""
    from workbench.engines.llama_cpp_library import last_words, library

    module = library()
    module.llama_backend_init()
    settings = module.llama_model_default_params()
    settings.n_gpu_layers, settings.no_alloc = 0, True
    settings.load_mode = module.LLAMA_LOAD_MODE_NONE  # a map and no memory exclude each other
    model = module.llama_model_load_from_file(path.encode(), settings)
    if not model:
        return last_words() or "it gives no reason"
    wanted = module.llama_context_default_params()
    wanted.n_ctx = wanted.n_batch = wanted.n_ubatch = 256
    wanted.type_k, wanted.type_v = keys, values
    wanted.flash_attn_type = (
        module.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else module.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    if not module.llama_init_from_model(model, wanted):
        return last_words() or "it makes no context"
    return ""


def _store() -> Path:
    return cache("gguf", "tried.json")


def _remembered() -> Mapping[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads(_store().read_text(encoding="utf-8"))
        return found
    return {}


def _remember(state: str) -> None:
    kept = dict(list(_remembered().items())[1 - _MOST_REMEMBERED :])
    with contextlib.suppress(OSError), atomic_file(_store()) as partial:
        partial.write_text(json.dumps({**kept, state: True}, indent=0), encoding="utf-8")
