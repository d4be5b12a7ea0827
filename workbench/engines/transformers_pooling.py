"""How an embedding model makes one vector of a text, by its own sentence-transformers files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import FormatError, UnsupportedError

_WAYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Switches of 1_Pooling/config.json in the order in which several are joined."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """What follows the last hidden states.

    Attributes:
        ways: How the tokens become one vector; several are joined side by side.
        dense: Folders of linear layers that follow.
        normalized: Whether the model itself scales to length 1.
        prompt: What is put before each text.
        longest: Most tokens, or None where only the model's positions limit them.
        lower: Whether texts are put in lower case.
    """

    ways: tuple[str, ...]
    dense: tuple[Path, ...] = ()
    normalized: bool = False
    prompt: str = ""
    longest: int | None = None
    lower: bool = False


def is_sentence_model(folder: Path) -> bool:
    """Whether a folder has the layout of sentence-transformers."""
    return (folder / "modules.json").is_file()


def read_pooling(folder: Path, *, causal: bool) -> Pooling:
    """Return how the model pools; without files of its own, the last token or the mean.

    Args:
        folder: The model's folder.
        causal: Whether its config names a causal model: only the last token has seen all others.

    Raises:
        FormatError: A file is not what it should be.
        UnsupportedError: It has a layer that is not known here.
    """
    if not is_sentence_model(folder):
        return Pooling(ways=("lasttoken" if causal else "mean",))
    ways: tuple[str, ...] = ()
    dense: list[Path] = []
    normalized = False
    for module in _read(folder / "modules.json", list):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        place = _inside(folder, str(module.get("path", "")))
        if kind == "Pooling":
            ways = _ways(_read(place / "config.json", dict))
        elif kind == "Dense":
            dense.append(place)
        elif kind == "Normalize":
            normalized = True
        elif kind != "Transformer":
            raise UnsupportedError(
                f"{folder.name} has a layer {kind!r} after its transformer, which is not known."
            )
    extra = _optional(folder / "config_sentence_transformers.json")
    sizes = _optional(folder / "sentence_bert_config.json")
    named = extra.get("default_prompt_name")
    prompts = extra.get("prompts") or {}
    return Pooling(
        ways=ways or ("lasttoken" if causal else "mean",),
        dense=tuple(dense),
        normalized=normalized,
        prompt=str(prompts.get(named, "")) if named else "",
        longest=sizes.get("max_seq_length"),
        lower=bool(sizes.get("do_lower_case", False)),
    )


def _ways(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    found = tuple(way for switch, way in _WAYS.items() if config.get(switch))
    if named is not None:
        found = tuple(str(each) for each in ([named] if isinstance(named, str) else named))
    unknown = [way for way in found if way not in _WAYS.values()]
    if unknown:
        raise UnsupportedError(f"The pooling {unknown[0]!r} is not known.")
    return found


def _inside(folder: Path, path: str) -> Path:
    """Return a folder named by a file of the model, which must lie inside the model's own."""
    found = (folder / path).resolve()
    if not found.is_relative_to(folder.resolve()):
        raise FormatError(f"{folder / 'modules.json'} names {path!r}, outside the model's folder.")
    return found


def _read(file: Path, kind: type) -> Any:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{file} cannot be read: {error}.") from None
    if not isinstance(found, kind):
        raise FormatError(f"{file} holds a {type(found).__name__}, not a {kind.__name__}.")
    return found


def _optional(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = _read(file, dict) if file.is_file() else {}
    return found


def pooled(hidden: Any, mask: Any, ways: tuple[str, ...]) -> Any:
    """Return one vector a row: hidden [rows, tokens, width] and mask [rows, tokens], in fp32."""
    import torch

    states, seen = hidden.float(), mask[..., None].float()
    count = seen.sum(1)
    found = []
    for way in ways:
        if way == "cls":
            first = mask.argmax(-1)
            found.append(states[torch.arange(len(states), device=states.device), first])
        elif way == "lasttoken":
            last = mask.shape[-1] - 1 - mask.flip(-1).argmax(-1)
            found.append(states[torch.arange(len(states), device=states.device), last])
        elif way == "max":
            found.append(states.masked_fill(seen == 0, -torch.inf).amax(1))
        elif way == "weightedmean":
            weights = seen * torch.arange(1, states.shape[1] + 1, device=states.device)[:, None]
            found.append((states * weights).sum(1) / weights.sum(1))
        else:
            divisor = count.sqrt() if way == "mean_sqrt_len" else count
            found.append((states * seen).sum(1) / divisor)
    return torch.cat(found, -1)


class Dense:
    """A linear layer after the pooling, read from its own folder."""

    def __init__(self, folder: Path, device: Any) -> None:
        import torch
        from safetensors.torch import load_file

        config = _read(folder / "config.json", dict)
        name = str(config.get("activation_function", "torch.nn.modules.linear.Identity"))
        kind = name.rsplit(".", 1)[-1]
        known = {"Identity": None, "Tanh": torch.tanh, "ReLU": torch.relu, "Sigmoid": torch.sigmoid}
        if kind not in known:
            raise UnsupportedError(f"The dense layer {folder.name} has the activation {kind!r}.")
        self._activation = known[kind]
        file = folder / "model.safetensors"
        if not file.is_file():
            raise FormatError(f"{folder} holds no model.safetensors.")
        weights = load_file(file, device=str(device))
        self._weight = weights["linear.weight"].float()
        self._bias = weights["linear.bias"].float() if "linear.bias" in weights else None

    def __call__(self, vectors: Any) -> Any:
        """Return the vectors through the layer, fp32 [rows, out]."""
        import torch

        found = torch.nn.functional.linear(vectors, self._weight, self._bias)
        return found if self._activation is None else self._activation(found)
