"""In which form weights lie in memory, by the name that a user, a plan or a card has for it."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from workbench.catalog.card import StoredForm
from workbench.errors import UnsupportedError, did_you_mean
from workbench.memory.gguf_mix import FILE_TYPES
from workbench.settings import Settings

Kind = Literal[
    "float", "nf4", "fp4", "int8", "fp8", "awq", "gptq", "packed", "mxfp4", "mlx", "gguf",
]  # fmt: skip
FLOAT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 2}
_GGUF_FLOATS = {"fp32": "F32", "bf16": "BF16", "fp16": "F16", "fp8": "BF16"}
# What configurations call the tensors that they leave alone, beyond what no method touches.
_ROLES = {
    "self_attn": "attn_",
    "router": "ffn_gate_inp",
    "mlp.gate": "ffn_gate_inp",
    "embed_tokens": "token_embd",
    "lm_head": "output",
    "mlp.down_proj": "ffn_down",
}
_MLX = re.compile(r"(?:mlx-?)?(?:int|q)?([2-8])-?(?:bit)?")
_MLX_MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
NAMES = (
    "none", "fp32", "bf16", "fp16", "nf4", "nf4-double", "fp4", "int8", "fp8", "awq", "gptq",
    "gptq-8", "compressed-tensors", "mxfp4", "mlx-4bit", "mlx-8bit", *FILE_TYPES,
)  # fmt: skip
"""Names that ``weight_form`` takes, among others of the same pattern."""


class WeightForm(Settings):
    """In which form the weights lie in memory, and what it leaves alone."""

    kind: Kind = "float"
    """The method; ``packed`` is that of compressed-tensors."""
    dtype: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Dtype of all that is not quantized."""
    bits: int = Field(default=4, ge=2, le=16)
    """Bits of a quantized weight (AWQ, GPTQ, MLX)."""
    group_size: int = Field(default=128, ge=-1)
    """Weights that share a scale, -1 a whole row (AWQ, GPTQ, MLX)."""
    double_quantization: bool = False
    """Whether the scales are quantized too (bitsandbytes 4 bit)."""
    scale_bytes: int = Field(default=2, ge=1, le=4)
    """Bytes of one scale (AWQ, GPTQ, packed)."""
    zero_points: bool = True
    """Whether groups have packed zero points (AWQ, packed; GPTQ files always do)."""
    group_index: bool = True
    """Whether a group number per input is held (GPTQ files always have it)."""
    block: tuple[int, int] | None = None
    """Rows and columns that share a scale (fp8); None: ``scales`` says."""
    scales: Literal["tensor", "row"] = "tensor"
    """What shares a scale of fp8 where there is no block."""
    not_quantized: tuple[str, ...] = ()
    """Tensors that stay as they are, by the beginning of their role."""
    file_type: str | None = None
    """llama.cpp's name of the mix (GGUF)."""
    expert_type: str | None = None
    """Type that experts keep, as they are stored so (gpt-oss in GGUF: MXFP4)."""
    imatrix: bool | None = None
    """Whether an importance matrix is given; None: where the file type needs one."""
    mode: Literal["affine", "mxfp4", "mxfp8", "nvfp4"] = "affine"
    """How MLX packs a group."""
    vision: bool = True
    """Whether the image encoder is loaded too."""

    @property
    def width(self) -> int:
        """Bytes of a weight that is not quantized."""
        return FLOAT_BYTES[self.dtype]

    @property
    def gguf_float(self) -> str:
        """Type of the tensors that llama.cpp leaves alone."""
        return _GGUF_FLOATS[self.dtype]


def weight_form(
    quantization: str | None = None,
    *,
    dtype: str | None = None,
    engine: str | None = None,
    stored: StoredForm | None = None,
    unpacked: bool = False,
) -> WeightForm:
    """Return the form of a name.

    Args:
        quantization: ``none`` or None: as stored; ``fp32``, ``bf16``, ``fp16``; ``nf4``,
            ``nf4-double``, ``fp4``, ``int8`` (bitsandbytes); ``fp8``; ``awq``, ``gptq``,
            ``gptq-8``; ``mxfp4``; with the engine ``mlx``: ``4bit``, ``8bit``, ``mxfp4`` and so
            on (or ``mlx-4bit``); any file type of llama.cpp (``Q4_K_M``).
        dtype: Dtype of what is not quantized; None takes bf16.
        engine: ``transformers``, ``llama.cpp``, ``mlx``, ``vllm`` and so on.
        stored: How the card's own files are quantized.
        unpacked: Whether stored packed weights become 16 bit on loading (MXFP4 without its
            kernels, fp8 on a GPU that has none).

    Raises:
        UnsupportedError: The name is not known, or nothing is known of the form's bytes.
    """
    plain = "bf16" if dtype in (None, "fp8") else str(dtype)
    if plain not in FLOAT_BYTES:
        raise UnsupportedError(
            f"There is no dtype {dtype!r} for weights.", hint=did_you_mean(plain, FLOAT_BYTES)
        )
    name = quantization or "none"
    known = stored if stored and name in ("none", stored.method, *_aliases(stored)) else None
    if unpacked and (known is not None or name == "none"):
        return WeightForm.of({"dtype": plain})
    if known is not None and known.method == "gguf":
        name = known.quantization or known.detail or name
    elif known is not None:
        return _stored(known, plain, engine)
    if name in FILE_TYPES:
        keeps = "MXFP4" if stored and stored.method == "mxfp4" else None
        given = {"kind": "gguf", "dtype": plain, "file_type": name, "expert_type": keeps}
        return WeightForm.of({**given, "vision": False})
    if engine == "llama.cpp" and name in ("none", *FLOAT_BYTES):
        kept = plain if name == "none" else name
        return WeightForm.of(
            {"kind": "gguf", "dtype": kept, "file_type": _GGUF_FLOATS[kept], "vision": False}
        )
    return _named(name, plain, engine)


def _aliases(stored: StoredForm) -> tuple[str, ...]:
    return (f"{stored.method}-{stored.bits}",)


def _named(name: str, plain: str, engine: str | None) -> WeightForm:
    """Return the form of a name that no card explains."""
    if name in ("none", "fp32", "bf16", "fp16"):
        dtype = plain if name == "none" else name
        return WeightForm.of({"dtype": dtype, "vision": engine != "mlx"})
    given: dict[str, object] = {"dtype": plain}
    mlx = _MLX.fullmatch(name)
    if engine == "mlx" and name in _MLX_MODES:
        bits, group = _MLX_MODES[name]
        given |= {"kind": "mlx", "mode": name, "bits": bits, "group_size": group, "vision": False}
    elif mlx and (engine == "mlx" or name.startswith("mlx") or name.endswith("bit")):
        given |= {"kind": "mlx", "bits": int(mlx[1]), "group_size": 64, "vision": False}
    elif name in ("nf4", "fp4", "nf4-double", "fp4-double"):
        given |= {"kind": name[:3], "double_quantization": name.endswith("double")}
    elif name == "int8":
        given["kind"] = "int8"
    elif name in ("fp8", "mxfp4", "awq"):
        given["kind"] = name
    elif name in ("gptq", "gptq-4", "gptq-8"):
        given |= {"kind": "gptq", "bits": 8 if name.endswith("8") else 4}
    elif name == "compressed-tensors":
        given |= {"kind": "packed", "zero_points": False, "group_index": False}
    else:
        raise UnsupportedError(
            f"Nothing is known of the bytes of weights in the form {name!r}.",
            hint=did_you_mean(name, NAMES),
        )
    return WeightForm.of(given)


def _stored(stored: StoredForm, plain: str, engine: str | None) -> WeightForm:
    """Return the form that a card or a header tells of its own files."""
    method, bits, detail = stored.method, stored.bits or 4, stored.detail or ""
    if method in ("onnx", "other"):
        raise UnsupportedError(
            f"Nothing is known of the bytes of weights stored as {detail or method}.",
            hint="Look at the size of the files.",
        )
    given: dict[str, object] = {
        "kind": method,
        "dtype": plain,
        "bits": bits,
        "not_quantized": [_ROLES[name] for name in stored.not_quantized if name in _ROLES],
        "vision": engine not in ("mlx", "llama.cpp"),
    }
    if stored.group_size:
        given["group_size"] = stored.group_size
    if method == "fp8" or (method == "compressed-tensors" and bits == 8):
        scales = "tensor" if method == "fp8" else "row"
        given |= {"kind": "fp8", "block": stored.block, "scales": scales}
    elif method == "compressed-tensors":
        scale = 1 if detail.startswith("nvfp4") else 2
        zeros = bool(stored.zero_point)
        given |= {"kind": "packed", "zero_points": zeros, "scale_bytes": scale}
    elif method == "bnb":
        four = "fp4" if detail.startswith("fp4") else "nf4"
        double = detail.endswith("double")
        given |= {"kind": "int8" if bits == 8 else four, "double_quantization": double}
    elif method == "mlx":
        mode = detail if detail in _MLX_MODES else "affine"
        given |= {"mode": mode, "group_size": stored.group_size or 64, "vision": False}
    elif method == "awq":
        given["zero_points"] = stored.zero_point is not False
    return WeightForm.of(given)
