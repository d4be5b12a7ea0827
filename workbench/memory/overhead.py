"""What a runtime takes besides weights, cache and activations, each as a part of its own."""

from __future__ import annotations

from collections.abc import Iterable

from workbench.memory.estimate import Part, Place
from workbench.memory.weights import Held, Weights

MIB = 2**20
_F32 = 4
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


def unpacking_part(weights: Weights, *, on_device: bool) -> Part:
    """Return what transformers holds in RAM, besides the model, while it unpacks a GGUF file.

    It keeps every tensor until the last one is read (modeling_gguf_pytorch_utils.py): experts in
    float32, the others in the compute dtype, which on a CPU become the model's own; and the tensor
    under way twice more in float32. Files begin with the embedding and the output matrix, so that
    their copies are gone before all the rest is there.

    Args:
        weights: The weights in the compute dtype.
        on_device: Whether they go to a device; else they stay in RAM.
    """
    if not on_device:
        wide = [held for held in weights.tensors if _F32 * held.shape.count > held.bytes]
        size = sum(_unpacked(held) for held in wide if held.shape.kind == "expert")
        rule = "experts in float32, until all of them are read"
    else:
        ends = [held for held in weights.tensors if held.shape.layer is None]
        inner = [held for held in weights.tensors if held.shape.layer is not None]
        first = sum(map(_unpacked, ends)) + _copies(ends)
        size = max(first, sum(map(_unpacked, weights.tensors)) + _copies(inner))
        rule = (
            "a GGUF file's weights before they go to the device, experts in float32, and the "
            "tensor under way twice more"
        )
    return Part(name="unpacking in RAM", bytes=size, rule=rule, place="host", group="overhead")


def _unpacked(held: Held) -> int:
    return _F32 * held.shape.count if held.shape.kind == "expert" else held.bytes


def _copies(tensors: Iterable[Held]) -> int:
    return 2 * _F32 * max((held.shape.count for held in tensors), default=0)


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
