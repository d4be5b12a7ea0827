"""transformers and MLX: weights, cache, and what one step of the prompt needs at its peak."""

from __future__ import annotations

import dataclasses

from workbench.errors import UnsupportedError
from workbench.memory.activations import in_flight_part, logits_part, per_token, prefill_part
from workbench.memory.cache import CacheUse, cache_parts, growth_part
from workbench.memory.estimate import Part
from workbench.memory.layers import heads
from workbench.memory.overhead import (
    cuda_parts,
    process_part,
    rounding_part,
    slack_part,
    unpacking_part,
)
from workbench.memory.request import Subject, parts_of_weights, weigh_subject

_PREFILL_STEP = 2048  # mlx-lm's prefill_step_size
_SLACK = 0.02
Made = tuple[tuple[Part, ...], list[str], list[str]]
"""Parts, notes and doubts."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """How an engine in this process runs the model."""

    quantization: str
    """Form of the weights."""
    device: str
    """``cuda``, ``mps`` or ``cpu``."""
    attention: str = "sdpa"
    """``eager`` holds all scores of a layer."""
    all_logits: bool = False
    """Whether the logits of all prompt tokens are kept."""
    shards: int = 1
    """Devices that share the model."""
    unpacks: bool = False
    """Whether transformers reads the weights from a GGUF file, which it unpacks in RAM first."""


def transformers_parts(found: Subject, use: CacheUse, how: Plain) -> Made:
    """Return the parts at whichever peak is higher: end of the prompt, or end of the answer."""
    facts, place = found.facts, use.place
    weights, form = weigh_subject(found, how.quantization, use.dtype, "transformers")
    whole = parts_of_weights(
        found,
        weights,
        form,
        quantization=how.quantization,
        place=place,
        gpu_layers=None,
        unified=how.device == "mps",
    )
    base = [_share(part, how.shards) for part in whole]
    base.append(process_part("transformers"))
    if how.device == "cuda":
        base += cuda_parts(torch=True)
        if weights is not None:
            base.append(rounding_part(weights, shards=how.shards))
    if how.unpacks and weights is not None:
        base.append(unpacking_part(weights, on_device=how.device != "cpu"))
    notes: list[str] = []
    doubts: list[str] = []
    try:
        reading, answering = _moments(found, use, how)
    except UnsupportedError as error:
        doubts.append(f"cache and activations are not counted: {error.message}")
        return tuple(base), notes, doubts
    if not per_token(facts, width=2).certain:
        doubts.append("the activations of this family's layers depend on the kernels installed")
    first, second = _sum(reading), _sum(answering)
    peak = reading if first >= second else answering
    when = "the prompt" if first >= second else "the answer"
    notes.append(
        f"The peak is at the end of {when}; at the other end {_other(first, second)} less."
    )
    if how.device == "cuda":
        used = sum(part.bytes for part in (*base, *peak) if part.counter == "allocated")
        peak = [*peak, slack_part(used, share=_SLACK)]
    return (*base, *peak), notes, doubts


def _moments(found: Subject, use: CacheUse, how: Plain) -> tuple[list[Part], list[Part]]:
    facts, place = found.facts, use.place
    attends = min(how.shards, facts.kv_heads or 1)
    rows = use.sequences * (use.prompt if how.all_logits else 1)
    activations = prefill_part(
        facts,
        tokens=use.prompt,
        sequences=use.sequences,
        dtype=use.dtype,
        attention=how.attention,
        place=place,
        shards=how.shards,
    )
    logits = logits_part(facts, rows=rows, dtype=use.dtype, place=place, every=how.all_logits)
    kept: tuple[Part, ...] = ()
    if found.generates:
        kept = cache_parts(facts, dataclasses.replace(use, prefill=True))
    reading = [activations, *(_share(part, attends) for part in kept), logits]
    answering: list[Part] = []
    if found.generates:
        held = (*cache_parts(facts, use), growth_part(facts, use, heads(facts)))
        last = logits_part(facts, rows=use.sequences, dtype=use.dtype, place=place)
        answering = [*(_share(part, attends) for part in held), last]
    return reading, answering


def mlx_parts(found: Subject, use: CacheUse, how: Plain) -> Made:
    """Return MLX's parts: it reads prompts in steps, so that activations stay small."""
    facts = found.facts
    weights, form = weigh_subject(found, how.quantization, use.dtype, "mlx")
    parts = list(
        parts_of_weights(
            found,
            weights,
            form,
            quantization=how.quantization,
            place=use.place,
            gpu_layers=None,
            unified=True,
        )
    )
    parts.append(process_part("mlx"))
    doubts = ["how much MLX has under way at once is known from two published peaks"]
    try:
        cache = cache_parts(facts, use) if found.generates else ()
        step = in_flight_part(
            facts,
            tokens=min(use.prompt, _PREFILL_STEP) * use.sequences,
            dtype=use.dtype,
            place=use.place,
        )
    except UnsupportedError as error:
        return tuple(parts), [], [*doubts, f"the cache is not counted: {error.message}"]
    logits = logits_part(facts, rows=use.sequences, dtype=use.dtype, place=use.place)
    return (*parts, *cache, step, logits), [], doubts


def _share(part: Part, shards: int) -> Part:
    if shards == 1 or part.name == "norms and the rest":
        return part
    rule = f"{part.rule}; a {shards}th of it on each device"
    return dataclasses.replace(part, bytes=-(-part.bytes // shards), rule=rule)


def _sum(parts: list[Part]) -> int:
    return sum(part.bytes for part in parts)


def _other(first: int, second: int) -> str:
    return f"{abs(first - second) / 2**30:.2f} GiB"
