"""A LoRA adapter on disk: what it is, which base it belongs to, whether it can be merged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from workbench.catalog import Card, ModelFiles, catalog, locate, resolve
from workbench.errors import FormatError, InputError, NotFoundError, UnsupportedError
from workbench.formats.safetensors import header
from workbench.paths import shipped

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MERGEABLE = ("LORA",)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A PEFT LoRA adapter and its base.

    Attributes:
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        config: Content of ``adapter_config.json``.
        base: Card of the base model.
        base_files: The base's safetensors.
    """

    folder: Path
    config: dict[str, Any]
    base: Card
    base_files: ModelFiles


def is_adapter(path: str | Path | Card) -> bool:
    """Return whether ``path`` is the folder of an adapter."""
    return not isinstance(path, Card) and (Path(path).expanduser() / CONFIG).is_file()


def read_adapter(path: str | Path, *, base: str | Path | Card | None = None) -> Adapter:
    """Read an adapter and find its base.

    Args:
        path: Folder of the adapter.
        base: The base model; default is the one that the adapter names.

    Raises:
        InputError: The folder is no adapter.
        UnsupportedError: Its kind cannot be merged, its weights are a pickle, or the base is
            quantized.
        FormatError: A file is cut off or damaged.
        NotFoundError: The base is not here.
    """
    folder = Path(path).expanduser().resolve()
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder} is not a LoRA adapter: it has no {CONFIG}.",
            hint="Give the folder that the fine-tuning left.",
        )
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{folder / CONFIG} is not valid JSON: {error}.") from None
    kind = str(config.get("peft_type"))
    if kind not in _MERGEABLE:
        raise UnsupportedError(
            f"The adapter {folder.name} is of the kind {kind}, which cannot be merged.",
            hint="LoRA adapters (also rsLoRA and DoRA) can.",
        )
    if not (folder / WEIGHTS).is_file():
        pickled = " It has a pickle, which can run any code when it is loaded."
        raise UnsupportedError(
            f"The adapter {folder.name} has no {WEIGHTS}."
            f"{pickled if list(folder.glob('*.bin')) else ''}",
            hint="Save it again with safetensors.",
        )
    header(folder / WEIGHTS)
    card = base_card(base if base is not None else config.get("base_model_name_or_path"), folder)
    files = locate(card)
    if files.kind != "safetensors":
        raise UnsupportedError(
            f"The base {card.id} is a GGUF file; an adapter is merged into safetensors.",
            hint="Give base=, the folder of the safetensors it was trained on.",
        )
    _refuse_quantized(files, card)
    return Adapter(folder=folder, config=config, base=card, base_files=files)


def base_card(base: Any, folder: Path) -> Card:
    """Return the card of the base model that an adapter names, or that was given.

    Args:
        base: An id, a repository, a path or a card; what ``adapter_config.json`` says.
        folder: The adapter's folder.

    Raises:
        InputError: It names none.
        NotFoundError: The base is not here.
    """
    if not base:
        raise InputError(f"The adapter {folder.name} names no base model.", hint="Give base=.")
    if isinstance(base, Card):
        return base
    text = str(base)
    for card in catalog():
        if text in (card.id, card.repository, card.path):
            return card
    try:
        return resolve(base)
    except NotFoundError:
        if not Path(text).is_absolute() and (folder / text).is_dir():
            return resolve(folder / text)
        if text.startswith("data/"):
            return resolve(shipped(*Path(text).parts))
        raise NotFoundError(
            f"The base model {text!r} of the adapter {folder.name} is not here.",
            hint="Give base=, the card or folder of the model it was trained on.",
        ) from None


def _refuse_quantized(files: ModelFiles, card: Card) -> None:
    config = json.loads((files.path / "config.json").read_text(encoding="utf-8"))
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method is not None:
        raise UnsupportedError(
            f"The base {card.id} is quantized ({method}); merging into it would round the adapter "
            "away.",
            hint="Give base=, the 16-bit model that it was quantized from.",
        )
