"""A card made from a model's own files: headers, config.json, tokenizer and model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.catalog.card import Card
from workbench.catalog.gguf_header import GgufArray
from workbench.catalog.header import Header, read_header
from workbench.catalog.header_config import architecture_of_config
from workbench.catalog.llama_cpp_json import card_id_of
from workbench.catalog.side_files import (
    MOST_JSON_BYTES,
    NAMES,
    language_codes,
    licence_name,
    read_object,
    side_values,
)
from workbench.errors import InputError, NotFoundError, WorkbenchError

_DTYPES = {
    "float32": "fp32", "bfloat16": "bf16", "float16": "fp16",
    "F32": "fp32", "BF16": "bf16", "F16": "fp16", "F8_E4M3": "fp8",
}  # fmt: skip
_EMBEDS = ("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "t5encoder")


def card_of_path(path: Path) -> Card:
    """Return the card of a folder of safetensors (or its config.json), or of a GGUF file.

    Raises:
        InputError: It holds no model, or a file in it is wrong.
        FormatError: A weight file is not whole.
    """
    if path.name == "config.json":
        path = path.parent
    card_id = card_id_of(path.name)
    if path.suffix == ".gguf":
        return _card({"id": card_id, "path": str(path), **_gguf_values(read_header(path))}, path)
    if path.is_file():
        return Card.of({"id": card_id, "path": str(path)}, source=str(path))
    config_file = path / "config.json"
    if config_file.is_file():
        return _card({"id": card_id, "path": str(path), **_folder_values(path)}, path)
    if any(path.glob("*.gguf")):
        return _card({"id": card_id, **_gguf_folder(path)}, path)
    raise InputError(
        f"{path} holds no model: it has no config.json.",
        hint="Give a folder saved by save_pretrained, or a .gguf file.",
    )


def card_of_repository(repository: str, *, revision: str | None = None) -> Card:
    """Return the card of a repository on the hub; of the weights only the headers are read.

    Args:
        repository: Its name, ``owner/name``.
        revision: Commit, branch or tag; None is the newest commit.

    Raises:
        NotFoundError: There is no such repository, or no weights are in it.
        DownloadError: We are offline, the hub refuses or cannot be reached.
    """
    from workbench.catalog.hub import download, listing
    from workbench.catalog.remote_header import read_remote_header

    found = listing(repository, revision)
    sizes = {name: file.size for name, file in found.files.items()}
    small = [name for name in NAMES if sizes.get(name, MOST_JSON_BYTES + 1) <= MOST_JSON_BYTES]
    folder = download(
        repository, lambda names: [n for n in names if n in small], revision=found.commit
    ).folder
    values: dict[str, Any] = {
        "id": card_id_of(repository.split("/")[1]),
        "sources": [f"https://huggingface.co/{repository}/tree/{found.commit}"],
        "source_level": "its own files",
    }
    if any(name.endswith(".safetensors") for name in sizes):
        header = read_remote_header(repository, revision=found.commit)
        config = header.config or {}
        values |= {"repository": repository, "revision": found.commit}
        return _card({**values, **_config_values(header, config), **side_values(folder, config)})
    name = _smallest_gguf(sizes, repository)
    header = read_remote_header(repository, revision=found.commit, file=name)
    values["gguf"] = {"repository": repository, "revision": found.commit}
    return _card({**values, **_gguf_values(header), **side_values(folder, {})})


def with_facts(card: Card) -> Card:
    """Return a card that names local files with what they say, where the card itself is silent."""
    if card.path is None or card.architecture.layers is not None:
        return card
    try:
        path = card.expanded_path()
        if path is None or not path.is_absolute() or not path.exists():
            return card
        found = card_of_path(path).given()
    except WorkbenchError:
        return card  # whoever loads it says what is wrong
    given = card.given()
    facts = {**found.get("architecture", {}), **given.get("architecture", {})}
    return Card.of({**found, **given, "architecture": facts}, source=card.id)


def _card(values: Mapping[str, Any], path: Path | None = None) -> Card:
    kept = {key: value for key, value in values.items() if value is not None and value != ()}
    return Card.of(kept, source=str(path or values["id"]))


def _folder_values(folder: Path) -> dict[str, Any]:
    config = read_object(folder / "config.json")
    try:
        header = read_header(folder)
    except NotFoundError:  # no weights that can be loaded: whoever loads it says which are there
        facts = architecture_of_config(config, (), {})
        known = {"architecture": facts.model_dump(exclude_none=True), "dtype": _dtype(config)}
        return {**known, **side_values(folder, config)}
    return {**_config_values(header, config), **side_values(folder, config)}


def _config_values(header: Header, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_header_values(header),
        "dtype": _dtype(config) or _DTYPES.get(next(iter(header.dtypes), "")),
    }


def _header_values(header: Header) -> dict[str, Any]:
    stored = header.stored
    if stored is not None and stored.method == "gguf":
        stored = stored.changed(quantization=stored.detail)
    return {
        "architecture": header.architecture().model_dump(exclude_none=True),
        "stored": stored.model_dump(exclude_none=True) if stored else None,
        "context_length": header.context_length,
    }


def _gguf_values(header: Header) -> dict[str, Any]:
    said = header.metadata
    licence, languages = said.get("general.license"), said.get("general.languages")
    kind = said.get("general.architecture")
    tasks = ("chat",) if "tokenizer.chat_template" in said else ()
    values = getattr(languages, "values", ()) if isinstance(languages, GgufArray) else ()
    return {
        **_header_values(header),
        "tasks": ("embedding",) if kind in _EMBEDS else tasks,
        "licence": licence_name(licence[:80]) if isinstance(licence, str) and licence else None,
        "languages": language_codes(list(values)) or None,
    }


def _gguf_folder(folder: Path) -> dict[str, Any]:
    header = read_header(folder)
    projectors = sorted(folder.glob("*mmproj*.gguf"))
    values = {"path": str(folder / header.files[0]), **_gguf_values(header)}
    if len(projectors) == 1 and projectors[0].name != header.files[0]:
        values |= {"projector": str(projectors[0]), "tasks": (*values["tasks"], "vision")}
    return values


def _smallest_gguf(sizes: Mapping[str, int], repository: str) -> str:
    names = [n for n in sizes if n.endswith(".gguf") and "mmproj" not in n.lower()]
    first = [n for n in names if "-of-" not in n or "-00001-of-" in n]
    if not first:
        raise NotFoundError(
            f"{repository} holds no weights: no .safetensors and no .gguf file.",
            hint="Give the repository of the weights themselves.",
        )
    return min(first, key=lambda name: (sizes[name], name))


def _dtype(config: Mapping[str, Any]) -> str | None:
    inner = config.get("text_config")
    for values in (config, inner if isinstance(inner, dict) else {}):
        name = values.get("dtype") or values.get("torch_dtype")
        if isinstance(name, str) and name in _DTYPES:
            return _DTYPES[name]
    return None
