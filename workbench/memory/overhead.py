"""What a runtime takes besides weights, cache and activations, each as a part of its own."""

from __future__ import annotations

from workbench.memory.estimate import Part, Place
from workbench.memory.weights import Weights

MIB = 2**20
_SEGMENT, _UNSPLIT, _LARGE, _MIDDLE, _ROUND = 2 * MIB, MIB, 10 * MIB, MIB, 512
_CONTEXT = 450 * MIB
_CUBLAS = 8 * MIB + 128 * 1024
_PROCESS = {"transformers": 350, "llama.cpp": 45, "mlx": 120, "vllm": 1500, "sglang": 1500,
            "tensorrt-llm": 1500}  # fmt: skip


def block_bytes(size: int) -> int:
    """Return what PyTorch's CUDA allocator books for one tensor (CUDACachingAllocator.cpp).

    Sizes are rounded to 512 B; a tensor of 10 MiB and more gets a segment of whole 2 MiB, whose
    rest is split off only where it is above 1 MiB.
    """
    rounded = -(-size // _ROUND) * _ROUND
    if rounded < _LARGE:
        return rounded
    segment = -(-rounded // _SEGMENT) * _SEGMENT
    return segment if segment - rounded <= _UNSPLIT else rounded


def rounding_part(weights: Weights, *, shards: int = 1) -> Part:
    """Return what the allocator books above the weights, tensor by tensor."""
    extra = sum(
        block_bytes(held.bytes // shards) - held.bytes // shards
        for held in weights.tensors
        if held.shape.kind not in ("expert",)
    )
    return Part(
        name="allocator rounding",
        bytes=extra,
        rule="each tensor to 512 B, those from 10 MiB on to 2 MiB where at most 1 MiB is left over",
        group="overhead",
    )


def cuda_parts(*, torch: bool) -> tuple[Part, ...]:
    """Return the CUDA context and, within PyTorch, cuBLAS's workspace."""
    context = Part(
        name="CUDA context",
        bytes=_CONTEXT,
        rule="300 to 600 MiB by GPU, driver and loaded kernels; no framework counts it",
        group="overhead",
        counter="process",
    )
    if not torch:
        return (context,)
    workspace = Part(
        name="cuBLAS workspace",
        bytes=_CUBLAS,
        rule="8.125 MiB by PyTorch's default (:4096:2:16:8); 32 MiB on Hopper",
        group="overhead",
    )
    return workspace, context


def process_part(engine: str) -> Part:
    """Return what the process itself takes in RAM."""
    return Part(
        name="process",
        bytes=_PROCESS[engine] * MIB,
        rule="interpreter and libraries, as measured on Linux; more once CUDA is loaded",
        place="host",
        group="overhead",
        counter="process",
    )


def slack_part(size: int, *, share: float, place: Place = "device") -> Part:
    """Return what the allocator reserves above what is in use."""
    return Part(
        name="allocator slack",
        bytes=round(size * share),
        rule=f"{share:.0%} of what is allocated: freed blocks of sizes that nobody asks for again",
        place=place,
        group="overhead",
        counter="reserved",
    )
