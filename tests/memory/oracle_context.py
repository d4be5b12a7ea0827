"""Ask llama.cpp what it would allocate for a GGUF without weights; prints one JSON line.

It runs in a process of its own, because llama.cpp ends the process on what it does not like:
``python oracle_context.py FILE '{"n_ctx": 4096}'``.
"""

import ctypes
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

_MIB = 2**20
_BUFFER = re.compile(r"(\w[\w ]*?) +(KV|RS|compute|output) +buffer size = +([\d.]+) MiB")
_CACHE = re.compile(r"(llama_kv_cache|llama_memory_recurrent)\w*: size = +([\d.]+) MiB")


def ask(path: Path, **context: Any) -> dict[str, Any]:
    """Return the MiB of KV cache, recurrent state, compute and output buffers.

    Args:
        path: A GGUF; its tensors need not be there.
        context: Fields of ``llama_context_params`` (``n_ctx``, ``n_ubatch``, ``n_seq_max``,
            ``type_k``, ``type_v``, ``flash_attn_type``, ``swa_full``, ``kv_unified``).
    """
    command = [sys.executable, __file__, str(path), json.dumps(context)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"llama.cpp ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(path: str, options: dict[str, Any]) -> None:
    import llama_cpp

    lines: list[str] = []

    @llama_cpp.llama_log_callback
    def keep(_level: int, text: bytes, _data: Any) -> None:
        lines.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    load = llama_cpp.llama_model_default_params()
    load.no_alloc = True
    load.load_mode = 0
    load.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(path.encode(), load)
    if not model:
        sys.exit("no model: " + "".join(lines[-20:]))
    context = llama_cpp.llama_context_default_params()
    context.n_threads = context.n_threads_batch = 1
    for name, value in options.items():
        setattr(context, name, value)
    made = llama_cpp.llama_init_from_model(model, context)
    if not made:
        sys.exit("no context: " + "".join(lines[-20:]))
    text = "".join(lines)
    found = {"kv": 0.0, "state": 0.0, "compute": 0.0, "output": 0.0}
    for kind, size in _CACHE.findall(text):
        found["kv" if kind == "llama_kv_cache" else "state"] += float(size)
    for _device, kind, size in _BUFFER.findall(text):
        if kind in ("compute", "output"):
            found[kind] += float(size)
    if "--log" in sys.argv:
        print(text)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
