"""The shelf: reads the cards that ship and the user's own, and finds one by id or path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.catalog.architecture import Architecture
from workbench.catalog.card import Card
from workbench.catalog.header import GgufArray, read_gguf_header
from workbench.errors import InputError, NotFoundError, did_you_mean
from workbench.figures import Table
from workbench.paths import outputs, shipped


class Shelf:
    """All cards by id; a user's card takes the place of a shipped one with the same id."""

    def __init__(self, folders: tuple[Path, ...] | None = None) -> None:
        self.folders = folders or (shipped("configs", "models"), outputs("models", "cards"))
        self._cards: dict[str, Card] = {}
        for folder in self.folders:
            self._cards.update(_read_folder(folder))

    def __iter__(self) -> Iterator[Card]:
        return iter(self._cards.values())

    def __len__(self) -> int:
        return len(self._cards)

    def table(self) -> Table:
        """Return one row per card: id, size, context, languages, tasks, licence, source."""
        rows = [
            {
                "id": card.id,
                "parameters": card.architecture.parameters,
                "context": card.context_length,
                "languages": ", ".join(card.languages),
                "tasks": ", ".join(card.tasks),
                "licence": card.licence,
                "source": card.path or card.repository,
            }
            for card in self
        ]
        return Table(rows, caption=f"{len(rows)} cards")

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.table()._repr_mimebundle_()

    def __contains__(self, card_id: str) -> bool:
        return card_id in self._cards

    def __getitem__(self, card_id: str) -> Card:
        if card_id not in self._cards:
            raise NotFoundError(
                f"There is no model {card_id!r}: no card has this id, and no such path exists.",
                hint=did_you_mean(card_id, self._cards),
            )
        return self._cards[card_id]


def _read_folder(folder: Path) -> dict[str, Card]:
    cards: dict[str, Card] = {}
    for path in sorted(folder.glob("*.yaml")):
        card = Card.read(path)
        if card.id in cards:
            raise InputError(
                f"Two cards in {folder} have the id {card.id!r}; the second is {path.name}.",
                hint="Rename one of them.",
            )
        cards[card.id] = card
    return cards


def catalog() -> Shelf:
    """Return the shelf as it is now."""
    return Shelf()


def resolve(model: str | Path | Card) -> Card:
    """Return the card of an id, a folder of safetensors, or a GGUF file.

    Raises:
        NotFoundError: No card has this id and no such path exists.
        InputError: The folder holds no model.
    """
    if isinstance(model, Card):
        return model
    text = str(model)
    path = Path(text).expanduser()
    shelf = catalog()
    if isinstance(model, str) and text in shelf:
        return shelf[text]
    if path.exists():
        return _card_of_path(path.resolve())
    if isinstance(model, Path) or "/" in text or path.suffix:
        raise NotFoundError(
            f"The model path {text} does not exist.",
            hint="Check the path, or give a card id (workbench models lists them).",
        )
    return shelf[text]


def _card_of_path(path: Path) -> Card:
    card_id = re.sub(r"[^A-Za-z0-9._+-]", "-", path.stem if path.is_file() else path.name)
    card_id = re.sub(r"^[^A-Za-z0-9]+|\.(gguf|safetensors|bin)$", "", card_id) or "model"
    config_file = path / "config.json"
    if path.suffix == ".gguf":
        return _card_of_gguf(card_id, path)
    if path.is_file():
        return Card(id=card_id, path=str(path))
    if not config_file.is_file():
        raise InputError(
            f"{path} holds no model: it has no config.json.",
            hint="Give a folder saved by save_pretrained, or a .gguf file.",
        )
    return _card_of_config(card_id, path, _read_json(config_file))


def _card_of_gguf(card_id: str, path: Path) -> Card:
    header = read_gguf_header(path)
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return Card(
        id=card_id,
        path=str(path),
        context_length=header.fact("context_length"),
        tasks=("chat",) if "tokenizer.chat_template" in header.metadata else (),
        architecture=Architecture(
            model_type=header.metadata.get("general.architecture"),
            layers=header.fact("block_count"),
            hidden_size=header.fact("embedding_length"),
            attention_heads=header.fact("attention.head_count"),
            head_dim=header.fact("attention.key_length"),
            vocab_size=tokens.length if isinstance(tokens, GgufArray) else None,
        ),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} holds a {type(values).__name__}, not an object.")
    return values


def _card_of_config(card_id: str, path: Path, config: dict[str, Any]) -> Card:
    heads = config.get("num_attention_heads")
    width = config.get("hidden_size")
    head_dim = config.get("head_dim") or (width // heads if width and heads else None)
    names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    return Card(
        id=card_id,
        path=str(path),
        context_length=config.get("max_position_embeddings"),
        dtype=names.get(str(config.get("dtype") or config.get("torch_dtype"))),
        tasks=("chat",),
        architecture=Architecture(
            model_type=config.get("model_type"),
            layers=config.get("num_hidden_layers"),
            hidden_size=width,
            intermediate_size=config.get("intermediate_size"),
            attention_heads=heads,
            kv_heads=config.get("num_key_value_heads"),
            head_dim=head_dim,
            vocab_size=config.get("vocab_size"),
            tied_embeddings=config.get("tie_word_embeddings"),
        ),
    )
