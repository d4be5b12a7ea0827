"""LoRA adapters on a model of MLX: its own folders, and PEFT folders turned over while loading."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from workbench.engines.mlx_library import settle
from workbench.errors import FormatError, InputError, UnsupportedError

_OWN_WEIGHTS = "adapters.safetensors"
_PEFT_WEIGHTS = "adapter_model.safetensors"
_MATRIX = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


class MlxAdapters:
    """The adapter on one model; the base's own layers and weights come back when it is taken off.

    Args:
        model: The base.

    Attributes:
        folder: The adapter in use, or None for the base alone.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.folder: Path | None = None
        self._layers: list[tuple[str, Any]] = []
        self._weights: list[tuple[str, Any]] = []

    def use(self, folder: Path | None) -> None:
        """Answer with this adapter from now on, or with the base alone; as before on an error.

        Raises:
            InputError: The folder holds no adapter, or one for another model.
            UnsupportedError: It is of a kind that MLX has not.
            FormatError: Its files are damaged.
        """
        before = self.folder
        self._take_off()
        if folder is None:
            return
        try:
            self._put_on(folder)
        except Exception:
            self._take_off()
            if before is not None:
                self._put_on(before)
            raise

    def close(self) -> None:
        """Forget the model."""
        self._model = None
        self._layers, self._weights = [], []

    def _take_off(self) -> None:
        from mlx.utils import tree_unflatten

        if self._layers:
            self._model.update_modules(tree_unflatten(self._layers))
        if self._weights:
            self._model.load_weights(self._weights, strict=False)
        self._layers, self._weights, self.folder = [], [], None

    def _put_on(self, folder: Path) -> None:
        config = _config(folder)
        if (folder / _PEFT_WEIGHTS).is_file() or "peft_type" in config:
            self._put_peft_on(folder, config)
        else:
            self._put_own_on(folder, config)
        self._model.eval()
        settle(self._model)
        self.folder = folder

    def _put_own_on(self, folder: Path, config: dict[str, Any]) -> None:
        """Put on what ``mlx_lm.lora`` trained: LoRA, DoRA, or whole weights."""
        from mlx import nn
        from mlx.utils import tree_flatten
        from mlx_lm.tuner.utils import load_adapters

        given = _tensors(folder / _OWN_WEIGHTS)
        own = dict(tree_flatten(self._model.parameters()))
        layers = tree_flatten(self._model.leaf_modules(), is_leaf=nn.Module.is_module)
        self._weights = [(name, own[name]) for name in given if name in own]
        self._layers = [] if config.get("fine_tune_type") == "full" else layers
        try:
            load_adapters(self._model, str(folder))
        except (ValueError, KeyError, AttributeError) as error:
            raise _misfit(folder, str(error)) from error

    def _put_peft_on(self, folder: Path, config: dict[str, Any]) -> None:
        """Put on a PEFT LoRA: ``y = Wx + scale * B(Ax)``, with A and B turned over for MLX."""
        from mlx.utils import tree_unflatten

        _check_kind(folder, config)
        modules = dict(self._model.named_modules())
        made = []
        for name, sides in _pairs(folder).items():
            path = next((each for each in (name, f"language_model.{name}") if each in modules), "")
            if not path:
                raise _misfit(folder, f"it adapts {name}, which is not in this model")
            made.append((path, _layer(folder, name, modules[path], sides, config)))
        if not made:
            raise _misfit(folder, "it has no LoRA weights")
        self._layers = [(path, modules[path]) for path, _ in made]
        self._model.update_modules(tree_unflatten(made))


def _layer(
    folder: Path, name: str, base: Any, sides: dict[str, Any], config: dict[str, Any]
) -> Any:
    """Return MLX's LoRA layer around a linear one, with PEFT's matrices and scale."""
    from mlx import nn
    from mlx_lm.tuner.lora import LoRALinear

    if not isinstance(base, nn.Linear | nn.QuantizedLinear):
        raise UnsupportedError(
            f"The adapter {folder.name} adapts {name}, a {type(base).__name__}: only linear layers "
            "take a PEFT LoRA with the engine mlx.",
            hint="engine='transformers' loads it.",
        )
    if set(sides) != {"A", "B"}:
        raise FormatError(f"{folder / _PEFT_WEIGHTS} lacks one of the two matrices of {name}.")
    rank = sides["A"].shape[0]
    made = LoRALinear.from_base(base, r=rank, dropout=0.0, scale=_scale(name, rank, config))
    given = (sides["A"].T, sides["B"].T)
    wanted = (made.lora_a.shape, made.lora_b.shape)
    if tuple(each.shape for each in given) != wanted:
        raise _misfit(
            folder,
            f"{name} takes matrices of {wanted[0]} and {wanted[1]} here, the adapter has "
            f"{given[0].shape} and {given[1].shape}",
        )
    made.lora_a, made.lora_b = given
    return made


def _scale(name: str, rank: int, config: dict[str, Any]) -> float:
    """Return alpha / r, or alpha / sqrt(r) of rank-stabilized LoRA (arXiv:2312.03732)."""
    alpha = float(config.get("lora_alpha") or rank)
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = float(own)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _check_kind(folder: Path, config: dict[str, Any]) -> None:
    """Refuse PEFT adapters that are more, or other, than plain LoRA matrices."""
    kind = str(config.get("peft_type", "LORA")).upper()
    odd = [f"the kind {kind}"] if kind != "LORA" else []
    odd += ["DoRA"] if config.get("use_dora") else []
    odd += ["whole modules"] if config.get("modules_to_save") else []
    odd += ["trained biases"] if config.get("bias", "none") != "none" else []
    if odd:
        raise UnsupportedError(
            f"The adapter {folder.name} has {' and '.join(odd)}, which the engine mlx does not "
            "take from PEFT.",
            hint="engine='transformers' loads it, and merging makes it part of the model.",
        )


def _pairs(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the matrices of a PEFT folder by module: A is [rank, in], B is [out, rank]."""
    found: dict[str, dict[str, Any]] = {}
    for key, tensor in _tensors(folder / _PEFT_WEIGHTS).items():
        matched = _MATRIX.fullmatch(key)
        if matched is None:
            raise UnsupportedError(
                f"The adapter {folder.name} holds {key}, which the engine mlx does not take from "
                "PEFT.",
                hint="engine='transformers' loads it.",
            )
        found.setdefault(matched["module"], {})[matched["side"]] = tensor
    return found


def _tensors(file: Path) -> dict[str, Any]:
    import mlx.core as mx

    if not file.is_file():
        raise InputError(
            f"{file.parent} holds no {file.name}.",
            hint="Only safetensors are loaded: save the adapter again.",
        )
    try:
        found = mx.load(str(file))
    except (RuntimeError, ValueError) as error:
        raise FormatError(f"{file} cannot be read: {error}.") from None
    assert isinstance(found, dict)  # what safetensors are
    return found


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise InputError(
            f"{folder} holds no adapter: there is no adapter_config.json.",
            hint="Give the folder that wb.finetune, peft or mlx_lm.lora wrote.",
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{file} is no adapter configuration: {error}.") from None
    if not isinstance(found, dict):
        raise FormatError(f"{file} is no adapter configuration.")
    return found


def _misfit(folder: Path, reason: str) -> InputError:
    return InputError(
        f"The adapter {folder.name} was made for another model: {reason}.",
        hint="adapter_config.json names the base it was trained on.",
    )
