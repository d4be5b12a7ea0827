"""llama.cpp: weights split between device and RAM, cells, compute and output buffers."""

from __future__ import annotations

import dataclasses

from workbench.errors import UnsupportedError
from workbench.memory.cache import CacheUse, cache_parts, held_tokens
from workbench.memory.estimate import Part, Place
from workbench.memory.layers import is_encoder, layers
from workbench.memory.llama_graph import Batch, compute_bytes
from workbench.memory.overhead import cuda_parts, process_part
from workbench.memory.request import Subject, experts_moved, parts_of_weights, weigh_subject

_F32 = 4
_FULL_ANYWAY = ("phi3", "phimoe")  # llama.cpp has no window for these


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LlamaUse:
    """How llama.cpp runs the model.

    Attributes:
        use: How the cache is used.
        quantization: Form of the weights.
        device: ``cuda``, ``mps`` or ``cpu``.
        gpu_layers: Layers on the device, -1 all.
        experts_on_cpu: First layers whose experts stay in RAM, -1 all.
        flash: Whether flash attention is on.
    """

    use: CacheUse
    quantization: str
    device: str
    gpu_layers: int = -1
    experts_on_cpu: int = 0
    flash: bool = True


def llama_cpp_parts(found: Subject, how: LlamaUse) -> tuple[tuple[Part, ...], list[str], list[str]]:
    """Return the parts, notes and doubts.

    Raises:
        UnsupportedError: A quantized cache without flash attention.
    """
    use = how.use
    if use.cache_type not in ("f32", "f16", "bf16") and not how.flash:
        raise UnsupportedError(
            f"llama.cpp keeps values as {use.cache_type} only with flash attention.",
            hint="Turn flash_attention on, or take cache_type f16.",
        )
    on_host = how.device == "cpu" or how.gpu_layers == 0
    offloaded = None if how.gpu_layers < 0 else how.gpu_layers
    place: Place = "host" if on_host else "device"
    use = dataclasses.replace(use, place=place, gpu_layers=None if on_host else offloaded)
    notes: list[str] = []
    doubts: list[str] = []
    parts = [*_weights(found, how, place, offloaded), *_cache(found, use, doubts)]
    parts += _compute(found, how, use, place, offloaded, doubts)
    parts.append(process_part("llama.cpp"))
    if how.device == "cuda" and not on_host:
        parts += cuda_parts(torch=False)
        doubts.append("what CUDA kernels allocate on the way (cuBLAS, its pool) is not counted")
    if use.full_window and found.facts.sliding_window:
        notes.append(
            "Sliding layers hold the whole context (swa_full, the default of llama-cpp-python)."
        )
    return tuple(parts), notes, doubts


def _weights(
    found: Subject, how: LlamaUse, place: Place, offloaded: int | None
) -> tuple[Part, ...]:
    weights, form = weigh_subject(found, how.quantization, use_dtype(how), "llama.cpp")
    unified = how.device == "mps"
    parts = parts_of_weights(
        found,
        weights,
        form,
        quantization=how.quantization,
        place=place,
        gpu_layers=offloaded,
        unified=unified,
    )
    if not how.experts_on_cpu or weights is None or place == "host" or unified:
        return parts
    count = len(weights.layers) if how.experts_on_cpu < 0 else how.experts_on_cpu
    moved = min(experts_moved(weights, count), _experts_on_device(parts))
    rule = f"experts of the first {count} layers stay in RAM"
    kept = [
        dataclasses.replace(part, bytes=part.bytes - moved, rule=f"{part.rule}; {rule}")
        if part.name == "experts" and part.place == "device"
        else part
        for part in parts
    ]
    if moved:
        kept.append(Part(name="experts in RAM", bytes=moved, rule=rule, place="host"))
    return tuple(kept)


def use_dtype(how: LlamaUse) -> str:
    """Return the dtype of what a GGUF mix leaves alone."""
    return how.use.dtype


def _experts_on_device(parts: tuple[Part, ...]) -> int:
    return sum(part.bytes for part in parts if part.name == "experts" and part.place == "device")


def _cache(found: Subject, use: CacheUse, doubts: list[str]) -> tuple[Part, ...]:
    try:
        return cache_parts(found.facts, use)
    except UnsupportedError as error:
        if "cache of type" in error.message:
            raise
        doubts.append(f"the KV cache is not counted: {error.message}")
        return ()


def _compute(
    found: Subject,
    how: LlamaUse,
    use: CacheUse,
    place: Place,
    offloaded: int | None,
    doubts: list[str],
) -> list[Part]:
    facts = found.facts
    vocabulary = facts.vocab_size or 0
    output = Part(
        name="output buffer",
        bytes=use.sequences * vocabulary * _F32,
        rule=f"{use.sequences} sequences x {vocabulary} logits x 4 B",
        place="host",
        group="logits",
    )
    if None in (facts.hidden_size, facts.layers, facts.attention_heads) or is_encoder(facts):
        part = _guessed(found, use, place)
        doubts.append("the compute buffer of this family is not known")
        return [part, output]
    if not vocabulary:
        doubts.append("the vocabulary is not known: no logits are counted")
    batch = _batch(found, how, use)
    tokens = batch.tokens
    rule = (
        f"ggml's allocator on the graph of {tokens} tokens, {batch.cells} cells: logits "
        f"{tokens} x {vocabulary} x 4 B, and what a layer needs"
    )
    size = compute_bytes(facts, batch)
    parts = [Part(name="compute buffer", bytes=size, rule=rule, place=place, group="compute")]
    if place == "device":
        whole = offloaded is None or offloaded > len(layers(facts))
        parts.append(_on_host(found, batch, whole=whole))
        if not whole:
            doubts.append("compute buffers of a split model are those of each side's own graph")
    return [*parts, output]


def _guessed(found: Subject, use: CacheUse, place: Place) -> Part:
    """Return a compute buffer without a graph: an encoder's widest layer, else the logits."""
    facts = found.facts
    hidden, tokens = facts.hidden_size or 0, use.ubatch
    if is_encoder(facts):
        size = tokens * (((facts.intermediate_size or 0) + 3 * hidden) * _F32 + 2 * tokens)
        rule = f"{tokens} tokens x (feed-forward + 3 x width) x 4 B, and a mask of 2 B"
    else:
        size = tokens * ((facts.vocab_size or 0) + 2 * hidden) * _F32
        rule = f"{tokens} tokens x (vocabulary + 2 x width) x 4 B, about"
    return Part(name="compute buffer", bytes=size, rule=rule, place=place, group="compute")


def _batch(found: Subject, how: LlamaUse, use: CacheUse) -> Batch:
    facts = found.facts
    slides = facts.sliding_window is not None and facts.model_type not in _FULL_ANYWAY
    cells = held_tokens(facts, use, "full")
    return Batch(
        tokens=min(use.ubatch, cells * use.sequences),
        cells=cells,
        window_cells=held_tokens(facts, use, "sliding") if slides else 0,
        flash=how.flash,
        rotated=use.cache_type not in ("f32", "f16", "bf16"),
        device="cpu" if use.place == "host" else how.device,
    )


def _on_host(found: Subject, batch: Batch, *, whole: bool) -> Part:
    """Return the buffer of what the CPU makes for the device: embedding rows and masks."""
    hidden = found.facts.hidden_size or 0
    width = 2 if batch.flash else 4
    masks = width * batch.tokens * (batch.cells + batch.window_cells)
    size = 2 * batch.tokens * hidden * _F32 + masks
    rule = f"{batch.tokens} tokens x 2 x {hidden} x 4 B of embedding rows, and the masks"
    if not whole:
        size = compute_bytes(found.facts, dataclasses.replace(batch, device="cpu"))
        size -= batch.tokens * (found.facts.vocab_size or 0) * _F32
        rule = "the graph of the layers in RAM, without logits"
    return Part(
        name="compute buffer of the CPU", bytes=size, rule=rule, place="host", group="compute"
    )
