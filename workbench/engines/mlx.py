"""The MLX engine: safetensors by mlx-lm, on Metal and on CPUs, quantized on load where asked."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

from workbench.engines.hub_tokenizer import HubTokenizer
from workbench.engines.mlx_config import ends_of, with_old_names
from workbench.engines.mlx_library import import_library, on_device, settle
from workbench.engines.mlx_session import MlxSession
from workbench.errors import FormatError, InputError, UnsupportedError
from workbench.planning import Plan

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_MODES = {"4bit": (4, 64, "affine"), "8bit": (8, 64, "affine"), "mxfp4": (4, 32, "mxfp4")}
"""Bits, group size and mode of the quantizations that are made on load."""


class MlxEngine:
    """Opens folders of safetensors with mlx-lm; packed ones of MLX are found by their config."""

    name = "mlx"

    def __init__(self) -> None:
        import_library()

    def open(self, plan: Plan) -> MlxSession:
        """Load the plan's model; nothing is fetched and nothing is written.

        Raises:
            UnsupportedError: mlx-lm does not know the architecture, or no layer can be quantized.
            FormatError: The files lack weights, or are damaged.
            InputError: The weights are quantized already, in another way than asked for.
        """
        folder = _folder(plan)
        trusted = bool(plan.options.get("trust_remote_code", False))
        with on_device(plan.device):
            model, config = _load(plan, folder, trusted)
            settle(model)
        if plan.device == "mps":
            _wire()
        tokenizer = HubTokenizer.of(folder, trust_remote_code=trusted)
        session = MlxSession(model, tokenizer, ends_of(folder, config, tokenizer.raw), plan)
        if plan.adapter is not None:
            session.use_adapter(plan.adapter)
        return session


def _folder(plan: Plan) -> Path:
    if plan.files is None or plan.files.kind != "safetensors":
        raise UnsupportedError(
            f"The engine mlx loads safetensors, which {plan.card.id} does not have here."
        )
    return plan.files.path


def _load(plan: Plan, folder: Path, trusted: bool) -> tuple[Any, dict[str, Any]]:
    """Return the model, cast and quantized but not computed yet, and its config."""
    from mlx_lm.utils import load_model

    given = _config(folder)
    _check_architecture(given, folder, trusted)
    try:
        model, config = load_model(
            folder, lazy=True, model_config=with_old_names(given), trust_remote_code=trusted
        )
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        raise FormatError(
            f"mlx-lm cannot load {folder.name}: {error}", hint="Download the model again."
        ) from error
    if plan.dtype is not None:
        _cast(model, _DTYPES[plan.dtype])
    if plan.quantization in _MODES:
        _quantize(model, config, plan.quantization, folder)
    model.eval()
    return model, config


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{file} cannot be read: {error}.") from error
    if not isinstance(found, dict) or "model_type" not in found:
        raise FormatError(f"{file} names no model_type.", hint="Download the model again.")
    return found


def _check_architecture(config: dict[str, Any], folder: Path, trusted: bool) -> None:
    """Refuse what mlx-lm has no code for, and code of the model's own unless it is trusted.

    Raises:
        UnsupportedError: As it says.
    """
    from mlx_lm import utils

    if config.get("model_file") is not None:
        if trusted:
            return
        raise UnsupportedError(
            f"{folder.name} wants to run code of its own, {config['model_file']}.",
            hint="Read it first; trust_remote_code=True allows it.",
        )
    kind = str(config["model_type"])
    name = utils.MODEL_REMAPPING.get(kind, kind)
    for architecture in config.get("architectures") or ():
        name = utils.MODEL_ARCHITECTURE_REMAPPING.get((kind, architecture), name)
    if not name.isidentifier() or importlib.util.find_spec(f"mlx_lm.models.{name}") is None:
        raise UnsupportedError(
            f"This mlx-lm does not know the architecture {kind!r}.",
            hint="engine='transformers' or engine='llama.cpp' may.",
        )


def _cast(model: Any, dtype: str) -> None:
    """Cast the weights, but for those that the architecture wants left alone."""
    import mlx.core as mx
    from mlx.utils import tree_map_with_path

    wanted = getattr(mx, dtype)
    may = getattr(model, "cast_predicate", lambda _: True)

    def cast(name: str, weight: Any) -> Any:
        if may(name) and mx.issubdtype(weight.dtype, mx.floating):
            return weight.astype(wanted)
        return weight

    model.update(tree_map_with_path(cast, model.parameters()))


def _quantize(model: Any, config: dict[str, Any], name: str, folder: Path) -> None:
    """Quantize in place; layers whose rows the group does not divide stay, and it is told.

    Raises:
        InputError: The weights are quantized already, in another way.
        UnsupportedError: No layer can be quantized so.
    """
    from mlx import nn

    bits, group, mode = _MODES[name]
    packed = config.get("quantization")
    if packed:
        found = (packed.get("bits"), packed.get("mode", "affine"))
        if found == (bits, mode):
            return
        raise InputError(
            f"{folder.name} is quantized already, to {found[0]} bits ({found[1]}).",
            hint="Leave quantization out: it is loaded as it is.",
        )
    rows = {
        path: int(module.weight.shape[-1])
        for path, module in model.named_modules()
        if hasattr(module, "to_quantized")
    }
    odd = {path: width for path, width in rows.items() if width % group}
    if len(odd) == len(rows):
        raise UnsupportedError(
            f"No layer of {folder.name} can be quantized to {name}: {group} does not divide its "
            f"rows of {', '.join(str(width) for width in sorted(set(odd.values())))} weights.",
            hint="Leave quantization out.",
        )
    wanted = getattr(model, "quant_predicate", None) or (lambda *_: True)

    def chosen(path: str, module: Any) -> Any:
        """Return whether to quantize a layer, or with which settings of its own."""
        return path in rows and path not in odd and wanted(path, module)

    nn.quantize(model, group, bits, mode=mode, class_predicate=chosen)
    if odd:
        first = next(iter(odd))
        warnings.warn(
            f"{len(odd)} of {len(rows)} layers of {folder.name} are not quantized to {name}: "
            f"{group} does not divide their rows, {odd[first]} weights in {first}.",
            stacklevel=2,
        )


def _wire() -> None:
    """Let Metal keep weights in place up to what the system recommends, as mlx-lm does."""
    from mlx_lm.utils import maybe_set_recommended_wired_limit

    maybe_set_recommended_wired_limit()
