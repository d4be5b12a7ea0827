"""What a safetensors model holds, read from its headers: parameters, dtype, completeness."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from workbench.catalog import ModelFiles
from workbench.errors import FormatError, NotFoundError

_FLOAT_NAMES = {"F32": "F32", "F64": "F32", "F16": "F16", "BF16": "BF16"}
_CANNOT = ("bitsandbytes", "awq", "hqq", "quanto", "aqlm", "eetq", "higgs", "vptq", "spqr")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the weight files hold.

    Attributes:
        parameters: Number of stored values.
        dtypes: Bytes of each safetensors dtype.
        quantization: Method of a quantized checkpoint that cannot be converted, or None.
    """

    parameters: int
    dtypes: dict[str, int]
    quantization: str | None

    @property
    def float_name(self) -> str:
        """The GGUF float type that loses nothing: F32, F16 or BF16."""
        main = max(self.dtypes, key=lambda name: self.dtypes[name], default="BF16")
        return _FLOAT_NAMES.get(main, "BF16")


def read_stored(files: ModelFiles) -> Stored:
    """Read the headers of a safetensors model.

    Raises:
        FormatError: A file is truncated, or the index names a file that is not there.
        NotFoundError: The folder has no config.json.
    """
    config = _json(files.path / "config.json")
    _check_index(files.path)
    sizes: Counter[str] = Counter()
    parameters = 0
    for path in files.weights:
        for entry in header(path).values():
            parameters += prod(entry["shape"])
            sizes[entry["dtype"]] += entry["data_offsets"][1] - entry["data_offsets"][0]
    method = (config.get("quantization_config") or {}).get("quant_method")
    return Stored(
        parameters=parameters,
        dtypes=dict(sizes),
        quantization=str(method) if method in _CANNOT else None,
    )


def header(path: Path) -> dict[str, dict[str, Any]]:
    """Return name -> dtype, shape and offsets of every tensor in one safetensors file.

    Raises:
        FormatError: The file is truncated or its header is damaged.
    """
    size = path.stat().st_size
    cut_off = FormatError(
        f"{path.name} is not a whole safetensors file: it has {size} bytes.",
        hint="Download or save it again.",
    )
    with path.open("rb") as stream:
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
        if length + 8 > size:
            raise cut_off
        try:
            entries = json.loads(stream.read(length))
        except ValueError:
            raise cut_off from None
    entries.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if end + 8 + length != size:
        raise cut_off
    return dict(entries)


def _check_index(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    missing = {
        name for name in _json(index)["weight_map"].values() if not (folder / name).is_file()
    }
    if missing:
        raise FormatError(
            f"{folder.name} lacks {len(missing)} of its weight files: {sorted(missing)[0]}, ...",
            hint="The download is not complete; download it again.",
        )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist.", hint="Give a folder of save_pretrained.")
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{path} is not valid JSON: {error}.") from None
    return values
