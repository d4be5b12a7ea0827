"""Bytes of one tensor in every form of weights, by the layout that each library stores."""

from __future__ import annotations

from workbench.catalog.shapes import Shape
from workbench.memory.weight_form import WeightForm

# bitsandbytes 0.50: absmax in fp32 for each block, a code table of 16 fp32 values per tensor; with
# double quantization absmax is 8 bit, in blocks of 256 with fp32 scales, a table of 256 and an
# offset.
_BLOCK, _NESTED_BLOCK = 64, 256
_CODE_BYTES, _NESTED_BYTES = 64, 4 * 256 + 4
_FP32 = 4
_MXFP4_GROUP = 32
# mlx-lm 0.32: families whose routers are quantized at 8 bit in groups of 64, and those whose
# routers are bare parameters.
_MLX_EIGHT_BIT_ROUTERS = {"qwen3_moe", "qwen3_vl_moe", "gpt_oss", "granitemoehybrid", "granitemoe"}
_MLX_PLAIN_ROUTERS = {"deepseek_v2", "deepseek_v3", "kimi_k2"}
_MLX_NEVER = {"attn_sinks", "altup_correct_scale"}
_ROUTERS = {"ffn_gate_inp", "ffn_gate_inp_shexp"}
# AutoAWQ, GPTQ and fp8 checkpoints leave these alone, as well as the image encoder.
_MATRICES = ("linear", "expert")


def stored_as(shape: Shape, form: WeightForm, model_type: str | None) -> tuple[str, int]:
    """Return what a tensor is held as, in a word, and its bytes.

    Args:
        shape: The tensor.
        form: Any form but GGUF, whose types depend on one another.
        model_type: The family, as some have exceptions.
    """
    kind, count = form.kind, shape.count
    plain = form.dtype, count * form.width
    if shape.role == "exp_probs_b":
        return "fp32", count * _FP32
    if kind == "float" or shape.role.startswith(form.not_quantized):
        return plain
    if kind == "mlx":
        return _mlx(shape, form, model_type) or plain
    if kind in ("nf4", "fp4", "int8"):
        return _bitsandbytes(shape, form) if shape.kind == "linear" else plain
    if kind == "mxfp4":
        return ("mxfp4", mxfp4_bytes(shape)) if shape.kind == "expert" else plain
    if shape.kind not in _MATRICES or shape.part == "vision" or shape.role in _ROUTERS:
        return plain
    return ("fp8", _fp8(shape, form)) if kind == "fp8" else _grouped(shape, form)


def four_bit_bytes(count: int, *, double: bool = False) -> int:
    """Return the bytes of a bitsandbytes tensor of 4 bit (QLoRA, arXiv 2305.14314, section 3)."""
    blocks = -(-count // _BLOCK)
    packed = -(-count // 2) + _CODE_BYTES
    if not double:
        return packed + _FP32 * blocks
    return packed + blocks + _FP32 * -(-blocks // _NESTED_BLOCK) + _NESTED_BYTES


def int8_bytes(rows: int, columns: int) -> int:
    """Return the bytes of a bitsandbytes tensor of 8 bit: a fp32 scale for each row."""
    return rows * columns + _FP32 * rows


def mxfp4_bytes(shape: Shape) -> int:
    """Return the bytes of MXFP4 (OCP MX 1.0): half a byte, and a byte for each 32 of a row."""
    groups = -(-shape.columns // _MXFP4_GROUP)
    return shape.rows * groups * (_MXFP4_GROUP // 2 + 1)


def _bitsandbytes(shape: Shape, form: WeightForm) -> tuple[str, int]:
    if form.kind == "int8":
        return "int8", int8_bytes(shape.rows, shape.columns)
    return form.kind, four_bit_bytes(shape.count, double=form.double_quantization)


def _fp8(shape: Shape, form: WeightForm) -> int:
    stacked = shape.shape[0] if len(shape.shape) > 2 else 1
    rows = shape.shape[-2]
    if form.block is not None:
        high, wide = form.block
        scales = stacked * -(-rows // high) * -(-shape.columns // wide)
    else:
        scales = stacked * (rows if form.scales == "row" else 1)
    return shape.count + _FP32 * scales


def _grouped(shape: Shape, form: WeightForm) -> tuple[str, int]:
    """AWQ and GPTQ: packed weights, a fp16 scale and a packed zero point for each group."""
    stacked = shape.shape[0] if len(shape.shape) > 2 else 1
    groups = 1 if form.group_size < 1 else -(-shape.columns // form.group_size)
    size = shape.count * form.bits // 8 + shape.rows * groups * form.scale_bytes
    if form.zero_points:
        size += shape.rows * groups * form.bits // 8
    if form.kind == "gptq" and form.group_index:
        size += stacked * shape.columns * 4
    name = "packed" if form.kind == "packed" else form.kind
    return f"{name} {form.bits} bit", size


def _mlx(shape: Shape, form: WeightForm, model_type: str | None) -> tuple[str, int] | None:
    """MLX: a 16-bit scale and bias for each group of a row, embedding and output as well."""
    bits, group = form.bits, form.group_size
    if shape.part == "vision" or len(shape.shape) < 2 or shape.role in _MLX_NEVER:
        return None
    if shape.kind in ("norm", "bias", "conv") or shape.columns % group:
        return None
    if shape.role in _ROUTERS:
        if model_type in _MLX_PLAIN_ROUTERS:
            return None
        if model_type in _MLX_EIGHT_BIT_ROUTERS:
            return "mlx 8 bit", _affine(shape, 8, 64, form.width)
    if form.mode == "affine":
        return f"mlx {bits} bit", _affine(shape, bits, group, form.width)
    return form.mode, shape.count * bits // 8 + shape.rows * (shape.columns // group)


def _affine(shape: Shape, bits: int, group: int, width: int) -> int:
    return shape.count * bits // 8 + 2 * width * shape.rows * (shape.columns // group)
