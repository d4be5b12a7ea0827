"""Model entries of llama.cpp users' JSON files, read as cards."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from workbench.errors import InputError
from workbench.settings import Settings, read_text

# Base URLs as the services document them for OpenAI's clients.
_SERVICES = {
    "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "gemini": ("https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"),
}


class Parameters(Settings):
    """Sampling of an entry."""

    temperature: float | None = Field(default=None, ge=0)
    """0 is greedy."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus mass."""
    top_k: int | None = Field(default=None, ge=0)
    """Candidates kept, 0 all."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Least probability relative to the best token."""
    repeat_penalty: float | None = Field(default=None, gt=0)
    """1 is none."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most new tokens."""


class Entry(Settings):
    """One model of such a file."""

    model: str = Field(min_length=1)
    """Name of the model; a remote service's own name for it."""
    display_name: str | None = None
    """The name shown in tables."""
    provider: Literal["llama_cpp", "openai", "gemini"] = "llama_cpp"
    """What runs it: llama.cpp here, or a service."""
    context_length: int | None = Field(default=None, ge=1)
    """Most tokens."""
    model_path: str | None = None
    """GGUF file; ``~`` and environment variables expand; relative means beside the JSON file."""
    mmproj_path: str | None = None
    """Multimodal projector of the model, expanded like ``model_path``."""
    n_gpu_layers: int | None = Field(default=None, ge=-1)
    """Layers on a GPU: -1 all, 0 none."""
    fallback_on_error: str | bool | None = None
    """Card to load where this one cannot be; false is none."""
    supports_images: bool = False
    """Whether it sees pictures."""
    parameters: Parameters = Parameters()
    """Sampling."""
    base_url: str | None = None
    """Another address of an OpenAI-compatible service."""
    key_variable: str | None = None
    """Environment variable with the service's key; the key itself is never in a file."""


def read_entries(path: Path) -> list[Any]:
    """Return the entries of a JSON file that holds one object or a list of them, unchecked.

    Raises:
        InputError: It is not JSON of this shape, or too large.
    """
    try:
        values = json.loads(read_text(path), object_pairs_hook=_unique)
    except RecursionError:
        raise InputError(f"{path} is nested too deep.") from None
    except ValueError as error:
        raise InputError(
            f"{path} is not valid JSON: {error}.", hint="Correct it and try again."
        ) from None
    entries = values if isinstance(values, list) else [values]
    if not entries:
        raise InputError(f"{path} names no model.")
    return entries


def card_values(entry: Any, path: Path) -> dict[str, Any]:
    """Return the values of the card that one entry makes.

    Args:
        entry: One object of the file.
        path: The file, which relative model paths lie beside.

    Raises:
        InputError: A key or value is wrong, or a key does not fit the provider.
    """
    if not isinstance(entry, dict):
        raise InputError(f"{path}: {entry!r:.60} is no object with a model.")
    given = Entry.of(entry, source=f"{path}: {entry.get('model', 'an entry')!r:.60}")
    values: dict[str, Any] = {
        "id": card_id_of(given.model),
        "display_name": given.display_name or given.model,
        "context_length": given.context_length,
        "fallback": _fallback(given, path),
        "tasks": ["chat", "vision"] if given.supports_images else ["chat"],
        "sampling": _sampling(given.parameters),
        "sources": [path.name],
    }
    values |= _local(given, path) if given.provider == "llama_cpp" else _remote(given, path)
    return {key: value for key, value in values.items() if value is not None}


def card_id_of(name: str) -> str:
    """Return a name as a card id: letters, digits and ``._+-``, without a file's ending."""
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "-", name)
    return re.sub(r"^[^A-Za-z0-9]+|(\.(gguf|safetensors|bin))+$|-+$", "", plain)[:100] or "model"


def beside(text: str, folder: Path) -> str:
    """Return a path as a card keeps it: as written where it says whence, else below ``folder``."""
    if text.startswith(("~", "$")) or Path(text).is_absolute():
        return text
    return str(folder / text)


def _local(given: Entry, path: Path) -> dict[str, Any]:
    if given.model_path is None:
        raise InputError(
            f"{path}: the model {given.model!r} has no model_path.", hint="Name its GGUF file."
        )
    for key in ("base_url", "key_variable"):
        if getattr(given, key) is not None:
            raise InputError(f"{path}: {key} is for a service; {given.model!r} is a local file.")
    folder = path.resolve().parent
    return {
        "path": beside(given.model_path, folder),
        "projector": beside(given.mmproj_path, folder) if given.mmproj_path else None,
        "n_gpu_layers": given.n_gpu_layers,
    }


def _remote(given: Entry, path: Path) -> dict[str, Any]:
    for key in ("model_path", "mmproj_path", "n_gpu_layers"):
        if getattr(given, key) is not None:
            raise InputError(
                f"{path}: {key} does not fit the provider {given.provider!r} of {given.model!r}.",
                hint='Leave it out, or write "provider": "llama_cpp" for a file on this machine.',
            )
    url, key_variable = _SERVICES[given.provider]
    if given.base_url is not None:  # another service's key is not sent there
        url, key_variable = given.base_url, ""
    name = given.key_variable or key_variable or None
    return {"remote": {"url": url, "model": given.model, "key_variable": name}}


def _fallback(given: Entry, path: Path) -> str | None:
    if given.fallback_on_error is True:
        raise InputError(
            f"{path}: fallback_on_error of {given.model!r} is true, which names no model.",
            hint="Name the model to load instead, or write false.",
        )
    return given.fallback_on_error or None


def _sampling(parameters: Parameters) -> dict[str, Any] | None:
    values = parameters.model_dump(exclude_none=True)
    if "repeat_penalty" in values:
        values["repetition_penalty"] = values.pop("repeat_penalty")
    return values or None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} is given twice")
        values[key] = value
    return values
