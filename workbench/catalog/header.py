"""What a model's files say of themselves, read from their headers without loading them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.catalog.gguf_header import (
    FILE_TYPES,
    GGML_TYPES,
    GGUF_MAGIC,
    GgmlType,
    GgufArray,
    GgufHeader,
    GgufTensor,
    check_gguf,
    read_gguf_header,
)
from workbench.catalog.header_parts import check_part, first_part, gguf_parts
from workbench.catalog.header_roles import embedding, output
from workbench.catalog.header_source import MOST_CONFIG, LocalFile, read_object, shown
from workbench.catalog.header_tensor import Tensor
from workbench.catalog.header_view import Header, Tied
from workbench.catalog.safetensors_header import (
    DTYPE_BITS,
    SafetensorsHeader,
    check_safetensors,
    local_files,
)
from workbench.errors import FormatError, InputError, NotFoundError

if TYPE_CHECKING:
    from workbench.catalog.remote_header import RemoteModel

__all__ = [
    "DTYPE_BITS",
    "FILE_TYPES",
    "GGML_TYPES",
    "GGUF_MAGIC",
    "GgmlType",
    "GgufArray",
    "GgufHeader",
    "GgufTensor",
    "Header",
    "SafetensorsHeader",
    "Tensor",
    "Tied",
    "check_gguf",
    "check_safetensors",
    "gguf_parts",
    "read_gguf_header",
    "read_header",
]

_SAMPLE = 64 << 10


def read_header(model: Path | str | RemoteModel) -> Header:
    """Read what a model's files say of themselves, loading no weights.

    Args:
        model: A folder, a ``.safetensors`` file, any part of a ``.gguf`` file, an index of shards,
            or a ``RemoteModel``.

    Raises:
        NotFoundError: There is no such file, or the folder holds no weights.
        InputError: It is no file that could be a model, or several models lie in one folder.
        FormatError: A file is damaged, cut off or missing.
    """
    if not isinstance(model, (str, Path)):
        from workbench.catalog.remote_header import read_remote_header

        return read_remote_header(
            model.repository,
            revision=model.revision,
            file=model.file,
            endpoint=model.endpoint,
            token=model.token,
        )
    path = Path(model)
    if path.is_dir():
        return _folder(path)
    if path.name.endswith(".safetensors.index.json"):
        return _safetensors(path.parent, None)
    if path.suffix == ".safetensors":
        return _safetensors(path.parent, (path.name,))
    with LocalFile(path) as file:
        begins = file.read(0, 0, 4)
    if begins == GGUF_MAGIC or path.suffix == ".gguf":
        return _gguf(path)
    raise InputError(
        f"{path} is no weight file whose header is known.",
        hint="Give a folder, a .safetensors or a .gguf file.",
    )


def _folder(folder: Path) -> Header:
    names, _ = local_files(folder)
    if names:
        return _safetensors(folder, None)
    found = sorted(path.name for path in folder.glob("*.gguf"))
    models = sorted({first_part(name) for name in found})
    chosen = [name for name in models if "mmproj" not in name.lower()] or models
    if len(chosen) == 1:
        return _gguf(folder / chosen[0])
    if chosen:
        listed = ", ".join(chosen[:8])
        raise InputError(f"{folder} holds {len(chosen)} models.", hint=f"Name one: {listed}.")
    raise NotFoundError(
        f"{folder} holds no weights: no .safetensors and no .gguf file.",
        hint="Download the model, or give another folder.",
    )


def _safetensors(folder: Path, only: tuple[str, ...] | None) -> Header:
    names, places = (only, None) if only else local_files(folder)
    read = {name: check_safetensors(folder / name) for name in names}
    config = folder / "config.json"
    header = join_safetensors(
        folder.name if only is None else only[0],
        read,
        places,
        read_object(config, most=MOST_CONFIG) if config.exists() else None,
    )
    return dataclasses.replace(header, folder=folder, same_embeddings=_same(header, folder))


def join_safetensors(
    name: str,
    read: Mapping[str, SafetensorsHeader],
    places: Mapping[str, str] | None,
    config: Mapping[str, Any] | None,
) -> Header:
    """Return the header of a model from those of its files.

    Args:
        name: What errors and tables call it.
        read: Header by file name.
        places: File name by tensor name, from the index; None where there is none.
        config: config.json.

    Raises:
        FormatError: The index names a tensor that its file does not have, or two files have one.
    """
    tensors: dict[str, Tensor] = {}
    notes = []
    for file, header in read.items():
        for tensor in header.tensors:
            said = places.get(tensor.name) if places is not None else None
            known = tensors.get(tensor.name)
            if known is not None and said is None:
                raise FormatError(
                    f"{name}: the tensor {shown(tensor.name)} is in {known.file} and in {file}.",
                    hint="The folder holds two models; keep the files of one.",
                )
            if said is None or said == file or tensor.name not in tensors:
                tensors[tensor.name] = (
                    tensor if tensor.file == file else dataclasses.replace(tensor, file=file)
                )
    for tensor_name, file in (places or {}).items():
        if tensor_name not in tensors or tensors[tensor_name].file != file:
            raise FormatError(
                f"{name}: the index says that {shown(tensor_name)} is in {file}, it is not.",
                hint="Index and weight files do not belong together; download the model again.",
            )
    extra = len(tensors) - len(places) if places is not None else 0
    if extra:
        notes.append(f"{extra} tensors are in the files but not in the index")
    first = next(iter(read.values()))
    return Header(
        kind="safetensors",
        name=name,
        tensors=tuple(tensors.values()),
        metadata=first.metadata,
        config=config,
        files=tuple(read),
        notes=tuple(notes),
    )


def _gguf(path: Path) -> Header:
    parts = gguf_parts(path)
    header = join_gguf({part.name: check_gguf(part) for part in parts}, sizes={
        part.name: part.stat().st_size for part in parts
    })  # fmt: skip
    same = _same(header, path.parent)
    return dataclasses.replace(header, folder=path.parent, same_embeddings=same)


def join_gguf(read: Mapping[str, GgufHeader], *, sizes: Mapping[str, int | None]) -> Header:
    """Return the header of a GGUF model from those of its parts, in order.

    Args:
        read: Header by file name.
        sizes: Bytes of each file, None where a server does not say.

    Raises:
        FormatError: The parts do not belong together.
    """
    tensors: dict[str, Tensor] = {}
    for number, (file, header) in enumerate(read.items()):
        check_part(header, file, number, len(read))
        for tensor in _common(header, file, sizes[file]):
            if tensor.name in tensors:
                raise FormatError(f"{file}: an earlier part has {shown(tensor.name)} too.")
            tensors[tensor.name] = tensor
    first, metadata = next(iter(read.items()))
    said = metadata.metadata.get("split.tensors.count")
    if len(read) > 1 and said != len(tensors):
        raise FormatError(
            f"{first} says that its {len(read)} parts have {said} tensors, they have "
            f"{len(tensors)}.",
            hint="A part is from another model or damaged; get the parts again.",
        )
    return Header(
        kind="gguf",
        name=first,
        tensors=tuple(tensors.values()),
        metadata=metadata.metadata,
        config=None,
        files=tuple(read),
    )


def _common(header: GgufHeader, file: str, size: int | None) -> list[Tensor]:
    starts = sorted({tensor.offset for tensor in header.tensors})
    after = dict(itertools.pairwise(starts))
    end = size - header.data_start if size is not None else None
    found = []
    for tensor in header.tensors:
        length = tensor.size
        if length is None:  # an unknown type takes what lies before the next tensor
            following = after.get(tensor.offset, end)
            length = following - tensor.offset if following is not None else 0
        start = header.data_start + tensor.offset
        found.append(Tensor(tensor.name, tensor.shape[::-1], tensor.dtype, length, file, start))
    return found


def _same(header: Header, folder: Path) -> bool | None:
    """Return whether both stored embeddings begin, go on and end alike; None: not both alike."""
    inner, outer = embedding(header.tensors), output(header.tensors)
    if inner is None or outer is None:
        return None
    if (inner.shape, inner.dtype, inner.bytes) != (outer.shape, outer.dtype, outer.bytes):
        return None
    last = max(inner.bytes - _SAMPLE, 0)
    with LocalFile(folder / inner.file) as one, LocalFile(folder / outer.file) as other:
        return all(
            one.read(inner.start + at, 0, min(_SAMPLE, inner.bytes))
            == other.read(outer.start + at, 0, min(_SAMPLE, outer.bytes))
            for at in sorted({0, last // 2, last})
        )
