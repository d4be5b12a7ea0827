"""Ask llama.cpp which type it would give each tensor of a GGUF, without weights and without work.

``llama_model_quantize`` with ``dry_run`` on a sparse file that has only metadata and tensor infos.
It runs in a process of its own, because llama.cpp ends the process on what it does not like.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import gguf
from empty_gguf import _metadata, gguf_name

from workbench.catalog.architecture import Architecture
from workbench.catalog.shapes import Shape
from workbench.memory.ggml import row_bytes

_MORE_NAMES = {"moondream1": "phi2", "mixtral": "llama", "gemma": "gemma"}
_LINE = re.compile(r"\[ *\d+/ *\d+\] +(\S+) .*?type = +(\w+), size = +[\d.]+ MiB(.*)")
_TARGET = re.compile(r"-> +[\d.]+ MiB \((\w+)\)")
_TOTAL = re.compile(r"quant size += +([\d.]+) MiB")


def write_sparse(path: Path, facts: Architecture, tensors: Sequence[tuple[Shape, str]]) -> Path:
    """Write metadata and tensor infos, and stretch the file to what the tensors would need."""
    if facts.vocab_size is None:
        rows = tensors[0][0].shape[0] if tensors else 0
        embedding = [shape for shape, _ in tensors if shape.role == "token_embd"]
        facts = facts.changed(vocab_size=embedding[0].shape[0] if embedding else rows)
    name = _MORE_NAMES.get(facts.model_type or "") or gguf_name(facts)
    writer = gguf.GGUFWriter(path, name)
    _metadata(writer, name, facts, 512)
    if name == "phi2":
        writer.add_layer_norm_eps(1e-5)
    data = 0
    for shape, kind in tensors:
        size = shape.rows * row_bytes(kind, shape.columns)
        raw = gguf.GGMLQuantizationType[kind]
        writer.add_tensor_info(shape.name, shape.shape, None, size, raw_dtype=raw)
        data += -(-size // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-path.stat().st_size // 32) * 32 + data)
    return path


def total(tensors: Sequence[tuple[Shape, str]]) -> int:
    """Return the bytes of tensors of these types."""
    return sum(shape.rows * row_bytes(kind, shape.columns) for shape, kind in tensors)


def dry_run(
    path: Path, file_types: Sequence[str], *, imatrix: bool = False
) -> dict[str, dict[str, str]]:
    """Return, for each file type, the ggml type of each tensor by name, upper case.

    The key ``"MiB"`` holds llama.cpp's own total.
    """
    return dry_runs([path], file_types, imatrix=imatrix)[0]


def dry_runs(
    paths: Sequence[Path], file_types: Sequence[str], *, imatrix: bool = False
) -> list[dict[str, dict[str, str]]]:
    """Return the same for several files, asked in one process."""
    given = [[str(path) for path in paths], list(file_types), imatrix]
    command = [sys.executable, __file__, json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"llama.cpp ended with {done.returncode}: {done.stderr[-2000:]}")
    found: list[dict[str, dict[str, str]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def parse(log: str) -> dict[str, str]:
    """Return the types in llama.cpp's log."""
    found = {}
    for line in log.splitlines():
        match = _LINE.search(line)
        if match:
            target = _TARGET.search(match[3])
            found[match[1]] = (target[1] if target else match[2]).upper()
    total = _TOTAL.search(log)
    assert total is not None, log[-2000:]
    return {**found, "MiB": total[1]}


def main(paths: list[str], file_types: list[str], imatrix: bool) -> None:
    import llama_cpp

    lines: list[str] = []

    @llama_cpp.llama_log_callback
    def keep(_level: int, text: bytes, _data: object) -> None:
        lines.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.dry_run, parameters.nthread = True, 1
    if imatrix:
        parameters.imatrix, _alive = _importance(parameters)
    answers = []
    for path in paths:
        found = {}
        for file_type in file_types:
            prefix = "LLAMA_FTYPE_ALL_" if file_type == "F32" else "LLAMA_FTYPE_MOSTLY_"
            parameters.ftype = getattr(llama_cpp, prefix + file_type)
            lines.clear()
            code = llama_cpp.llama_model_quantize(
                path.encode(), (path + ".out").encode(), ctypes.byref(parameters)
            )
            if code:
                sys.exit(f"{path}: {file_type}: code {code}: {''.join(lines)[-1500:]}")
            found[file_type] = parse("".join(lines))
        answers.append(found)
    print(json.dumps(answers))


def _importance(parameters: object) -> tuple[object, object]:
    """Return an importance matrix of one entry that belongs to no tensor."""
    import llama_cpp

    kind = next(
        kind for name, kind in llama_cpp.llama_model_quantize_params._fields_ if name == "imatrix"
    )
    if kind is ctypes.c_void_p:
        entry = type(
            "Entry",
            (ctypes.Structure,),
            {
                "_fields_": [
                    ("name", ctypes.c_char_p),
                    ("data", ctypes.POINTER(ctypes.c_float)),
                    ("size", ctypes.c_size_t),
                ]
            },
        )
    else:
        entry = kind._type_
    values = (ctypes.c_float * 1)(1.0)
    entries = (entry * 2)()
    entries[0].name = b"none"
    entries[0].data = ctypes.cast(values, ctypes.POINTER(ctypes.c_float))
    entries[0].size = 1
    pointer = ctypes.cast(entries, kind)
    return pointer, (entries, values)


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
