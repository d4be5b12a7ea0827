"""What the small files beside a model's weights say: sampling, template, licence, languages."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.catalog.card import DefaultSampling, Task
from workbench.errors import InputError, WorkbenchError
from workbench.settings import parse_yaml, read_text

MOST_JSON_BYTES = 32 << 20  # a tokenizer_config.json lists every added token
_MOST_README_BYTES = 4 << 20
_MOST_FRONT_BYTES = 64 << 10
NAMES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "README.md",
)
"""Files of a repository that a card is made from, besides the weights' headers."""

# The hub's licence identifiers that have an SPDX name of another spelling.
_SPDX = {
    "apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause",
    "bsd-2-clause": "BSD-2-Clause", "cc-by-4.0": "CC-BY-4.0", "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0", "cc-by-nc-sa-4.0": "CC-BY-NC-SA-4.0", "cc0-1.0": "CC0-1.0",
    "gpl-3.0": "GPL-3.0-only", "agpl-3.0": "AGPL-3.0-only", "lgpl-3.0": "LGPL-3.0-only",
    "mpl-2.0": "MPL-2.0", "unlicense": "Unlicense",
}  # fmt: skip
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
_TASKS: dict[str, Task] = {
    "feature-extraction": "embedding",
    "sentence-similarity": "embedding",
    "text-ranking": "rerank",
}


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        InputError: It is too large, not JSON, or holds something else.
    """
    try:
        values = json.loads(read_text(path, most_bytes=MOST_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} holds a {type(values).__name__}, not an object.")
    return values


def side_values(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the card's values that the files beside the weights give.

    These files are others' text: a value that does not fit is left out, none is followed.

    Args:
        folder: The model's folder.
        config: Its config.json.
    """
    front = front_matter(folder / "README.md")
    values: dict[str, Any] = {
        "licence": _licence(front),
        "languages": language_codes(front.get("language")),
        "sampling": sampling_of(_or_empty(folder / "generation_config.json")),
        "tasks": _tasks(folder, config, front),
    }
    return {key: value for key, value in values.items() if value}


def sampling_of(generation: Mapping[str, Any]) -> dict[str, float]:
    """Return the sampling of a generation_config.json; ``do_sample: false`` is greedy."""
    given = {ours: generation.get(theirs) for theirs, ours in _SAMPLING.items()}
    if generation.get("do_sample") is False:
        given = {"temperature": 0.0, "max_tokens": given["max_tokens"]}
    return {
        name: value
        for name, value in given.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and _fits(name, value)
    }


def front_matter(path: Path) -> dict[str, Any]:
    """Return the YAML at the head of a model card, empty where there is none that can be read."""
    if not path.is_file():
        return {}
    try:
        text = read_text(path, most_bytes=_MOST_README_BYTES)
        found = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
        if found is None or len(found[1]) > _MOST_FRONT_BYTES:
            return {}
        return parse_yaml(found[1], source=path.name)
    except WorkbenchError:
        return {}


def licence_name(text: str) -> str:
    """Return the SPDX name of a licence that the hub spells otherwise."""
    return _SPDX.get(text.lower(), text)


def _fits(name: str, value: float) -> bool:
    try:
        DefaultSampling.of({name: value})
    except InputError:
        return False
    return True


def _licence(front: Mapping[str, Any]) -> str | None:
    given = front.get("license")
    if given in (None, "other", "unknown") and isinstance(front.get("license_name"), str):
        given = front["license_name"]
    if isinstance(given, list) and given:
        given = given[0]
    if not isinstance(given, str) or not given.strip() or given == "unknown":
        return None
    return licence_name(given.strip()[:80])


def language_codes(given: Any) -> list[str]:
    """Return the two-letter codes among what a model card or a header names as languages."""
    words = given if isinstance(given, list) else [given]
    codes = ["no" if word is False else word for word in words]  # YAML reads Norwegian as false
    lower = (code.lower() for code in codes if isinstance(code, str))
    return [code for code in dict.fromkeys(lower) if re.fullmatch("[a-z]{2}", code)][:200]


def _tasks(folder: Path, config: Mapping[str, Any], front: Mapping[str, Any]) -> list[Task]:
    tag = front.get("pipeline_tag")
    if isinstance(tag, str) and tag in _TASKS:
        return [_TASKS[tag]]
    classes = config.get("architectures")
    names = [name for name in classes if isinstance(name, str)] if isinstance(classes, list) else []
    if (folder / "modules.json").is_file():
        return ["embedding"]
    if any(name.endswith("ForSequenceClassification") for name in names):
        return ["rerank"]
    if not has_template(folder):
        return []
    return ["chat", "vision"] if "vision_config" in config else ["chat"]


def has_template(folder: Path) -> bool:
    """Whether a chat template lies in a model's folder."""
    if any((folder / f"chat_template.{ending}").is_file() for ending in ("jinja", "json")):
        return True
    return bool(_or_empty(folder / "tokenizer_config.json").get("chat_template"))


def _or_empty(path: Path) -> dict[str, Any]:
    """Return the object in a side file; one that is missing or wrong says nothing."""
    if not path.is_file():
        return {}
    try:
        return read_object(path)
    except InputError:
        return {}
