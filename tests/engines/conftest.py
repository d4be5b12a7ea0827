"""Loaded models shared by the room's tests: each engine, in this process and in a child."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_models import FORMS, REAL, name_of, open_model

from workbench.engines.model import Model


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, bool], Model]]:
    """Open each form once for all tests."""
    models: dict[tuple[str, bool], Model] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("home")))

        def get(engine: str, isolate: bool = False) -> Model:
            if (engine, isolate) not in models:
                models[engine, isolate] = open_model(engine, isolate=isolate)
            return models[engine, isolate]

        yield get
        for model in models.values():
            model.close()


@pytest.fixture(params=FORMS, ids=name_of)
def model(request: pytest.FixtureRequest, opened: Callable[[str, bool], Model]) -> Model:
    """Every engine, in this process and in a child."""
    return opened(*request.param)


@pytest.fixture(params=[form for form in FORMS if form[0] in REAL], ids=name_of)
def real(request: pytest.FixtureRequest, opened: Callable[[str, bool], Model]) -> Model:
    """The engines with weights, in this process and in a child."""
    return opened(*request.param)


@pytest.fixture(params=list(REAL))
def here(request: pytest.FixtureRequest, opened: Callable[[str, bool], Model]) -> Model:
    """The engines with weights, in this process."""
    return opened(request.param, False)


@pytest.fixture(scope="session")
def f32(opened: Callable[[str, bool], Model]) -> Path:
    """The embedded model as a GGUF file of 32 bits."""
    files = opened("llama.cpp", False).plan.files
    assert files is not None
    return files.path
