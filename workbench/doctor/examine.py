"""What the doctor does inside a child process: import packages, make files, ask the model."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MODEL = "tiny-chat"
_CONTEXT = 256
_MOST_TOKENS = 24
_NAMES_A_PACKAGE = (
    re.compile(r"No module named '(\w+)"),
    re.compile(r"import of (\w+) halted"),
    re.compile(r"No package metadata was found for ([\w-]+)"),
    re.compile(r"requires (?:the latest version of )?`?([A-Za-z][\w-]*)`?: `?pip install"),
)


def imports(
    *, packages: Sequence[str], optional: Sequence[str], progress: Callable[[Any], None]
) -> dict[str, Any]:
    """Import packages one after the other, each told before it is tried.

    Args:
        packages: What the engine cannot do without.
        optional: What only some forms need; it is looked for, not imported.
        progress: Takes the name of the package that comes next.

    Returns:
        ``missing`` names, or the ``broken`` one with ``type`` and ``message``, or ``builds`` (what
        PyTorch and llama.cpp were built for) and ``absent`` (of the optional ones).
    """
    missing = [name for name in packages if not _installed(name)]
    if missing:
        return {"missing": missing}
    for name in packages:
        progress(name)
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a package does on import is the finding
            return {"broken": name, "type": type(error).__name__, "message": str(error)}
    absent = [name for name in optional if not _installed(name)]
    return {"builds": _builds(), "absent": absent}


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name.partition(".")[0]) is not None


def _builds() -> dict[str, Any]:
    """Return what imported packages say of themselves, as plain data."""
    found: dict[str, Any] = {}
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        version = getattr(torch, "version", None)
        found["torch"] = {
            "version": str(torch.__version__),
            "cuda": getattr(version, "cuda", None) or getattr(version, "hip", None),
            "usable": bool(torch.cuda.is_available()),
        }
    llama: Any = sys.modules.get("llama_cpp")
    if llama is not None and hasattr(llama, "llama_supports_gpu_offload"):
        found["llama_cpp"] = {"offload": bool(llama.llama_supports_gpu_offload())}
    return found


def make(*, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Make the files that a form needs, once; a form that needs none is done at once."""
    return _told(lambda: {"files": str(_prepared(settings)[1].files is not None)})


def ask(*, settings: Mapping[str, Any], questions: Sequence[str]) -> dict[str, Any]:
    """Load the embedded model in one form and ask it.

    Returns:
        ``answers``, ``device``, ``dtype``, ``load_seconds``, ``answer_seconds`` and ``tokens``, or
        what ``_told`` says of an error.
    """
    return _told(lambda: _ask(settings, questions))


def _ask(settings: Mapping[str, Any], questions: Sequence[str]) -> dict[str, Any]:
    from workbench.messages import Message, Reply, Sampling

    back_end, planned = _prepared(settings)
    began = time.perf_counter()
    session = back_end.open(planned)
    loaded = time.perf_counter()
    try:
        sampling = Sampling(max_tokens=_MOST_TOKENS)
        replies = [
            Reply.joined(session.stream([Message("user", text)], sampling), model=MODEL)
            for text in questions
        ]
    finally:
        session.close()
    return {
        "answers": [reply.text for reply in replies],
        "device": planned.device,
        "dtype": planned.dtype,
        "load_seconds": loaded - began,
        "answer_seconds": time.perf_counter() - loaded,
        "tokens": sum(reply.usage.completion_tokens for reply in replies if reply.usage),
    }


def _prepared(settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the engine and the finished plan, whose files are there."""
    from workbench.engines.registry import engine
    from workbench.planning import plan

    os.environ["WORKBENCH_QUIET"] = "1"  # the bar is drawn by the parent
    planned = plan(MODEL, context=_CONTEXT, **settings)
    back_end = engine(planned.engine)
    prepare = getattr(back_end, "prepare", None)
    return back_end, prepare(planned) if prepare is not None else planned


def _told(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what the work returns, or ``error`` (type, message, hint) and ``missing`` names."""
    from workbench.engines import plain

    try:
        return work()
    except Exception as error:
        found = [match[1] for shape in _NAMES_A_PACKAGE for match in shape.finditer(str(error))]
        missing = sorted({name for name in found if not _installed(name.replace("-", "_"))})
        return {"error": plain.from_error(error), "missing": missing}
