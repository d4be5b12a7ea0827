"""Count the weights that stored tensors stand for, packed ones unpacked."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from workbench.catalog.gguf_header import GGML_TYPES
from workbench.catalog.header_tensor import Tensor
from workbench.catalog.safetensors_header import DTYPE_BITS

_BLOCKS = {kind.name: kind.values for kind in GGML_TYPES.values()}
_FP8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_NARROW = (*_FP8, "I8", "U8", "I16", "I32", "U32", "F4", "F6_E2M3", "F6_E3M2")
_MAYBE_PACKED = ("U8", "I8", "I16", "U16", "I32", "U32")

# Computed from the configuration, or state of training: in a file, but no weights.
_BUFFER = re.compile(
    r"(^|[._])(inv_freq|position_ids|token_type_ids|masked_bias|num_batches_tracked|cos_cached"
    r"|sin_cached|rope_freqs\.weight|rope_factors_(long|short)\.weight)$"
)
_BITSANDBYTES = re.compile(
    r"(.*)\.(absmax|nested_absmax|quant_map|nested_quant_map|quant_state\.[^.]*)"
)
_CACHE_SCALE = re.compile(r".*\.(k|v|q|kv|prob)_scale")
_SPARSE = re.compile(r".*\.(bitmask|compressed|row_offsets|W_q|codes|q_weight)")
# The end of a companion's name, and what its tensor's name has there instead.
_COMPANIONS = (
    (".SCB", ".weight"), (".weight_format", ".weight"),
    (".qzeros", ".qweight"), (".scales", ".qweight"), (".g_idx", ".qweight"),
    (".scales", ".weight"), (".biases", ".weight"), ("_scales", "_blocks"),
    ("_scale", "_packed"), ("_zero_point", "_packed"), ("_shape", "_packed"),
    ("_g_idx", "_packed"), ("_global_scale", "_packed"),
    ("_scale_inv", ""), ("_scale_2", ""), ("_scale", ""), ("_zero_point", ""),
    (".input_global_scale", ".weight_packed"), (".input_scale", ".weight"),
    (".input_scale", ".weight_packed"), (".output_scale", ".weight"),
    (".input_zero_point", ".weight"), (".input_scale_ub", ".weight"),
    (".activation_scale", ".weight"), ("_bias_correction", ""),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Counted:
    """A stored tensor and the weights that it stands for.

    Attributes:
        tensor: As stored.
        weights: Parameters; 0 for scales and buffers, None where the packing is not told.
        method: How it is quantized, in the words of ``StoredForm``; None where it is not.
        bits: Bits of one of its weights, where quantized and told.
        kind: What the method calls its form, for example ``nf4``.
    """

    tensor: Tensor
    weights: int | None
    method: str | None = None
    bits: int | None = None
    kind: str | None = None


def count_gguf(tensors: Iterable[Tensor]) -> tuple[Counted, ...]:
    """Count the weights of GGUF tensors: their shape says them all."""
    return tuple(
        Counted(
            tensor,
            0 if _BUFFER.search(tensor.name) else tensor.elements,
            "gguf" if _BLOCKS.get(tensor.dtype, 1) > 1 else None,
        )
        for tensor in tensors
    )


def count_safetensors(
    tensors: Iterable[Tensor], config: Mapping[str, Any] | None
) -> tuple[Counted, ...]:
    """Count the weights of safetensors, seeing packed ones by their companions' names.

    Layouts: AutoGPTQ and AutoAWQ (``qweight`` int32), bitsandbytes (``quant_state``, ``SCB``),
    gpt-oss (``_blocks`` of MXFP4), compressed-tensors (``weight_packed``), ModelOpt (uint8 with
    ``weight_scale``), MLX (uint32 with ``scales``), fp8 with scales.

    Args:
        tensors: As stored.
        config: config.json, which alone tells the bits of some packings.
    """
    reader = _Reader({tensor.name: tensor for tensor in tensors}, config or {})
    return tuple(reader.counted(tensor) for tensor in reader.names.values())


def quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what config.json says of quantization, empty where nothing."""
    text = config.get("text_config")
    for place in (config, text if isinstance(text, Mapping) else {}):
        for key in ("quantization_config", "quantization", "compression_config"):
            found = place.get(key)
            if isinstance(found, Mapping) and found:
                return found
    return {}


class _Reader:
    def __init__(self, names: dict[str, Tensor], config: Mapping[str, Any]) -> None:
        self.names = names
        self.said = quantization(config)
        self.bits = self._said_bits()
        # Most checkpoints are plain: then no name need be looked up for what it might belong to.
        self.is_plain = not any(tensor.dtype in _NARROW for tensor in names.values())

    def _said_bits(self) -> int | None:
        groups = self.said.get("config_groups")
        said = [self.said.get("bits"), self.said.get("w_bit")]
        if isinstance(groups, Mapping):
            weights = [group.get("weights") for group in groups.values() if _is_map(group)]
            said = [each.get("num_bits") if _is_map(each) else None for each in weights]
            said = said if len(set(map(str, said))) == 1 else []
        return next((bits for bits in said if type(bits) is int and 1 <= bits <= 16), None)

    def counted(self, tensor: Tensor) -> Counted:
        name = tensor.name
        if not self.is_plain and self._is_companion(name):
            return Counted(tensor, 0, "companion")
        is_mask = name.endswith("attn.bias") and len(tensor.shape) == 4
        if _BUFFER.search(name) or is_mask or tensor.dtype == "BOOL":
            return Counted(tensor, 0)
        packed = None if self.is_plain else self._packed(name, tensor)
        if packed is not None:
            method, bits, kind = packed
            weights = tensor.bytes * 8 // bits if bits else None
            return Counted(tensor, weights, method, bits, kind)
        return self._one_to_one(name, tensor)

    def _one_to_one(self, name: str, tensor: Tensor) -> Counted:
        if tensor.dtype in _FP8:
            return Counted(tensor, tensor.elements, "fp8", 8)
        if tensor.dtype == "I8" and f"{name[:-7]}.SCB" in self.names and name.endswith(".weight"):
            return Counted(tensor, tensor.elements, "bnb", 8, "int8")
        if tensor.dtype == "I8" and f"{name}_scale" in self.names:
            return Counted(tensor, tensor.elements, "compressed-tensors", 8, "int-quantized")
        if tensor.dtype in ("F4", "F6_E2M3", "F6_E3M2"):
            return Counted(tensor, tensor.elements, "other", DTYPE_BITS[tensor.dtype])
        if _SPARSE.fullmatch(name) or (tensor.dtype in _MAYBE_PACKED and len(tensor.shape) > 1):
            return Counted(tensor, None, "other")
        return Counted(tensor, 0 if tensor.dtype in ("I64", "U64") else tensor.elements)

    def _is_companion(self, name: str) -> bool:
        found = _BITSANDBYTES.fullmatch(name)
        if found is not None:
            return found[1] in self.names
        if _CACHE_SCALE.fullmatch(name) and self.names[name].elements == 1:
            return True
        return any(
            name.endswith(end)
            and (partner := self.names.get(name[: -len(end)] + instead)) is not None
            and partner.dtype in _NARROW
            for end, instead in _COMPANIONS
        )

    def _packed(self, name: str, tensor: Tensor) -> tuple[str, int | None, str | None] | None:
        """Return method, bits and kind of a packed tensor; None where it is not packed."""
        names, base = self.names, name.rpartition(".")[0]
        if name.endswith(".qweight"):
            return self._auto(base, tensor)
        states = [f"{name}.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4")]
        for state in states:
            if state in names:
                nested = ", double" if f"{name}.nested_absmax" in names else ""
                return "bnb", 4, state[-3:] + nested
        if name.endswith("_blocks") and f"{name[:-7]}_scales" in names and tensor.dtype == "U8":
            return "mxfp4", 4, None
        if name.endswith("_packed") and f"{name[:-7]}_scale" in names:
            bits = 4 if tensor.dtype == "U8" else self._zero_bits(name[:-7])
            kind = self.said.get("format")
            return "compressed-tensors", bits, kind if isinstance(kind, str) else None
        if tensor.dtype == "U32" and name.endswith(".weight") and f"{base}.scales" in names:
            return "mlx", self._mlx_bits(base), None
        if tensor.dtype == "U8" and f"{name}_scale" in names:
            return "other", 4, "nvfp4" if f"{name}_scale_2" in names else "fp4"
        return None

    def _auto(self, base: str, tensor: Tensor) -> tuple[str, int | None, str | None]:
        zeros, scales = self.names.get(f"{base}.qzeros"), self.names.get(f"{base}.scales")
        bits, width = self.bits, DTYPE_BITS.get(tensor.dtype, 32)
        told = zeros and scales and zeros.shape and scales.shape and scales.shape[-1]
        if zeros and scales and told and zeros.shape[-1] * width % scales.shape[-1] == 0:
            bits = zeros.shape[-1] * width // scales.shape[-1] or None
        whole = scales is not None and scales.shape[-1:] == tensor.shape[-1:]
        return "gptq" if whole else "awq", bits if bits and bits <= 16 else self.bits, None

    def _zero_bits(self, base: str) -> int | None:
        """Return bits by the packed zero points, whose rows are packed like weights."""
        if self.bits is not None:
            return self.bits
        zeros, scales = self.names.get(f"{base}_zero_point"), self.names.get(f"{base}_scale")
        if zeros is None or scales is None or not zeros.shape or not scales.shape:
            return None
        rows = scales.shape[0]
        even = zeros.dtype == "I32" and rows and zeros.shape[0] * 32 % rows == 0
        bits = zeros.shape[0] * 32 // rows if even else 0
        return bits if 1 <= bits <= 16 else None

    def _mlx_bits(self, module: str) -> int | None:
        own = self.said.get(module)
        bits = own.get("bits") if isinstance(own, Mapping) else self.bits
        return bits if type(bits) is int and 1 <= bits <= 16 else None


def _is_map(value: object) -> bool:
    return isinstance(value, Mapping)
