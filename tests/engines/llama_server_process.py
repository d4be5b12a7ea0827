"""A llama-server that nobody supervises, as somebody else would have started it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from workbench.engines import server_xllamacpp

KEY = "local-0123456789abcdef"


@contextlib.contextmanager
def llama_server(file: Path, *, context: int, slots: int, name: str = "tiny-chat") -> Iterator[str]:
    """Start the server of the package xllamacpp for the block, and give its base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--model", str(file), "--alias", name, "--port", str(port), "--threads", "1"]
    words += ["--ctx-size", str(slots * context), "--parallel", str(slots)]
    process = subprocess.Popen(
        [sys.executable, server_xllamacpp.__file__, *words],
        env={**os.environ, "LLAMA_API_KEY": KEY},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.05)
    raise AssertionError("the server is not ready")
