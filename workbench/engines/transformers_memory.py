"""Memory of torch that runs out: recognised, given back, and said in one error."""

from __future__ import annotations

from typing import Any

from workbench.engines.fallback import release
from workbench.engines.memory import give_back_memory
from workbench.errors import EngineError, MemoryShortError, UnsupportedError
from workbench.planning import Plan

_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a device or in RAM."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


def free_after(error: BaseException) -> None:
    """Drop what the frames of a failed call still hold, and give the memory back."""
    release(error)
    empty_caches()
    give_back_memory()


def empty_caches() -> None:
    """Empty what torch keeps of freed device memory."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def load_error(plan: Plan, error: BaseException) -> MemoryShortError:
    """Return the error of a load that ran out of memory, with the plan's advice."""
    said = str(error).strip().split("\n")[0][:200]
    return MemoryShortError(
        f"{plan.card.id} ran out of memory while loading on {plan.device}: "
        f"{said or type(error).__name__}; nothing is left of it.",
        hint=" ".join(plan.changes) or _advice(plan),
        changes=tuple(plan.changes),
    )


def reply_error(plan: Plan, tokens: int, error: BaseException) -> EngineError:
    """Return the error of a forward pass that ran out of memory, with the plan's advice."""
    said = str(error).strip().split("\n")[0][:200]
    return EngineError(
        f"{plan.card.id} ran out of memory on {plan.device} at {tokens} tokens of context: "
        f"{said or type(error).__name__}.",
        hint=" ".join(plan.changes) or _advice(plan),
    )


def _advice(plan: Plan) -> str:
    ways = [f"a context below {plan.context}"]
    if plan.quantization == "none":
        ways.append("quantization='nf4'")
    if plan.device == "cuda" and not plan.max_memory:
        ways.append("max_memory= to put layers into RAM")
    return f"Close other models, or load it with {' or '.join(ways)}; wb.plan(...) says what fits."


def refuse_disk(places: Any, name: str) -> None:
    """Refuse a placement with layers on the disk: each token would read them again.

    Raises:
        UnsupportedError: A layer would lie on the disk.
    """
    values = places.values() if isinstance(places, dict) else [places]
    if "disk" in {str(place) for place in values}:
        raise UnsupportedError(
            f"{name} does not fit into the memory it was given; layers on the disk are refused, "
            "since every token would read them again.",
            hint="Take a smaller or quantized model, or allow more in max_memory.",
        )
