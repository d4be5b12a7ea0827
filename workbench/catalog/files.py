"""Files of a model on this machine, checked to be whole; pickled weights are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from workbench.catalog.header import check_gguf, check_safetensors, gguf_parts
from workbench.catalog.wanted import PICKLES, pickle_error, split_part, without_copies
from workbench.errors import NotFoundError, UnsupportedError
from workbench.paths import sha256

Kind = Literal["safetensors", "gguf"]
Source = Literal["local", "hugging face cache", "ollama", "lm studio", "hub"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """Where a model's files lie.

    Attributes:
        path: Folder (safetensors) or file (gguf, the first one where it is split).
        kind: ``safetensors`` or ``gguf``.
        weights: The weight files, sorted.
        source: Where they were found; ``hub`` means downloaded just now.
        repository: Hub repository, or the name in the store, where there is one.
        revision: Commit of the repository, where it is known.
    """

    path: Path
    kind: Kind
    weights: tuple[Path, ...]
    source: Source = "local"
    repository: str | None = None
    revision: str | None = None

    @property
    def label(self) -> str:
        """A name for people: the repository, else the name of the file or folder."""
        return self.repository or self.path.name

    def weight_bytes(self) -> int:
        """Return the size of the weight files in bytes."""
        return sum(path.stat().st_size for path in self.weights)

    def content_hash(self) -> str:
        """Return a hex digest over weights, configuration and tokenizer, the key of caches."""
        import hashlib

        digest = hashlib.sha256()
        for path in sorted({*self.weights, *self._side_files()}):
            digest.update(f"{path.name}:{sha256(path)};".encode())
        return digest.hexdigest()

    def _side_files(self) -> tuple[Path, ...]:
        if self.kind == "gguf":
            return ()
        return tuple(
            path
            for pattern in ("*.json", "*.jinja", "*.model")
            for path in self.path.glob(pattern)
            if path.name != "evaluation.json"
        )


def files_at(path: Path) -> ModelFiles:
    """Return the model at a path: a GGUF file, or a folder with one model.

    Raises:
        NotFoundError: The folder holds no weights.
        UnsupportedError: The weights are pickles, or the folder holds several GGUF files.
        FormatError: A file is damaged or cut off, or a part of a split one is missing.
    """
    return _file(path) if path.is_file() else _folder(path)


def gguf_files(path: Path) -> ModelFiles:
    """Return a GGUF file with the other parts of it, each checked; its name does not matter.

    Raises:
        FormatError: A part is missing, damaged or cut off.
    """
    parts = gguf_parts(path)
    for each in parts:
        check_gguf(each)
    return ModelFiles(path=parts[0], kind="gguf", weights=parts)


def safetensors_files(folder: Path) -> ModelFiles | None:
    """Return the safetensors model of a folder, each file checked, or None where it has none.

    Raises:
        FormatError: A file is damaged or cut off.
    """
    found = {path.name: path for path in folder.glob("*.safetensors")}
    if not found:
        return None
    weights = tuple(found[name] for name in sorted(without_copies(found)))
    for file in weights:
        check_weights(file)
    return ModelFiles(path=folder, kind="safetensors", weights=weights)


def check_weights(path: Path) -> None:
    """Check by its header that a safetensors or GGUF file is whole.

    Raises:
        FormatError: It is damaged or cut off.
    """
    if path.suffix == ".safetensors":
        check_safetensors(path)
    elif path.suffix == ".gguf":
        check_gguf(path)


def _file(path: Path) -> ModelFiles:
    if any(path.match(pattern) for pattern in PICKLES):
        raise pickle_error(path.name)
    if path.suffix != ".gguf":
        raise UnsupportedError(
            f"{path.name} is not a model file that can be loaded.",
            hint="Give a .gguf file, or the folder of a safetensors model.",
        )
    return gguf_files(path)


def _folder(path: Path) -> ModelFiles:
    safetensors = safetensors_files(path)
    if safetensors is not None:
        return safetensors
    ggufs = sorted(path.glob("*.gguf"))
    part = split_part(ggufs[0].name) if ggufs else None
    if len(ggufs) == 1 or (part is not None and {file.name for file in ggufs} <= {*part.names}):
        return gguf_files(ggufs[0])
    if ggufs:
        raise UnsupportedError(
            f"{path} holds {len(ggufs)} GGUF files.",
            hint=f"Name one of them: {', '.join(file.name for file in ggufs[:8])}.",
        )
    pickles = [file for pattern in PICKLES for file in path.glob(pattern)]
    if pickles:
        raise pickle_error(pickles[0].name)
    raise NotFoundError(
        f"{path} holds no weights: no .safetensors and no .gguf file.",
        hint="Download the model again, or give another folder.",
    )
