"""Quantize a GGUF file with llama.cpp (runs in a child: llama.cpp can abort the process)."""

from __future__ import annotations

import ctypes
import json
import re

from workbench.errors import FormatError
from workbench.formats.child import emit
from workbench.formats.vocabulary import keep_log

_TENSOR = re.compile(r"^\s*\[\s*(\d+)/\s*(\d+)\]")
_FALLBACK = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback quantization")


def main(arguments: list[str]) -> None:
    """Quantize: one JSON object with source, out, quantization and threads (child side)."""
    import llama_cpp

    given = json.loads(arguments[0])
    notes: list[str] = []

    def watch(line: str) -> None:
        step, fallback = _TENSOR.match(line), _FALLBACK.search(line)
        if step:
            emit("progress", done=int(step[1]), total=int(step[2]))
        if fallback:
            notes.append(
                f"{fallback[1]} of {fallback[2]} tensors have rows not divisible by 256 and got "
                "a larger format."
            )

    log = keep_log(watch)
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type(given["quantization"])
    parameters.nthread = int(given["threads"])
    code = llama_cpp.llama_model_quantize(
        given["source"].encode(), given["out"].encode(), ctypes.byref(parameters)
    )
    if code != 0:
        reasons = [line for line in log if not _TENSOR.match(line)][-2:]
        raise FormatError(
            f"llama.cpp could not quantize {given['name']} to {given['quantization']}: "
            f"{' / '.join(reasons) or f'code {code}'}",
            hint="Quantize from a whole F32, F16 or BF16 file.",
        )
    emit("result", values={"notes": notes})


def file_type(quantization: str) -> int:
    """Return llama.cpp's number of a quantization name."""
    import llama_cpp

    prefix = "LLAMA_FTYPE_ALL_" if quantization == "F32" else "LLAMA_FTYPE_MOSTLY_"
    return int(getattr(llama_cpp, prefix + quantization))
