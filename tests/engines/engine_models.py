"""The models that the room's tests open: a script, and the embedded model by each engine."""

from __future__ import annotations

from typing import Any

import workbench as wb
from workbench.engines.model import Model

SCRIPT = [
    {"exact": "Greet.", "say": "こんにちは、世界！ 🐈‍⬛ ok"},
    {"exact": "Count.", "say": " ".join(str(number) for number in range(60))},
    {"exact": "Fail.", "say": "as far as here", "fail": "the engine broke on purpose"},
    {"regex": ".", "say": "A scripted answer, of several words."},
]
REAL = {
    "transformers": {"engine": "transformers", "dtype": "fp32"},
    "llama.cpp": {"engine": "llama.cpp", "quantization": "F32"},
    "mlx": {"engine": "mlx", "dtype": "fp32"},
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
    settings = {"threads": 1, **REAL[engine], **settings}
    return wb.load("tiny-chat", isolate=isolate, **settings)
