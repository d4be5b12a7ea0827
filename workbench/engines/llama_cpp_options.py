"""The arguments of ``llama_cpp.Llama`` that follow a plan, and its options by name."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.engines.llama_cpp_memory import cache_type, memory_arguments
from workbench.errors import InputError, UnsupportedError, did_you_mean
from workbench.planning import Plan

_SET_HERE = {
    "model_path", "seed", "verbose", "chat_format", "chat_handler", "tokenizer", "kwargs",
    "n_ctx", "n_gpu_layers", "lora_path", "lora_base", "lora_scale", "vocab_only", "draft_model",
    "logits_all",
}  # fmt: skip
_SAID = {
    "n_ctx": "Give context= instead.",
    "n_gpu_layers": "Give gpu_layers= instead.",
    "lora_path": "Give adapter= instead.",
}
_COUNTS = ("n_batch", "n_ubatch", "n_threads", "n_threads_batch")
_SWITCHES = (
    "use_mmap", "use_mlock", "flash_attn", "offload_kqv", "embedding", "prefix_reuse", "swa_full",
)  # fmt: skip
_FLOATS = ("f32", "f16", "bf16")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OwnOptions:
    """Options of this engine that are none of the library.

    Attributes:
        prefix_reuse: Keep the KV cache of the last turn and prefill only what is new.
        projector: Multimodal projector (mmproj) in GGUF, or None.
    """

    prefix_reuse: bool = True
    projector: Path | None = None

    @classmethod
    def of(cls, plan: Plan) -> OwnOptions:
        """Return those of a plan; the card's projector counts where none is given."""
        given = plan.options.get("projector")
        projector = Path(given).expanduser() if given else plan.card.expanded_projector()
        return cls(
            prefix_reuse=bool(plan.options.get("prefix_reuse", True)),
            projector=projector,
        )


def check_options(module: Any, options: Mapping[str, Any]) -> None:
    """Refuse an option that neither the library nor this engine has, or of another kind.

    Raises:
        UnsupportedError: The workbench sets it itself.
        InputError: There is none of this name, or its value is not of its kind.
    """
    own = {field.name for field in dataclasses.fields(OwnOptions)}
    known = ({*inspect.signature(module.Llama).parameters} - _SET_HERE) | own
    for name, value in options.items():
        if name in _SET_HERE:
            raise UnsupportedError(
                f"{name!r} is not an option: the workbench sets it.", hint=_SAID.get(name)
            )
        if name not in known:  # the library takes any name and ignores it
            raise InputError(
                f"llama_cpp.Llama has no option {name!r}.", hint=did_you_mean(name, known)
            )
        if name in _COUNTS and (type(value) is not int or value < 1):
            raise InputError(f"{name} is a whole number of 1 or more, not {value!r}.")
        if name in _SWITCHES and not isinstance(value, bool):
            raise InputError(f"{name} is True or False, not {value!r}.")


def load_arguments(module: Any, plan: Plan, *, exact: bool) -> dict[str, Any]:
    """Return the keyword arguments of ``llama_cpp.Llama`` for a plan.

    Args:
        module: The ``llama_cpp`` module.
        plan: What was planned.
        exact: Whether the weights are of 32 bits: a 16-bit cache would be their only rounding.

    Raises:
        UnsupportedError: As ``check_options``.
        InputError: As ``check_options``; or a cache type that needs flash attention without it.
    """
    check_options(module, plan.options)
    threads = plan.threads or default_threads()
    arguments = {
        "n_ctx": plan.context,
        "n_gpu_layers": plan.gpu_layers,
        "n_threads": threads,
        "n_threads_batch": threads,
        **memory_arguments(module, plan),
    }
    if exact and plan.cache_type == "f16":
        arguments |= {"type_k": module.GGML_TYPE_F32, "type_v": module.GGML_TYPE_F32}
    own = {field.name for field in dataclasses.fields(OwnOptions)}
    given = {name: value for name, value in plan.options.items() if name not in own}
    for name in ("type_k", "type_v"):
        if isinstance(given.get(name), str):
            given[name] = cache_type(given[name])
    found = {**arguments, **given}
    _check_flash_attention(found, plan)
    if "n_threads" in given and "n_threads_batch" not in given:
        found["n_threads_batch"] = given["n_threads"]
    return found


def _check_flash_attention(arguments: dict[str, Any], plan: Plan) -> None:
    """Switch flash attention on where quantized values in the cache need it."""
    exact = {cache_type(name) for name in _FLOATS}
    if arguments.get("type_v", cache_type("f16")) in exact:
        return
    if plan.flash_attention is False or plan.options.get("flash_attn") is False:
        raise InputError(
            "A quantized cache of values needs flash attention, which is switched off.",
            hint="Leave flash_attention out, or take cache_type='f16'.",
        )
    arguments["flash_attn"] = True


def default_threads() -> int:
    """Return the physical cores that this process may use: more only get into each other's way."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(allowed or 1, psutil.cpu_count(logical=False) or allowed or 1))
