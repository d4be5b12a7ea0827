"""vLLM, SGLang and TensorRT-LLM: a share of the device, and a paged cache in what is left."""

from __future__ import annotations

import dataclasses
import math

from workbench.memory.activations import logits_part, prefill_part
from workbench.memory.cache import PAGE, CacheUse, cache_parts
from workbench.memory.estimate import GIB, Part
from workbench.memory.overhead import cuda_parts, process_part
from workbench.memory.request import Subject, parts_of_weights, weigh_subject

# vllm 0.32: gpu_memory_utilization of all memory; SGLang: mem_fraction_static; TensorRT-LLM:
# kv_cache_free_gpu_memory_fraction of what is free after the weights.
SHARES = {"vllm": 0.92, "sglang": 0.88, "tensorrt-llm": 0.9}
_BATCHED_TOKENS, _SEQUENCES = 8192, 256


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Paging:
    """What a serving engine is told.

    Attributes:
        device_bytes: Memory of one device, or None where it is not known.
        share: Its fraction, or None for the engine's default.
        cache_bytes: ``kv_cache_memory_bytes``: overrides the fraction.
        batched_tokens: Most tokens of a step.
        sequences: Most sequences of a step.
        shards: Devices that share the model (tensor parallel).
    """

    device_bytes: int | None = None
    share: float | None = None
    cache_bytes: int | None = None
    batched_tokens: int = _BATCHED_TOKENS
    sequences: int = _SEQUENCES
    shards: int = 1


def paged_parts(
    found: Subject, use: CacheUse, paging: Paging, *, quantization: str
) -> tuple[tuple[Part, ...], list[str], list[str]]:
    """Return the parts of one device, notes and doubts."""
    facts = found.facts
    weights, form = weigh_subject(found, quantization, use.dtype, use.engine)
    whole = parts_of_weights(
        found, weights, form, quantization=quantization, place="device", gpu_layers=None,
        unified=False,
    )  # fmt: skip
    parts = [_sharded(part, paging.shards) for part in whole]
    activations = prefill_part(
        facts,
        tokens=min(paging.batched_tokens, max(use.tokens, 2048)),
        sequences=1,
        dtype=use.dtype,
        attention="flash",
        place="device",
        shards=paging.shards,
    )
    logits = logits_part(facts, rows=paging.sequences, dtype="fp32", place="device")
    parts += [activations, dataclasses.replace(logits, name="sampler logits")]
    parts += [*cuda_parts(torch=True), process_part(use.engine)]
    heads = min(paging.shards, facts.kv_heads or 1)
    needed = [_sharded(part, heads) for part in cache_parts(facts, use)]
    cache, notes = _cache(found, use, paging, parts, needed)
    doubts = ["the peak of the profiling run is taken from transformers' activations"]
    if use.engine != "vllm":
        doubts.append(f"the rule of {use.engine} is vLLM's with its own default share")
    notes.append("CUDA graphs take up to about a GiB more, which is not estimated.")
    return (*parts, *cache), notes, doubts


def _cache(
    found: Subject, use: CacheUse, paging: Paging, parts: list[Part], needed: list[Part]
) -> tuple[list[Part], list[str]]:
    """Return the cache that the engine allocates: what it needs, what it is told, what is left."""
    least = sum(part.bytes for part in needed)
    each = least / max(1, use.sequences * _padded(use.tokens))
    share = paging.share if paging.share is not None else SHARES[use.engine]
    if paging.cache_bytes is not None:
        room, rule = paging.cache_bytes, f"kv_cache_memory_bytes={paging.cache_bytes:,}"
    elif paging.device_bytes is not None:
        taken = sum(p.bytes for p in parts if p.place == "device")
        if use.engine == "tensorrt-llm":
            room = int((paging.device_bytes - taken) * share)
        else:
            room = math.ceil(paging.device_bytes * share) - taken
        rule = (
            f"{share:g} of {paging.device_bytes / GIB:.1f} GiB less {taken / GIB:.2f} GiB of "
            "weights, peak and context"
        )
    else:
        said = (
            f"{use.engine} fills {share:.0%} of the device with its cache; counted here is what "
            f"{use.sequences} sequences of {use.tokens} tokens need."
        )
        return needed, [said]
    if room < least or not each:
        said = (
            f"{use.engine} does not start: {use.sequences} sequences of {use.tokens} tokens need "
            f"{least / GIB:.2f} GiB of cache, {max(0, room) / GIB:.2f} GiB are left."
        )
        return needed, [said]
    tokens = int(room / each) // PAGE * PAGE
    part = Part(name="KV cache", bytes=room, rule=f"{rule}: {tokens:,} tokens", group="cache")
    said = f"The cache holds {tokens:,} tokens in blocks of {PAGE}."
    return [part], [said]


def _sharded(part: Part, shards: int) -> Part:
    if shards == 1 or part.name == "norms and the rest":
        return part
    rule = f"{part.rule}; a {shards}th of it on each device"
    return dataclasses.replace(part, bytes=-(-part.bytes // shards), rule=rule)


def _padded(tokens: int) -> int:
    return -(-tokens // PAGE) * PAGE
