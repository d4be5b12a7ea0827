"""The embedded model and small training files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.catalog import locate, resolve

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def base() -> Path:
    """Folder of the embedded model."""
    return locate(resolve("tiny-chat")).path


@pytest.fixture(scope="session")
def tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write lines (records or raw text) as a JSON lines file and return its path."""

    def written(*lines: Any, name: str = "train.jsonl") -> Path:
        path = tmp_path / name
        texts = [
            line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)
            for line in lines
        ]
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
        return path

    return written
