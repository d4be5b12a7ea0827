"""Models that other programs have on this disk: the Hugging Face cache, Ollama and LM Studio.

Only read here. Layouts: huggingface_hub's cache guide; Ollama's ``manifests/`` and ``blobs/``
(Docker image manifests); LM Studio's ``<publisher>/<repository>/`` folders.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.catalog.card import GgufSource
from workbench.catalog.files import (
    ModelFiles,
    check_weights,
    files_at,
    gguf_files,
    safetensors_files,
)
from workbench.catalog.header import FILE_TYPES, check_gguf
from workbench.catalog.wanted import (
    gguf_wanted,
    quantization_of,
    safetensors_missing,
    safetensors_wanted,
    split_part,
)
from workbench.errors import FormatError, NotFoundError, WorkbenchError

_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def stored_quantization(path: Path) -> str | None:
    """Return the quantization that a GGUF file's header states, for example ``Q4_K_M``."""
    return FILE_TYPES.get(check_gguf(path).metadata.get("general.file_type", -1))


def hub_cache() -> Path:
    """Return the Hugging Face cache: HF_HUB_CACHE, HF_HOME/hub or ~/.cache/huggingface/hub."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return _expanded(os.environ[name])
    if os.environ.get("HF_HOME"):
        return _expanded(os.environ["HF_HOME"]) / "hub"
    return _expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def ollama_folders() -> list[Path]:
    """Return the folders in which Ollama may keep models, those that exist."""
    given = os.environ.get("OLLAMA_MODELS")
    usual = ("~/.ollama/models", "/usr/share/ollama/.ollama/models")
    return [path for path in map(_expanded, [given] if given else usual) if path.is_dir()]


def lm_studio_folders() -> list[Path]:
    """Return the folders in which LM Studio may keep models; LM_STUDIO_MODELS names another."""
    given = os.environ.get("LM_STUDIO_MODELS")
    usual = ("~/.lmstudio/models", "~/.cache/lm-studio/models")
    return [path for path in map(_expanded, [given] if given else usual) if path.is_dir()]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One commit of a repository in the Hugging Face cache.

    Attributes:
        repository: Its name on the hub.
        revision: The commit.
        folder: The folder with links to its files.
    """

    repository: str
    revision: str
    folder: Path

    def names(self) -> list[str]:
        """Return the files that are there, relative to the folder; a dangling link is not."""
        return sorted(
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.is_file()
        )

    def listed(self) -> list[str] | None:
        """Return all names that the commit has on the hub, where the cache has kept them."""
        values = _json(self.folder.parent.parent / "trees" / f"{self.revision}.json")
        files = values.get("files")
        return list(files) if isinstance(files, dict) else None

    def missing(self) -> list[str]:
        """Return what it lacks to be loaded from safetensors; damaged files count as missing."""
        here = self.names()
        expected = self._expected(here)
        damaged = [name for name in here if _is_damaged(self.folder / name)]
        return sorted({*expected, *damaged})

    def _expected(self, here: list[str]) -> list[str]:
        listed = self.listed()
        if listed is not None:
            with contextlib.suppress(WorkbenchError):
                return [name for name in safetensors_wanted(listed) if name not in here]
        shards = _json(self.folder / "model.safetensors.index.json").get("weight_map")
        return safetensors_missing(here, shards=shards.values() if isinstance(shards, dict) else ())


def repository_folder(repository: str) -> Path:
    """Return the folder of a model repository in the Hugging Face cache."""
    return hub_cache() / "--".join(("models", *repository.split("/")))


def snapshots(repository: str, revision: str | None = None) -> list[Snapshot]:
    """Return the cached commits of a repository, that of ``main`` first, then the newest.

    Args:
        repository: Name on the hub.
        revision: Only this commit, branch or tag.
    """
    base = repository_folder(repository)
    folders = [path for path in base.glob("snapshots/*") if path.is_dir()]
    commit = _reference(base, revision or "main")
    if revision is not None:
        folders = [path for path in folders if path.name in (revision, commit)]
    folders.sort(key=lambda path: (path.name != commit, -path.stat().st_mtime))
    return [Snapshot(repository=repository, revision=path.name, folder=path) for path in folders]


def cached_safetensors(repository: str, revision: str | None = None) -> ModelFiles | None:
    """Return a whole safetensors snapshot of the Hugging Face cache, or None."""
    for snapshot in snapshots(repository, revision):
        if not snapshot.missing():
            files = safetensors_files(snapshot.folder)
            if files is not None:
                return _of(files, snapshot)
    return None


def cached_gguf(
    source: GgufSource, quantization: str | None, revision: str | None = None
) -> ModelFiles | None:
    """Return a GGUF file of the Hugging Face cache with all its parts, or None."""
    for snapshot in snapshots(source.repository, revision):
        with contextlib.suppress(NotFoundError, FormatError):
            names = gguf_wanted(snapshot.names(), source, quantization, whole=True)
            return _of(gguf_files(snapshot.folder / names[0]), snapshot)
    return None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OllamaModel:
    """One manifest of Ollama's store.

    Attributes:
        name: As Ollama lists it, for example ``hf.co/owner/model-GGUF:Q4_K_M``.
        blob: The GGUF file.
        size: Its bytes as the manifest has them.
    """

    name: str
    blob: Path
    size: int

    @property
    def is_whole(self) -> bool:
        """Whether the file is there in its full length and is a GGUF."""
        with contextlib.suppress(OSError, FormatError):
            return self.blob.stat().st_size == self.size and bool(check_gguf(self.blob).tensors)
        return False


def ollama_models() -> Iterator[OllamaModel]:
    """Yield the models of Ollama's stores that are one GGUF file."""
    for store in ollama_folders():
        manifests = store / "manifests"
        for path in sorted(manifests.rglob("*")):
            if not path.is_file() or len(path.relative_to(manifests).parts) < 3:
                continue
            *parts, name, tag = path.relative_to(manifests).parts
            layers = _json(path).get("layers")
            models = [
                layer
                for layer in (layers if isinstance(layers, list) else ())
                if isinstance(layer, dict) and layer.get("mediaType") == _OLLAMA_MODEL
            ]
            digest = str(models[0].get("digest", "")) if len(models) == 1 else ""
            if re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
                blob = store / "blobs" / digest.replace(":", "-")
                shown = "/".join((*parts, name)).removeprefix("registry.ollama.ai/")
                yield OllamaModel(
                    name=f"{shown.removeprefix('library/')}:{tag}",
                    blob=blob,
                    size=int(models[0].get("size") or 0),
                )


def in_ollama(source: GgufSource, quantization: str | None) -> ModelFiles | None:
    """Return the GGUF that Ollama has of this source, or None.

    Matched are what it pulled from the same repository (``hf.co/owner/model:Q4_K_M``) and the name
    that the card states; the quantization is read from the file.
    """
    pulled = {f"{host}/{source.repository}".lower() for host in ("hf.co", "huggingface.co")}
    for model in ollama_models():
        is_pulled = model.name.lower().rpartition(":")[0] in pulled
        if not (is_pulled or _is_stated(model.name, source.ollama)) or not model.is_whole:
            continue
        if quantization is None or quantization.upper() == stored_quantization(model.blob):
            files = gguf_files(model.blob)
            return dataclasses.replace(files, source="ollama", repository=model.name)
    return None


def _is_stated(name: str, stated: str | None) -> bool:
    """Whether ``name`` is the stated one, or the same with a quantization behind its tag."""
    if not stated:
        return False
    wanted = stated.lower().removeprefix("library/")
    wanted = wanted if ":" in wanted else f"{wanted}:latest"
    rest = name.lower().removeprefix(f"{wanted}-")
    return name.lower() == wanted or quantization_of(rest) == rest.upper()


def in_lm_studio(source: GgufSource, quantization: str | None) -> ModelFiles | None:
    """Return the GGUF that LM Studio has of this source, or None."""
    for store in lm_studio_folders():
        folder = store / source.repository
        names = [path.name for path in folder.glob("*.gguf")]
        with contextlib.suppress(NotFoundError, FormatError):
            wanted = gguf_wanted(names, source, quantization, whole=True)
            files = gguf_files(folder / wanted[0])
            return dataclasses.replace(files, source="lm studio", repository=source.repository)
    return None


def safetensors_in_lm_studio(repository: str) -> ModelFiles | None:
    """Return the folder of safetensors that LM Studio has of this repository, or None."""
    for store in lm_studio_folders():
        folder = store / repository
        names = [path.name for path in folder.glob("*")]
        if folder.is_dir() and not safetensors_missing(names):
            with contextlib.suppress(WorkbenchError):
                files = files_at(folder)
                return dataclasses.replace(files, source="lm studio", repository=repository)
    return None


def lm_studio_models() -> Iterator[tuple[str, Path, bool]]:
    """Yield repository, first file (or folder of safetensors) and wholeness of each model."""
    for store in lm_studio_folders():
        for folder in sorted(path for path in store.glob("*/*") if path.is_dir()):
            repository = folder.relative_to(store).as_posix()
            names = {path.name for path in folder.glob("*")}
            if any(name.endswith(".safetensors") for name in names):
                yield repository, folder, not safetensors_missing(names)
            for name in sorted(name for name in names if name.endswith(".gguf")):
                part = split_part(name)
                if part is None or name == min(names.intersection(part.names)):
                    whole = part is None or names.issuperset(part.names)
                    yield repository, folder / name, whole and not _is_damaged(folder / name)


def _of(files: ModelFiles, snapshot: Snapshot) -> ModelFiles:
    return dataclasses.replace(
        files,
        source="hugging face cache",
        repository=snapshot.repository,
        revision=snapshot.revision,
    )


def _is_damaged(path: Path) -> bool:
    try:
        check_weights(path)
    except (FormatError, OSError, ValueError):
        return True
    return False


def _reference(base: Path, revision: str) -> str | None:
    if _COMMIT.fullmatch(revision):
        return revision
    with contextlib.suppress(OSError):
        return (base / "refs" / revision).read_text(encoding="utf-8").strip()
    return None


def _json(path: Path) -> dict[str, Any]:
    """Return the object in a file of another program, empty where it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict):
            return values
    return {}


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()
