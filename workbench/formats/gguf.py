"""GGUF files: convert from safetensors, quantize, and keep both in a cache by content."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

from workbench.catalog import ModelFiles
from workbench.catalog.capabilities import engine_facts
from workbench.catalog.header import check_gguf
from workbench.errors import (
    FormatError,
    InputError,
    MissingPackageError,
    UnsupportedError,
    did_you_mean,
)
from workbench.formats import cache
from workbench.formats.child import Event, run_child
from workbench.formats.converter import converter, converter_version, installed_version
from workbench.formats.driver import safe_name
from workbench.formats.pretokenizer import check_rows, read_tokenizer, token_ids
from workbench.formats.safetensors import Stored, read_stored
from workbench.paths import atomic_file, require_space
from workbench.paths import cache as cache_path
from workbench.progress import Bar, duration, progress

Dtype = Literal["auto", "F32", "F16", "BF16"]
FLOATS = ("F32", "F16", "BF16")
REVISION = 1
"""Raised when this code writes other bytes from the same input: old cached files are left alone."""

# Bits per weight of whole files, from llama.cpp's own table of a model of 8 billion parameters;
# small models keep a larger share in embeddings, so room is added where disk space is asked for.
BITS = {
    "F32": 32.0, "BF16": 16.0, "F16": 16.0, "Q8_0": 8.5, "Q6_K": 6.57, "Q5_K_M": 5.7,
    "Q5_K_S": 5.57, "Q5_1": 6.0, "Q5_0": 5.6, "Q4_K_M": 4.9, "Q4_K_S": 4.67, "Q4_1": 5.1,
    "Q4_0": 4.66, "IQ4_NL": 4.68, "IQ4_XS": 4.46, "Q3_K_L": 4.3, "Q3_K_M": 4.0, "Q3_K_S": 3.64,
    "Q2_K": 3.16,
}  # fmt: skip
_SLOW = {"Q8_0": 250.0, "Q4_0": 200.0, "Q4_1": 200.0, "Q5_0": 150.0, "Q5_1": 150.0, "IQ4_XS": 6.0}
_PARAMETERS_PER_SECOND = 20.0  # millions for k-quants on one CPU thread
_CONVERTER_STARTS, _CONVERTER_BYTES_PER_SECOND = 8.0, 200e6
_MARGIN_BYTES = 32_000_000
_OVERHEAD = 1.1
_FLOAT_KINDS = {0, 1, 30}  # ggml numbers of F32, F16 and BF16


def convert(
    files: ModelFiles, out: Path, *, dtype: Dtype = "auto", name: str | None = None
) -> Path:
    """Convert a safetensors model to a GGUF file by llama.cpp's own converter.

    The file appears under ``out`` only when it is whole and its tokenizer, chat template and end
    tokens are the source's. Needs the extras ``torch`` and ``llama``.

    Args:
        files: The safetensors model.
        out: The GGUF file to write.
        dtype: ``F32``, ``F16``, ``BF16``, or ``auto``: as the weights are stored, which loses
            nothing.
        name: ``general.name`` in the file; default is the folder's name.

    Raises:
        FormatError: The source is truncated, its weights do not fit the dtype, or its tokenizer
            cannot be written faithfully.
        UnsupportedError: The source is no safetensors model, or is already quantized.
        DiskSpaceError: There is no room for the result; nothing was written.
        MissingPackageError: A package is not installed.
    """
    stored, label = _check_source(files), name or files.label
    tokenizer = read_tokenizer(files.path)
    check_rows(files.path, token_ids(tokenizer), name=label)
    chosen = _float_name(dtype, stored)
    require_space(
        out.parent,
        file_bytes(stored.parameters, chosen),
        purpose=f"The GGUF {chosen} of {files.path.name}",
    )
    said = duration(_CONVERTER_STARTS + files.weight_bytes() / _CONVERTER_BYTES_PER_SECOND)
    given = {
        "root": str(converter().folder),
        "model": str(files.path.resolve()),
        "dtype": chosen.lower(),
        "name": safe_name(label, tokenizer),
    }
    title = f"Converting {label} to GGUF {chosen} (about {said})"
    with (
        progress(title, unit="MB", even=False) as bar,
        atomic_file(out) as partial,
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".partial-{os.getpid()}-") as scratch,
    ):
        results = run_child(
            "workbench.formats.driver",
            [json.dumps({**given, "out": str(partial), "scratch": scratch})],
            doing=f"Converting {label} to GGUF",
            on_event=lambda event: _show(bar, event, scale=1e6),
        )
        _check_written(partial, results, label)
    return out


def quantize(
    source: Path,
    out: Path,
    quantization: str,
    *,
    threads: int | None = None,
    name: str | None = None,
) -> Path:
    """Quantize a GGUF file of F32, F16 or BF16 with llama.cpp.

    Args:
        source: The file to quantize.
        out: The file to write; it appears only when it is whole.
        quantization: For example ``Q8_0`` or ``Q4_K_M``.
        threads: CPU threads; default is all.
        name: What to call the model in messages; default is the file's name.

    Raises:
        InputError: There is no such quantization.
        FormatError: The source is truncated or damaged.
        UnsupportedError: The source is already quantized.
        DiskSpaceError: There is no room for the result; nothing was written.
    """
    chosen = known_quantization(quantization)
    installed_version()
    label = name or source.name
    if not source.is_file():
        raise InputError(f"{source} does not exist.", hint="Give a GGUF file.")
    parameters = _unquantized_parameters(source)
    require_space(
        out.parent, file_bytes(parameters, chosen), purpose=f"Quantizing {label} to {chosen}"
    )
    workers = threads or os.cpu_count() or 1
    said = duration(0.5 + parameters / 1e6 / _speed(chosen) / workers)
    with (
        progress(f"Quantizing {label} to {chosen} (about {said})", unit="tensors") as bar,
        atomic_file(out) as partial,
    ):
        given = {
            "source": str(source),
            "out": str(partial),
            "quantization": chosen,
            "threads": workers,
            "name": label,
        }
        results = run_child(
            "workbench.formats.quantizer",
            [json.dumps(given)],
            doing=f"Quantizing {label} to {chosen}",
            on_event=lambda event: _show(bar, event),
        )
        _check_written(partial, results, label)
    return out


def ensure_gguf(files: ModelFiles, quantization: str) -> Path:
    """Return the model as a GGUF file of this quantization, made once and kept by content.

    A second call with the same weights, tokenizer and converter returns the same file at once;
    concurrent callers wait for the one that makes it. The 16-bit file in between is kept too.

    Args:
        files: A safetensors model, or an unquantized GGUF file.
        quantization: ``F32``, ``F16``, ``BF16``, ``Q8_0``, ``Q4_K_M``, ...; ``none`` on a GGUF
            file returns it as it is.

    Raises:
        WorkbenchError: As ``convert`` and ``quantize``.
    """
    if files.kind == "gguf" and quantization == "none":
        return files.path
    chosen = known_quantization("F16" if quantization == "none" else quantization)
    version = converter_version() if files.kind == "safetensors" else installed_version()
    entry = cache_path(cache.ROOM, f"{cache.content_key(files)[:24]}-{version}-r{REVISION}")
    return _ensure(files, chosen, entry)


def _ensure(files: ModelFiles, quantization: str, entry: Path) -> Path:
    """Return the entry's file: the stored float type is converted, all else made from that."""
    final = entry / f"{quantization}.gguf"
    if final.is_file():
        cache.used_now(final)
        return final
    source, converted = files.path, False
    if files.kind == "safetensors":
        as_stored = read_stored(files).float_name
        # float16 from a wider type goes through the converter, whose range check it needs
        converted = quantization == as_stored or quantization == "F16"
        source = final if converted else _ensure(files, as_stored, entry)
    with cache.locked(final):
        if final.is_file():
            return final
        _describe(entry, files)
        if converted:
            return convert(files, final, dtype=quantization)  # type: ignore[arg-type]
        return quantize(source, final, quantization, name=files.path.name)


def _describe(entry: Path, files: ModelFiles) -> None:
    about = entry / "about.json"
    if not about.is_file():
        with atomic_file(about) as partial:
            partial.write_text(json.dumps({"source": files.label}) + "\n")


def known_quantization(name: str) -> str:
    """Return the exact name of a quantization that can be made here without further data.

    Raises:
        InputError: There is none; the nearest name is given.
    """
    known = {known.lower(): known for known in engine_facts()["llama.cpp"].quantizations}
    exact = known.get(name.lower())
    if exact is None:
        raise InputError(
            f"There is no GGUF quantization {name!r} that can be made here.",
            hint=did_you_mean(name, known.values()),
        )
    return exact


def file_bytes(parameters: int, quantization: str) -> int:
    """Return the bytes to have free for a GGUF file: its size with a margin for small models."""
    bits = BITS.get(quantization, 16.0)
    return int(parameters * bits / 8 * _OVERHEAD) + _MARGIN_BYTES


def _unquantized_parameters(source: Path) -> int:
    header = check_gguf(source)
    kinds = {tensor.kind for tensor in header.tensors} - _FLOAT_KINDS
    if kinds:
        raise UnsupportedError(
            f"{source.name} is already quantized; quantizing it again would add up the losses.",
            hint="Quantize from the F32, F16 or BF16 file.",
        )
    return sum(math.prod(tensor.shape) for tensor in header.tensors)


def _speed(quantization: str) -> float:
    return _SLOW.get(quantization, _PARAMETERS_PER_SECOND)


def _float_name(dtype: str, stored: Stored) -> str:
    exact = {name.lower(): name for name in ("auto", *FLOATS)}.get(dtype.lower())
    if exact is None:
        raise InputError(
            f"A GGUF file is converted to F32, F16 or BF16, not {dtype!r}.",
            hint="Convert to one of them, then quantize.",
        )
    return stored.float_name if exact == "auto" else exact


def _check_source(files: ModelFiles) -> Stored:
    """Refuse what cannot be converted before anything is fetched or written."""
    if files.kind != "safetensors":
        raise UnsupportedError(
            f"{files.path.name} is a {files.kind} file; only safetensors are converted.",
            hint="Quantize it, or give the folder it was made from.",
        )
    installed_version()
    missing = [p for p in ("torch", "transformers", "sentencepiece") if not _installed(p)]
    if missing:
        raise MissingPackageError(
            f"llama.cpp's converter needs {', '.join(missing)}, which is not installed.",
            hint="pip install 'llm-workbench[torch]'",
        )
    stored = read_stored(files)
    if stored.quantization is not None:
        raise UnsupportedError(
            f"The weights of {files.path.name} are already quantized ({stored.quantization}).",
            hint="Convert the 16-bit weights it was made from.",
        )
    return stored


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _show(bar: Bar, event: Event, *, scale: float = 1) -> None:
    if event["event"] == "progress" and event["total"]:
        done, total = float(event["done"]) / scale, float(event["total"]) / scale
        bar.update(done=round(done, 1), total=round(total, 1))


def _check_written(path: Path, results: list[dict[str, Any]], label: str) -> None:
    if not results or path.stat().st_size == 0:
        raise FormatError(f"Nothing was written for {label}.", hint="Try again.")
    check_gguf(path)
    for note in results[0]["notes"]:
        warnings.warn(f"{label}: {note}", UserWarning, stacklevel=3)
