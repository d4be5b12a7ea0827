"""The models that the room's tests open: a script, and the embedded model by each engine."""

from __future__ import annotations

import importlib
from typing import Any

from conformance import SERVED_CONTEXT, SLOTS

import workbench as wb
from workbench.engines.model import Model

SCRIPT = [
    {"exact": "Greet.", "say": "こんにちは、世界！ 🐈‍⬛ ok"},
    {"exact": "Count.", "say": " ".join(str(number) for number in range(60))},
    {"exact": "Nothing.", "say": ""},
    *(
        {"exact": f"What is {n} + {n % 3}?", "say": f"{n} + {n % 3} = {n + n % 3}"}
        for n in range(12)
    ),
    {"exact": "Fail.", "say": "as far as here", "fail": "the engine broke on purpose"},
    {"regex": ".", "say": "A scripted answer, of several words."},
]
REAL = {
    "transformers": {"engine": "transformers", "dtype": "fp32"},
    "llama.cpp": {"engine": "llama.cpp", "quantization": "F32"},
    "mlx": {"engine": "mlx", "dtype": "fp32"},
}
SERVED = {
    "llama-server": {
        "engine": "llama-server",
        "quantization": "F32",
        "context": SERVED_CONTEXT,
        "parallel": SLOTS,
    }
}
STEP = {"transformers": "step", "llama.cpp": "_decode", "mlx": "step"}
"""The method of a session that runs the model once."""
AHEAD = {"transformers": 0, "llama.cpp": 0, "mlx": 1}
"""Tokens that an engine computes ahead of the reader."""
FORMS = [(name, isolated) for name in (*REAL, "scripted") for isolated in (False, True)]


def name_of(form: tuple[str, bool]) -> str:
    return f"{form[0]}{' isolated' if form[1] else ''}"


def open_model(engine: str, *, isolate: bool = False, **settings: Any) -> Model:
    if engine == "scripted":
        settings = {"script": SCRIPT, **settings}
        return wb.load("scripted", engine="scripted", isolate=isolate, **settings)
    settings = {"threads": 1, **{**REAL, **SERVED}[engine], **settings}
    return wb.load("tiny-chat", isolate=isolate, **settings)


# Run in a child, by its request "call"

_steps: list[int] = []
_SESSIONS = {
    "transformers": "workbench.engines.transformers_session:TransformersSession",
    "llama.cpp": "workbench.engines.llama_cpp_session:LlamaCppSession",
    "mlx": "workbench.engines.mlx_session:MlxSession",
}


def count_steps(engine: str) -> None:
    """Count from now on how often the model of this process is run."""
    module, _, name = _SESSIONS[engine].partition(":")
    kind = getattr(importlib.import_module(module), name)
    original = getattr(kind, STEP[engine])
    _steps.clear()

    def counted(self: Any, *args: Any, **more: Any) -> Any:
        _steps.append(1)
        return original(self, *args, **more)

    setattr(kind, STEP[engine], counted)


def steps_taken() -> int:
    """Return how often it was run since."""
    return len(_steps)
