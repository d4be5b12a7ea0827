"""Runs llama.cpp's server out of the package xllamacpp, with llama-server's own words.

Run by path: ``server_xllamacpp.py --model FILE --port PORT ...``; the key comes in LLAMA_API_KEY.
"""

from __future__ import annotations

import argparse
import os
import signal
from typing import Any


def arguments() -> argparse.Namespace:
    """Return the words that are understood; they are llama-server's."""
    parser = argparse.ArgumentParser(prog="llama-server")
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", default="")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ctx-size", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--threads", type=int, default=-1)
    parser.add_argument("--n-gpu-layers", type=int, default=0)
    parser.add_argument("--cache-type-k", default="f16")
    parser.add_argument("--cache-type-v", default="f16")
    parser.add_argument("--flash-attn", choices=("on", "off", "auto"), default="auto")
    parser.add_argument("--lora-scaled", action="append", default=[], metavar="FILE:SCALE")
    parser.add_argument("--mmproj", default="")
    parser.add_argument("--embedding", action="store_true")
    parser.add_argument("--reranking", action="store_true")
    return parser.parse_args()


def parameters(given: argparse.Namespace) -> Any:
    """Return xllamacpp's settings of these words."""
    import xllamacpp as library

    found = library.CommonParams()
    found.model.path = given.model
    found.model_alias = {given.alias} if given.alias else set()
    found.hostnames, found.port = [given.host], given.port
    found.api_keys = [key] if (key := os.environ.get("LLAMA_API_KEY")) else []
    found.n_parallel, found.n_ctx = given.parallel, given.ctx_size
    found.kv_unified = False
    found.n_gpu_layers = given.n_gpu_layers
    found.cpuparams.n_threads = found.cpuparams_batch.n_threads = given.threads
    kinds = library.ggml_type
    found.cache_type_k = getattr(kinds, f"GGML_TYPE_{given.cache_type_k.upper()}")
    found.cache_type_v = getattr(kinds, f"GGML_TYPE_{given.cache_type_v.upper()}")
    attention = library.llama_flash_attn_type
    words = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}
    found.flash_attn_type = getattr(attention, f"LLAMA_FLASH_ATTN_TYPE_{words[given.flash_attn]}")
    found.use_jinja, found.offline = True, True
    found.embedding = given.embedding or given.reranking
    if given.reranking:
        found.pooling_type = library.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    if given.mmproj:
        found.mmproj.path = given.mmproj
    found.lora_adapters = [_adapter(library, word) for word in given.lora_scaled]
    return found


def _adapter(library: Any, word: str) -> Any:
    path, _, scale = word.rpartition(":")
    return library.CommonAdapterLoraInfo(path, float(scale))


def main() -> None:
    """Serve until a signal ends it."""
    import xllamacpp

    server = xllamacpp.Server(parameters(arguments()))
    print(f"listening on {server.listening_address}", flush=True)  # noqa: T201
    while True:
        signal.pause()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    main()
