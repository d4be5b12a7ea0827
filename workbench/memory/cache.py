"""KV cache and recurrent state, by each engine's own rule of allocation."""

from __future__ import annotations

import dataclasses
from collections import Counter

from workbench.catalog.architecture import Architecture
from workbench.errors import InputError, UnsupportedError, did_you_mean
from workbench.memory.estimate import Part, Place
from workbench.memory.layers import Heads, Keeps, heads, layers

BLOCKS = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "fp8": (1, 1),
    "q8_0": (32, 34),
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
    "iq4_nl": (32, 18),
}
"""Values per block and bytes per block of every cache type (ggml's, and vLLM's fp8)."""
_TYPES = {
    "llama.cpp": tuple(name for name in BLOCKS if name != "fp8"),
    "transformers": ("f32", "f16", "bf16", "q8_0", "q4_0"),
    "mlx": ("f32", "f16", "bf16", "q8_0", "q4_0"),
    "vllm": ("f16", "bf16", "fp8"),
    "sglang": ("f16", "bf16", "fp8"),
    "tensorrt-llm": ("f16", "bf16", "fp8"),
}
OF_DTYPE = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "fp8": "bf16"}
CELLS, PAGE, STEP = 256, 16, 256
"""llama.cpp pads cells, vLLM and its kin page tokens, MLX grows by steps."""
_RESIDUAL, _GROUP = 128, 64  # transformers' QuantizedCache: tokens kept whole, values per scale


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CacheUse:
    """How the cache is used.

    Attributes:
        engine: Whose rule holds.
        tokens: Tokens of one sequence: prompt and answer.
        prompt: Tokens of the prompt, read in one go.
        sequences: Sequences at a time.
        cache_type: Type of keys and values.
        dtype: Compute dtype, which is that of a state outside llama.cpp.
        ubatch: llama.cpp's physical batch.
        full_window: llama.cpp's ``swa_full``: sliding layers hold the whole context.
        gpu_layers: llama.cpp layers on the device, None all.
        place: Where the cache is.
        prefill: Whether at the end of the prompt (True) or of the answer.
    """

    engine: str
    tokens: int
    prompt: int
    sequences: int = 1
    cache_type: str = "f16"
    dtype: str = "bf16"
    ubatch: int = 512
    full_window: bool = False
    gpu_layers: int | None = None
    place: Place = "device"
    prefill: bool = False


def check_cache_type(name: str | None, *, engine: str, dtype: str) -> str:
    """Return the cache type; None is the engine's own: f16 for llama.cpp, else the dtype.

    Raises:
        InputError: There is no such type.
        UnsupportedError: The engine does not have it.
    """
    if name is None:
        return "f16" if engine == "llama.cpp" else OF_DTYPE[dtype]
    if name not in BLOCKS:
        raise InputError(f"There is no cache type {name!r}.", hint=did_you_mean(name, BLOCKS))
    if name not in _TYPES[engine]:
        raise UnsupportedError(
            f"The engine {engine} has no cache of type {name}.",
            hint=f"It has {', '.join(_TYPES[engine])}.",
        )
    return name


def row_bytes(values: int, cache_type: str) -> int:
    """Return bytes of a row of values; ggml needs whole blocks.

    Raises:
        UnsupportedError: The row is no whole number of blocks.
    """
    per_block, block = BLOCKS[cache_type]
    if values % per_block:
        raise UnsupportedError(
            f"A cache of type {cache_type} needs rows of {per_block} values; this model's have "
            f"{values}.",
            hint="Take f16.",
        )
    return values // per_block * block


def token_bytes(facts: Architecture, engine: str, cache_type: str) -> int:
    """Return bytes of keys and values that one token adds to one attention layer."""
    if facts.latent_attention:  # the latent once; llama.cpp, vLLM, and transformers since 5.16
        latent = facts.latent_attention
        return row_bytes(latent.kv_lora_rank + latent.qk_rope_head_dim, cache_type)
    width = heads(facts).key
    if engine in ("transformers", "mlx") and cache_type.startswith("q"):
        bits = int(cache_type[1])  # packed bits, and a 16-bit scale and zero for each group
        return 2 * (width * bits // 8 + -(-width // _GROUP) * 4)
    return 2 * row_bytes(width, cache_type)


def cache_parts(facts: Architecture, use: CacheUse) -> tuple[Part, ...]:
    """Return KV cache and state as parts of an estimate.

    Raises:
        UnsupportedError: The card lacks layers or heads.
    """
    kept: Counter[tuple[Keeps, Place]] = Counter()
    kinds = layers(facts)
    on_device = _first_on_device(len(kinds), use)
    for index, kind in enumerate(kinds):
        if use.engine == "llama.cpp" and facts.model_type == "phi3" and kind == "sliding":
            kind = "full"  # llama.cpp has no window for Phi-3 (pull request 13676)
        place: Place = "device" if use.place == "device" and index >= on_device else "host"
        kept[kind, place] += 1
    parts = []
    for (kind, place), count in kept.items():
        if kind == "state":
            parts.append(_state(facts, use, count, place))
        elif kind in ("full", "sliding"):
            parts.append(_keys_and_values(facts, use, kind, count, place))
    return tuple(parts)


def _first_on_device(count: int, use: CacheUse) -> int:
    """Return the first layer whose cache is on the device: llama.cpp offloads from the end."""
    if use.gpu_layers is None:
        return 0
    return max(0, count + 1 - use.gpu_layers) if use.gpu_layers else count


def _keys_and_values(
    facts: Architecture, use: CacheUse, kind: Keeps, count: int, place: Place
) -> Part:
    each = token_bytes(facts, use.engine, use.cache_type)
    tokens = held_tokens(facts, use, kind)
    size = count * tokens * use.sequences * each
    if use.engine == "transformers" and use.cache_type.startswith("q"):
        width = 2 * heads(facts).key * 2
        size += count * min(_RESIDUAL, tokens) * use.sequences * width
    words = "KV cache" if kind == "full" else "KV cache of sliding layers"
    many = f" x {use.sequences} sequences" if use.sequences > 1 else ""
    return Part(
        name=words,
        bytes=size,
        rule=f"{count} layers x {tokens} tokens{many} x {each} B ({use.cache_type})",
        place=place,
        group="cache",
    )


def held_tokens(facts: Architecture, use: CacheUse, kind: Keeps) -> int:
    """Return the tokens for which a layer of this kind has memory, for one sequence."""
    tokens = use.prompt if use.prefill else use.tokens
    window = facts.sliding_window.size if facts.sliding_window and kind == "sliding" else None
    if use.engine == "llama.cpp":  # llama-kv-cache-iswa.cpp: all cells from the start
        cells = _padded(use.tokens, CELLS)
        if window is None or use.full_window:
            return cells
        return min(cells, _padded(min(cells, window + use.ubatch), CELLS))
    if use.engine == "mlx":  # cache.py: KVCache grows by steps, RotatingKVCache up to its window
        grown = _padded(tokens, STEP)
        return grown if window is None else min(grown, window)
    if use.engine == "transformers":
        # The window is a view until the next token replaces it: at the end of the prompt the
        # whole prompt is still there (cache_utils.py, DynamicSlidingWindowLayer.update).
        return tokens if window is None or use.prefill else min(tokens, window)
    paged = _padded(tokens, PAGE)
    return paged if window is None else min(paged, _padded(window, PAGE) + PAGE)


def _state(facts: Architecture, use: CacheUse, count: int, place: Place) -> Part:
    state = facts.state_space
    assert state is not None
    channels = state.inner_size + 2 * state.groups * state.state_size
    width = 4 if use.engine == "llama.cpp" or use.dtype == "fp32" else 2
    # transformers keeps as many columns as the convolution has taps, the others one less
    taps = state.conv_kernel if use.engine == "transformers" else state.conv_kernel - 1
    # state kept in fp32 by llama.cpp (llama-model.cpp) and by transformers' scan
    wide = 4 if use.engine in ("llama.cpp", "transformers") else width
    each = taps * channels * width + state.state_size * state.inner_size * wide
    many = f" x {use.sequences} sequences" if use.sequences > 1 else ""
    return Part(
        name="recurrent state",
        bytes=count * use.sequences * each,
        rule=f"{count} layers{many} x ({taps} x {channels} convolution + {state.state_size} x "
        f"{state.inner_size} state), whatever the context",
        place=place,
        group="cache",
    )


def growth_part(facts: Architecture, use: CacheUse, kinds: Heads) -> Part:
    """Return what growing costs: transformers and MLX copy one layer's keys to add a token."""
    tokens = held_tokens(facts, use, "full")
    per_block, block = BLOCKS["bf16" if use.cache_type.startswith("q") else use.cache_type]
    size = tokens * use.sequences * kinds.key // per_block * block
    return Part(
        name="copy while the cache grows",
        bytes=size,
        rule=f"keys of one layer once more: {tokens} tokens x {kinds.key} values",
        place=use.place,
        group="cache",
    )


def _padded(value: int, step: int) -> int:
    return -(-value // step) * step
