"""A fixture that writes small notebooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from small_notebooks import PARAMETERS, write_notebook


@pytest.fixture
def notebook(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a notebook and returns its path."""

    def make(
        cells: Sequence[str], *, name: str = "small", parameters: str | None = PARAMETERS
    ) -> Path:
        return write_notebook(tmp_path / f"{name}.ipynb", cells, parameters=parameters)

    return make
