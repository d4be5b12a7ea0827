"""How a plan's cache, attention, devices and experts are told to llama.cpp."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import InputError, UnsupportedError, did_you_mean
from workbench.planning import Plan

_EXPERTS = r"blk\.{layer}\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""Tensors of one layer's experts, as llama.cpp's own option for them names them."""
_CACHE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20,
    "bf16": 30,
}  # fmt: skip
"""ggml's numbers of the types that llama.cpp's own programs allow in a cache."""
_patching = threading.Lock()


class _Override(ctypes.Structure):
    """``llama_model_tensor_buft_override``: tensors by pattern, and where they go."""

    _fields_ = [("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p)]


def memory_arguments(module: Any, plan: Plan) -> dict[str, Any]:
    """Return the arguments of ``llama_cpp.Llama`` that follow a plan's memory.

    Raises:
        InputError: There is no such cache type.
    """
    found: dict[str, Any] = {}
    if plan.cache_type != "f16":
        kind = cache_type(plan.cache_type)
        found |= {"type_k": kind, "type_v": kind}
    if plan.flash_attention is not None:
        found["flash_attn"] = plan.flash_attention
    if plan.device == "cuda":
        if plan.tensor_parallel == 1:
            found["split_mode"] = module.LLAMA_SPLIT_MODE_NONE
        else:
            found["tensor_split"] = [1.0] * plan.tensor_parallel
    return found


def cache_type(name: str) -> int:
    """Return ggml's number of a type by its name, ``f16`` or ``q8_0``.

    Raises:
        InputError: There is no such type.
    """
    if name not in _CACHE_TYPES:
        raise InputError(
            f"llama.cpp has no cache type {name!r}.", hint=did_you_mean(name, _CACHE_TYPES)
        )
    return _CACHE_TYPES[name]


@contextlib.contextmanager
def experts_in_ram(module: Any, layers: int) -> Iterator[None]:
    """Keep the experts of the first ``layers`` layers in RAM while a model is loaded."""
    if not layers:
        yield
        return
    with tensors_in_ram(module, [_EXPERTS.format(layer=layer) for layer in range(layers)]):
        yield


@contextlib.contextmanager
def tensors_in_ram(module: Any, patterns: Sequence[str]) -> Iterator[None]:
    """Keep the tensors whose names match in RAM while a model is loaded.

    llama-cpp-python has no argument for that, so the default parameters that it starts from carry
    it for the time of the block.

    Raises:
        UnsupportedError: This build of llama.cpp does not tell its buffer of the CPU.
    """
    buffer = _cpu_buffer(module)
    overrides = (_Override * (len(patterns) + 1))(
        *(_Override(pattern.encode(), buffer) for pattern in patterns)
    )
    library: Any = importlib.import_module("llama_cpp.llama_cpp")
    with _patching:
        original, owner = library.llama_model_default_params, threading.get_ident()

        def with_overrides() -> Any:
            parameters = original()
            if threading.get_ident() != owner:  # it loads another model
                return parameters
            parameters.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
            return parameters

        library.llama_model_default_params = with_overrides
        try:
            yield
        finally:
            library.llama_model_default_params = original


def _cpu_buffer(module: Any) -> int:
    """Return the address of ggml's buffer type for plain RAM."""
    folder = Path(module.__file__).parent / "lib"
    for path in sorted(folder.glob("*ggml-base*")) + sorted(folder.glob("*ggml-cpu*")):
        function = getattr(ctypes.CDLL(str(path)), "ggml_backend_cpu_buffer_type", None)
        if function is not None:
            function.restype = ctypes.c_void_p
            return int(function())
    raise UnsupportedError(
        "This build of llama.cpp cannot keep experts in RAM.",
        hint="Give experts_on_cpu=0, and gpu_layers= for fewer layers on the GPU.",
    )
