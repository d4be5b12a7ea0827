"""Checkpoints that come quantized: what ``quantization_config`` says, and what they need here."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import FormatError, MissingPackageError, UnsupportedError

_NEEDS: Mapping[str, tuple[str, ...]] = {
    "awq": ("gptqmodel",),
    "gptq": ("gptqmodel", "optimum"),
    "compressed-tensors": ("compressed_tensors",),
    "bitsandbytes": ("bitsandbytes",),
    "hqq": ("hqq",),
    "quanto": ("optimum.quanto",),
    "torchao": ("torchao",),
    "aqlm": ("aqlm",),
    "eetq": ("eetq",),
    "vptq": ("vptq",),
    "spqr": ("spqr_quant",),
    "higgs": ("flute",),
    "quark": ("quark",),
    "auto-round": ("auto_round",),
    "gguf": ("gguf", "accelerate"),
}
_ELSEWHERE = ("gptqmodel", "auto_round", "compressed_tensors")
"""Packages that pin versions of torch or transformers of their own."""


def packed_by(folder: Path) -> Mapping[str, Any] | None:
    """Return the ``quantization_config`` of a checkpoint, None where its weights are plain.

    The repository's name says nothing: a name with AWQ in it may hold compressed-tensors.

    Raises:
        FormatError: config.json cannot be read, or names no method.
    """
    file, config = folder / "config.json", read_config(folder)
    text = config.get("text_config")
    found = config.get("quantization_config")
    if not found and isinstance(text, dict):
        found = text.get("quantization_config")
    if not found:
        return None
    if not isinstance(found, dict) or not _method(found):
        raise FormatError(f"{file} has a quantization_config that names no quant_method.")
    return found


def read_config(folder: Path) -> Mapping[str, Any]:
    """Return a model's config.json.

    Raises:
        FormatError: It cannot be read.
    """
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{file} cannot be read: {error}.") from None
    if not isinstance(found, dict):
        raise FormatError(f"{file} holds no JSON object.")
    return found


def _method(config: Mapping[str, Any]) -> str:
    """Return the method; bitsandbytes of early files named only the bits."""
    named = str(config.get("quant_method") or "").lower()
    if not named and (config.get("load_in_4bit") or config.get("load_in_8bit")):
        return "bitsandbytes"
    return "bitsandbytes" if named.startswith("bitsandbytes") else named


def check_packed(config: Mapping[str, Any], name: str, *, made: bool = False) -> str:
    """Return the method of a packed checkpoint, if this interpreter can load it.

    Args:
        config: Its ``quantization_config``.
        name: The model, for errors.
        made: Whether loading is to quantize it besides.

    Raises:
        MissingPackageError: A package that the method needs is not installed.
        UnsupportedError: transformers does not know it, or it is to be quantized once more.
    """
    method = _method(config)
    if made:
        raise UnsupportedError(
            f"The weights of {name} are {method} already; they are not quantized again.",
            hint="Leave quantization out, or start from the unquantized model.",
        )
    missing = [module for module in _NEEDS.get(method, ()) if not _is_here(module)]
    if missing:
        names = " ".join(module.replace("_", "-").replace(".", "-") for module in missing)
        command = f"pip install {names}"
        apart = any(module in _ELSEWHERE for module in missing)
        raise MissingPackageError(
            f"The weights of {name} are {method}, which transformers reads with "
            f"{', '.join(missing)}; not installed.",
            hint=f"{command} installs it"
            + ("; best in another interpreter, as it pins versions of torch." if apart else "."),
        )
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    if not any(each.startswith(method) for each in AUTO_QUANTIZER_MAPPING):
        raise UnsupportedError(
            f"The weights of {name} are {method}, which transformers does not read.",
            hint=f"It reads {', '.join(sorted(AUTO_QUANTIZER_MAPPING))}.",
        )
    return method


def _is_here(module: str) -> bool:
    head, _, rest = module.partition(".")
    if importlib.util.find_spec(head) is None:
        return False
    return not rest or importlib.util.find_spec(module) is not None
