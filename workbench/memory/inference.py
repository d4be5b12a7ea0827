"""Estimate the memory of running a model, from a card or a header alone: no files, no torch."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from workbench.catalog.architecture import Architecture
from workbench.catalog.card import Card
from workbench.catalog.header_view import Header
from workbench.errors import InputError, UnsupportedError
from workbench.memory.activations import in_flight_part, logits_part, per_token, prefill_part
from workbench.memory.cache import CacheUse, cache_parts, check_cache_type, growth_part
from workbench.memory.estimate import Estimate, Part, Place
from workbench.memory.layers import heads
from workbench.memory.llama_cpp import LlamaUse, llama_cpp_parts
from workbench.memory.overhead import cuda_parts, process_part, rounding_part, slack_part
from workbench.memory.paged import Paging, paged_parts
from workbench.memory.request import (
    DEVICES,
    Attention,
    Subject,
    check_choice,
    check_context,
    check_count,
    check_engine,
    compute_dtype,
    parts_of_weights,
    subject,
    weigh_subject,
)

_PREFILL_STEP = 2048  # mlx-lm's prefill_step_size
_TOKENS_PER_IMAGE = re.compile(r"(\d+) tokens per (?:image|tile)")
_SLACK = 0.02
_Made = tuple[tuple[Part, ...], list[str], list[str]]


def estimate(
    model: Card | Header | Architecture | str | Path,
    *,
    engine: str = "transformers",
    quantization: str = "none",
    dtype: str | None = None,
    context: int | None = None,
    prompt: int | None = None,
    batch: int = 1,
    cache_type: str | None = None,
    gpu_layers: int = -1,
    experts_on_cpu: int = 0,
    ubatch: int = 512,
    flash_attention: bool = True,
    swa_full: bool = False,
    attention: Attention = "sdpa",
    device: str = "cuda",
    tensor_parallel: int = 1,
    images: int = 0,
    image_tokens: int | None = None,
    all_logits: bool = False,
    device_bytes: int | None = None,
    utilization: float | None = None,
    kv_cache_memory_bytes: int | None = None,
    batched_tokens: int = 8192,
) -> Estimate:
    """Return the memory that a model takes at its peak, by its engine's own rules.

    Args:
        model: A card, its id, a header of its files, or an architecture.
        engine: ``transformers``, ``llama.cpp``, ``mlx``, ``vllm``, ``sglang``, ``tensorrt-llm``.
        quantization: ``none`` (as stored) or a name that ``weight_form`` knows.
        dtype: ``fp32``, ``bf16`` or ``fp16``; default is the card's, 16 bit for a quantized one.
        context: Tokens of a sequence, prompt and answer; default is the card's, at most 8192.
        prompt: Tokens of the prompt that are read in one go; default is the context.
        batch: Sequences at a time, each of ``context`` tokens.
        cache_type: Type of keys and values; default is f16 for llama.cpp, else the dtype.
        gpu_layers: llama.cpp's layers on the device, the output counting as one; -1 all.
        experts_on_cpu: llama.cpp's first layers whose experts stay in RAM; -1 all.
        ubatch: llama.cpp's physical batch in tokens.
        flash_attention: Whether llama.cpp uses it.
        swa_full: Whether llama.cpp's sliding layers hold the whole context. llama.cpp's own
            tools do not; llama-cpp-python does unless told otherwise.
        attention: transformers: ``eager`` holds all scores of a layer.
        device: ``cuda``, ``mps`` or ``cpu``.
        tensor_parallel: Devices that share the model; the estimate is of one of them.
        images: Images in the prompt.
        image_tokens: Tokens of one image, where the card does not say.
        all_logits: Whether the logits of all prompt tokens are kept (perplexity, rewards).
        device_bytes: Memory of one device; serving engines fill a share of it.
        utilization: That share; default is the engine's.
        kv_cache_memory_bytes: vLLM's fixed cache, instead of a share.
        batched_tokens: Most tokens of one step of a serving engine.

    Raises:
        NotFoundError: No such card.
        InputError: An unknown engine, device or cache type, a count below 1, a context beyond
            the model's.
        UnsupportedError: The engine cannot hold the model so, or too little is known of it.
    """
    check_engine(engine)
    check_choice("device", device, DEVICES)
    check_choice("attention", attention, ("sdpa", "eager", "flash"))
    for name, value in (("batch", batch), ("ubatch", ubatch), ("tensor_parallel", tensor_parallel)):
        check_count(name, value)
    check_count("gpu_layers", gpu_layers, least=-1)
    check_count("experts_on_cpu", experts_on_cpu, least=-1)
    found = subject(model)
    kind = compute_dtype(dtype, found)
    tokens = check_context(context, found)
    extra, notes = _image_tokens(found, images, image_tokens)
    read = min(tokens, check_count("prompt", prompt if prompt is not None else tokens) + extra)
    use = CacheUse(
        engine=engine,
        tokens=tokens,
        prompt=read,
        sequences=batch,
        cache_type=_cache_type(cache_type, engine, kind),
        dtype=kind,
        ubatch=ubatch,
        full_window=swa_full,
        place="host" if device == "cpu" else "device",
    )
    if engine == "llama.cpp":
        how = LlamaUse(
            use=use,
            quantization=quantization,
            device=device,
            gpu_layers=gpu_layers,
            experts_on_cpu=experts_on_cpu,
            flash=flash_attention,
        )
        made = llama_cpp_parts(found, how)
    elif engine in ("transformers", "mlx"):
        plain = _Plain(
            quantization=quantization,
            device=device,
            attention=attention,
            all_logits=all_logits,
            shards=tensor_parallel,
        )
        made = (
            _transformers(found, use, plain)
            if engine == "transformers"
            else _mlx(found, use, plain)
        )
    else:
        if device != "cuda":
            raise UnsupportedError(
                f"The engine {engine} is estimated on CUDA, not on {device!r}.",
                hint="Take device='cuda'.",
            )
        paging = Paging(
            device_bytes=device_bytes,
            share=utilization,
            cache_bytes=kv_cache_memory_bytes,
            batched_tokens=batched_tokens,
            shards=tensor_parallel,
        )
        made = paged_parts(found, use, paging, quantization=quantization)
    parts, said, doubts = made
    if device == "mps":
        doubts.append("what Metal adds to its buffers was not measured")
    return Estimate(
        label=f"{found.name} · {engine} · {quantization if quantization != 'none' else kind}",
        parts=tuple(part for part in parts if part.bytes),
        conditions={
            "engine": engine,
            "quantization": quantization,
            "dtype": kind,
            "context": tokens,
            "prompt": read,
            "batch": batch,
            "cache_type": use.cache_type,
            "device": device,
            "gpu_layers": gpu_layers,
            "experts_on_cpu": experts_on_cpu,
            "ubatch": ubatch,
            "flash_attention": flash_attention,
            "swa_full": swa_full,
            "attention": attention,
            "tensor_parallel": tensor_parallel,
        },
        notes=(*notes, *said),
        uncertain="; ".join((*found.doubts, *doubts)) or None,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Plain:
    """How an engine in this process runs the model."""

    quantization: str
    device: str
    attention: str
    all_logits: bool
    shards: int


def _cache_type(given: str | None, engine: str, dtype: str) -> str:
    """Return the cache type; 16-bit names mean the compute dtype outside llama.cpp."""
    found = check_cache_type(given, engine=engine, dtype=dtype)
    own = check_cache_type(None, engine=engine, dtype=dtype)
    return own if engine in ("transformers", "mlx") and not found.startswith("q") else found


def _image_tokens(found: Subject, images: int, given: int | None) -> tuple[int, list[str]]:
    check_count("images", images, least=0)
    if not images:
        return 0, []
    vision = found.facts.vision
    if vision is None:
        raise InputError(f"{found.name} does not see images, and images={images} were given.")
    told = _TOKENS_PER_IMAGE.search(vision.tower or "")
    each = given if given is not None else int(told[1]) if told else None
    if each is None:
        raise InputError(
            f"The card of {found.name} does not say how many tokens an image takes.",
            hint="Give image_tokens=...",
        )
    return images * each, [f"{images} images of {each} tokens each are part of the prompt."]


def _transformers(found: Subject, use: CacheUse, how: _Plain) -> _Made:
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


def _moments(found: Subject, use: CacheUse, how: _Plain) -> tuple[list[Part], list[Part]]:
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


def _mlx(found: Subject, use: CacheUse, how: _Plain) -> _Made:
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


__all__ = ["Place", "estimate"]
