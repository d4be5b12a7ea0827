"""The llama.cpp engine: any GGUF through llama-cpp-python, converted once from safetensors."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import importlib
import inspect
import os
import threading
import weakref
from collections import deque
from typing import Any

from workbench.catalog.header import check_gguf
from workbench.engines.llama_cpp_memory import experts_in_ram, memory_arguments
from workbench.engines.llama_cpp_session import LlamaCppSession
from workbench.errors import (
    EngineError,
    InputError,
    UnsupportedError,
    WorkbenchError,
    did_you_mean,
)
from workbench.planning import Plan

_KEPT_LINES = 60
_ALL_F32 = 0
_WARNING, _ERROR, _CONTINUED = 3, 4, 5
_OURS = {"model_path", "seed", "verbose", "chat_format", "chat_handler", "tokenizer", "kwargs"}


class _Log:
    """The last lines that llama.cpp logged, kept instead of printed into the notebook."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=_KEPT_LINES)

    def write(self, level: int, text: bytes, _: Any) -> None:
        """Take one piece of the log, as the C library gives it."""
        line = text.decode("utf-8", "replace").rstrip("\n")
        if level == _CONTINUED and self._lines:
            before, start = self._lines[-1]
            self._lines[-1] = (before, start + line)
        elif line.strip(" ."):
            self._lines.append((level, line))

    def clear(self) -> None:
        """Forget what was logged so far."""
        self._lines.clear()

    def last_words(self) -> str:
        """Return the error lines since ``clear``, else the warnings, else "" (at most three)."""
        for level in (_ERROR, _WARNING):
            found = [line for kind, line in self._lines if kind == level]
            if found:
                return "; ".join(found[-3:])
        return ""


_log = _Log()
_library_lock = threading.Lock()
_callback: Any = None
_open: weakref.WeakSet[Any] = weakref.WeakSet()


def library() -> Any:
    """Import llama_cpp; its log goes to our ring, and it leaves the process' outputs alone."""
    global _callback
    import llama_cpp

    with _library_lock:
        if _callback is None:
            _callback = llama_cpp.llama_log_callback(_log.write)
            llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))
            # Its quiet mode sends file descriptors 1 and 2 of the whole process to nowhere while a
            # model loads: other threads lose their output, and an abort its last words.
            for name in ("llama_cpp._internals", "llama_cpp.llama"):
                module: Any = importlib.import_module(name)
                if hasattr(module, "suppress_stdout_stderr"):
                    module.suppress_stdout_stderr = _leave_outputs_alone
            atexit.register(_close_all)
    return llama_cpp


def _leave_outputs_alone(disable: bool = True) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def _close_all() -> None:
    """Free native models before the interpreter tears their library down."""
    for session in list(_open):
        session.close()


class LlamaCppEngine:
    """Opens GGUF files with ``llama_cpp.Llama``."""

    name = "llama.cpp"

    def prepare(self, plan: Plan) -> Plan:
        """Return the plan with its GGUF file, converted and quantized once where needed."""
        if plan.adapter is not None:
            raise UnsupportedError(
                f"The engine llama.cpp cannot load the PEFT adapter {plan.adapter.name}.",
                hint="Merge it first (wb.merge) and load the merged model.",
            )
        if plan.gpu_layers and not library().llama_supports_gpu_offload():
            reason = "On the CPU, because this llama-cpp-python was built without a GPU."
            plan = dataclasses.replace(
                plan,
                device="cpu",
                gpu_layers=0,
                experts_on_cpu=0,
                flash_attention=None if plan.cache_type == "f16" else True,
                reasons=(*plan.reasons, reason),
            )
        if plan.files is not None and plan.files.kind == "safetensors":
            from workbench.catalog import ModelFiles
            from workbench.formats.gguf import ensure_gguf

            path = ensure_gguf(plan.files, plan.quantization)
            files = ModelFiles(path=path, kind="gguf", weights=(path,))
            plan = dataclasses.replace(plan, files=files)
        return plan

    def open(self, plan: Plan) -> LlamaCppSession:
        """Load the plan's GGUF file.

        Raises:
            FormatError: The file is cut off or corrupt.
            EngineError: llama.cpp refuses it; the message carries its last words.
        """
        plan = self.prepare(plan)
        if plan.files is None:
            raise UnsupportedError(f"The card {plan.card.id} names no file that llama.cpp loads.")
        header = check_gguf(plan.files.path)
        llama = _load(plan, exact=header.metadata.get("general.file_type") == _ALL_F32)
        session = LlamaCppSession(llama, library(), plan, last_words=_log.last_words)
        _open.add(session)
        return session


def _load(plan: Plan, *, exact: bool) -> Any:
    module = library()
    _check_options(module, plan)
    threads = plan.threads or default_threads()
    arguments = {
        "n_ctx": plan.context,
        "n_gpu_layers": plan.gpu_layers,
        "n_threads": threads,
        "n_threads_batch": threads,
        **memory_arguments(module, plan),
    }
    if (
        exact and plan.cache_type == "f16"
    ):  # a 16-bit cache would be the only rounding left in a file of 32 bits
        arguments |= {"type_k": module.GGML_TYPE_F32, "type_v": module.GGML_TYPE_F32}
    _log.clear()
    try:
        with experts_in_ram(module, plan.experts_on_cpu):
            return module.Llama(
                str(plan.files.path if plan.files else ""),
                verbose=False,
                **{**arguments, **plan.options},
            )
    except WorkbenchError:
        raise
    except Exception as error:
        said = _log.last_words()
        raise EngineError(f"llama.cpp cannot load {plan.card.id}: {said or error}.") from error


def _check_options(module: Any, plan: Plan) -> None:
    known = {*inspect.signature(module.Llama).parameters} - _OURS
    for name in plan.options:
        if name in _OURS:
            raise UnsupportedError(f"{name!r} is not an option: the workbench sets it.")
        if name not in known:  # the library takes any name and ignores it
            raise InputError(
                f"llama_cpp.Llama has no option {name!r}.", hint=did_you_mean(name, known)
            )


def default_threads() -> int:
    """Return the physical cores that this process may use: more only get into each other's way."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(allowed or 1, psutil.cpu_count(logical=False) or allowed or 1))
