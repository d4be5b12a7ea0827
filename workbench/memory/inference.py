"""Estimate the memory of running a model, from a card or a header alone: no files, no torch."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from workbench.catalog.architecture import Architecture
from workbench.catalog.card import Card
from workbench.catalog.header_view import Header
from workbench.errors import InputError, UnsupportedError
from workbench.memory.cache import CacheUse, check_cache_type
from workbench.memory.estimate import Estimate
from workbench.memory.llama_cpp import LlamaUse, llama_cpp_parts
from workbench.memory.paged import Paging, paged_parts
from workbench.memory.plain import Made, Plain, mlx_parts, transformers_parts
from workbench.memory.request import (
    DEVICES,
    Attention,
    Subject,
    check_choice,
    check_context,
    check_count,
    check_engine,
    compute_dtype,
    subject,
)

_TOKENS_PER_IMAGE = re.compile(r"(\d+) tokens per (?:image|tile)")


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
    unpacks: bool = False,
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
        unpacks: Whether transformers reads a GGUF file, which it unpacks in RAM first.

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
    options = _Options(
        quantization=quantization,
        device=device,
        gpu_layers=gpu_layers,
        experts_on_cpu=experts_on_cpu,
        flash_attention=flash_attention,
        attention=attention,
        all_logits=all_logits,
        tensor_parallel=tensor_parallel,
        device_bytes=device_bytes,
        utilization=utilization,
        kv_cache_memory_bytes=kv_cache_memory_bytes,
        batched_tokens=batched_tokens,
        unpacks=unpacks,
    )
    parts, said, doubts = _made(found, use, options)
    return Estimate(
        label=f"{found.name} · {engine} · {quantization if quantization != 'none' else kind}",
        parts=tuple(part for part in parts if part.bytes),
        conditions=_conditions(use, options),
        notes=(*notes, *said),
        uncertain="; ".join((*found.doubts, *doubts)) or None,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """Arguments of ``estimate`` that only some engines know."""

    quantization: str
    device: str
    gpu_layers: int
    experts_on_cpu: int
    flash_attention: bool
    attention: str
    all_logits: bool
    tensor_parallel: int
    device_bytes: int | None
    utilization: float | None
    kv_cache_memory_bytes: int | None
    batched_tokens: int
    unpacks: bool


def _made(found: Subject, use: CacheUse, options: _Options) -> Made:
    """Return the parts by the engine's own rules, with notes and doubts."""
    if use.engine == "llama.cpp":
        how = LlamaUse(
            use=use,
            quantization=options.quantization,
            device=options.device,
            gpu_layers=options.gpu_layers,
            experts_on_cpu=options.experts_on_cpu,
            flash=options.flash_attention,
        )
        made = llama_cpp_parts(found, how)
    elif use.engine in ("transformers", "mlx"):
        plain = Plain(
            quantization=options.quantization,
            device=options.device,
            attention=options.attention,
            all_logits=options.all_logits,
            shards=options.tensor_parallel,
            unpacks=options.unpacks,
        )
        run = transformers_parts if use.engine == "transformers" else mlx_parts
        made = run(found, use, plain)
    elif options.device != "cuda":
        raise UnsupportedError(
            f"The engine {use.engine} is estimated on CUDA, not on {options.device!r}.",
            hint="Take device='cuda'.",
        )
    else:
        paging = Paging(
            device_bytes=options.device_bytes,
            share=options.utilization,
            cache_bytes=options.kv_cache_memory_bytes,
            batched_tokens=options.batched_tokens,
            shards=options.tensor_parallel,
        )
        made = paged_parts(found, use, paging, quantization=options.quantization)
    if options.device == "mps":
        made[2].append("what Metal adds to its buffers was not measured")
    return made


def _conditions(use: CacheUse, options: _Options) -> dict[str, object]:
    """Return what was assumed, as plain data."""
    return {
        "engine": use.engine,
        "quantization": options.quantization,
        "dtype": use.dtype,
        "context": use.tokens,
        "prompt": use.prompt,
        "batch": use.sequences,
        "cache_type": use.cache_type,
        "device": options.device,
        "gpu_layers": options.gpu_layers,
        "experts_on_cpu": options.experts_on_cpu,
        "ubatch": use.ubatch,
        "flash_attention": options.flash_attention,
        "swa_full": use.full_window,
        "attention": options.attention,
        "tensor_parallel": options.tensor_parallel,
    }


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
