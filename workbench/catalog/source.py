"""A card resolved to files on this machine; pickled weights are refused."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Literal

from workbench.catalog.card import Card
from workbench.catalog.header import check_gguf
from workbench.errors import FormatError, NotFoundError, UnsupportedError
from workbench.paths import sha256, shipped

Kind = Literal["safetensors", "gguf"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """Where a model's files lie.

    Attributes:
        path: Folder (safetensors) or file (gguf).
        kind: ``safetensors`` or ``gguf``.
        weights: The weight files, sorted.
    """

    path: Path
    kind: Kind
    weights: tuple[Path, ...]

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


def locate(card: Card) -> ModelFiles:
    """Return the files of a card that names a local path.

    Raises:
        NotFoundError: The path does not exist or holds no weights.
        UnsupportedError: The weights are pickles (``.bin``, ``.pt``): loading them can run code.
        FormatError: The file is not what its name says.
    """
    path = card.expanded_path()
    if path is None:
        raise NotFoundError(
            f"The card {card.id} names no local files.", hint="Give a local path to the model."
        )
    if not path.is_absolute():
        path = shipped(*path.parts)
    if not path.exists():
        raise NotFoundError(
            f"The model folder {path} of card {card.id} does not exist.",
            hint="Correct the card's path, or download the model there.",
        )
    return _file(path) if path.is_file() else _folder(path)


def _file(path: Path) -> ModelFiles:
    if any(path.match(pattern) for pattern in _PICKLES):
        raise _pickle_error(path)
    if path.suffix != ".gguf":
        raise UnsupportedError(
            f"{path.name} is not a model file that can be loaded.",
            hint="Give a .gguf file, or the folder of a safetensors model.",
        )
    check_gguf(path)
    return ModelFiles(path=path, kind="gguf", weights=(path,))


def _folder(path: Path) -> ModelFiles:
    safetensors = tuple(sorted(path.glob("*.safetensors")))
    if safetensors:
        for file in safetensors:
            _check_safetensors(file)
        return ModelFiles(path=path, kind="safetensors", weights=safetensors)
    ggufs = tuple(sorted(path.glob("*.gguf")))
    if len(ggufs) == 1:
        return _file(ggufs[0])
    if ggufs:
        raise UnsupportedError(
            f"{path} holds {len(ggufs)} GGUF files.",
            hint=f"Name one of them: {', '.join(file.name for file in ggufs[:8])}.",
        )
    pickles = [file for pattern in _PICKLES for file in path.glob(pattern)]
    if pickles:
        raise _pickle_error(pickles[0])
    raise NotFoundError(
        f"{path} holds no weights: no .safetensors and no .gguf file.",
        hint="Download the model again, or give another folder.",
    )


def _pickle_error(path: Path) -> UnsupportedError:
    return UnsupportedError(
        f"{path.name} is a pickle: loading it can run any code, so it is refused.",
        hint="Use the safetensors form of this model, or convert it where you trust the file.",
    )


def _check_safetensors(path: Path) -> None:
    """Check that the header fits and that the file is as long as the header says."""
    import json

    size = path.stat().st_size
    problem = f"{path.name} is not a whole safetensors file"
    with path.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length + 8 > size or length > 100_000_000:
            raise FormatError(f"{problem}: it has {size} bytes.", hint="Download it again.")
        try:
            header = json.loads(stream.read(length))
            end = max(
                (
                    entry["data_offsets"][1]
                    for key, entry in header.items()
                    if key != "__metadata__"
                ),
                default=0,
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise FormatError(f"{problem}: bad header.", hint="Download it again.") from None
    if end + 8 + length != size:
        raise FormatError(
            f"{problem}: its header describes {end + 8 + length} bytes, it has {size}.",
            hint="The download was cut off; download it again.",
        )


def check_gguf_head(path: Path) -> None:
    """Check that a GGUF file is whole, by its header and its length.

    Raises:
        FormatError: It is damaged, cut off or no GGUF.
    """
    check_gguf(path)
