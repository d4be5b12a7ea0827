"""Loaded models shared by the room's tests: each engine, in this process, in a child, or served."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conformance import SERVED_CONTEXT, SLOTS, Form, forms_of
from engine_models import FORMS, REAL, name_of, open_model
from llama_server_process import KEY, llama_server
from remote_model import at_url
from vllm_environment import need_vllm, vllm_model

from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.paths import shipped

Opened = Callable[..., Model]
HERE = Path(__file__).parent
_shared: list[Model] = []


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """After this room's last test, free what it shared: the other rooms have the memory."""
    if nextitem is None or HERE not in nextitem.path.parents:
        while _shared:
            _shared.pop().close()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The embedded model in a folder that a test may spoil."""
    folder = tmp_path / "copy"
    shutil.copytree(shipped("data", "tiny-chat"), folder, ignore=shutil.ignore_patterns("builder"))
    return folder


@pytest.fixture(scope="session")
def session_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models that are shared by tests keep what they convert."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def opened(session_home: Path) -> Opened:
    """Open each form once for all tests."""
    models: dict[tuple[str, bool, str], Model] = {}

    def get(engine: str, isolate: bool = False, **settings: str) -> Model:
        key = (engine, isolate, str(settings))
        if key not in models or models[key].closed:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("WORKBENCH_HOME", str(session_home))
                patch.setenv("PYTHONPATH", str(HERE))  # tests call functions there
                models[key] = open_model(engine, isolate=isolate, **settings)
            _shared.append(models[key])
        return models[key]

    return get


@pytest.fixture(params=FORMS, ids=name_of)
def model(request: pytest.FixtureRequest, opened: Opened) -> Model:
    """Every engine, in this process and in a child."""
    return opened(*request.param)


@pytest.fixture(params=[form for form in FORMS if form[0] in REAL], ids=name_of)
def real(request: pytest.FixtureRequest, opened: Opened) -> Model:
    """The engines with weights, in this process and in a child."""
    return opened(*request.param)


@pytest.fixture(params=list(REAL))
def here(request: pytest.FixtureRequest, opened: Opened) -> Model:
    """The engines with weights, in this process."""
    return opened(request.param, False)


@pytest.fixture(scope="session")
def f32(opened: Opened) -> Path:
    """The embedded model as a GGUF file of 32 bits."""
    files = opened("llama.cpp", False).plan.files
    assert files is not None
    return files.path


# Servers, each started once


@pytest.fixture(scope="session")
def llama_server_url(f32: Path) -> Iterator[str]:
    """The base URL of the server that the package xllamacpp carries; its key is ``KEY``."""
    with llama_server(f32, context=SERVED_CONTEXT, slots=SLOTS) as url:
        yield url


@pytest.fixture
def llama_server_model(opened: Opened) -> Model:
    """The same server, started and ended by the workbench."""
    return opened("llama-server")


@pytest.fixture(scope="session")
def llama_server_at_url(llama_server_url: str, session_home: Path) -> Iterator[Model]:
    """A server that somebody else started."""
    with at_url(llama_server_url, KEY, session_home) as model:
        _shared.append(model)
        yield model


@pytest.fixture(scope="session")
def vllm(session_home: Path) -> Iterator[Model]:
    """The one vLLM of this session."""
    need_vllm()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(session_home))
        model = vllm_model()
    with model:
        _shared.append(model)
        yield model


@pytest.fixture(scope="session")
def vllm_at_url(vllm: Model, session_home: Path) -> Iterator[Model]:
    """The same server, as if somebody else had started it."""
    command = vllm._session.server.command  # type: ignore[union-attr]
    with at_url(f"{command.url}/v1", command.key, session_home) as model:
        _shared.append(model)
        yield model


SERVED = {
    "llama-server": "llama_server_model",
    "url of llama-server": "llama_server_at_url",
    "vllm": "vllm",
    "url of vllm": "vllm_at_url",
}


# The conformance suite


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "each" in metafunc.fixturenames:
        metafunc.parametrize("form", forms_of(metafunc.function))


@pytest.fixture
def each(request: pytest.FixtureRequest, form: Form, opened: Opened) -> Model:
    """The model in each form that the test does not leave out."""
    if form.name in SERVED:
        found: Model = request.getfixturevalue(SERVED[form.name])
        return found
    packed = form.quantization not in ("none", "F32")
    settings = {"quantization": form.quantization} if packed else {}
    return opened(form.engine, form.isolated, **settings)


@pytest.fixture
def reference(opened: Opened) -> Model:
    """What the others are held against: transformers, fp32, in this process."""
    return opened("transformers", False)


@pytest.fixture
def shows(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Note that this test exercised powers of a model: counted where the test passes.

    ``benchmarks/powers.py`` collects the notes; nothing else says that a power was shown.
    """

    def note(model: Model, *powers: Power) -> None:
        way = "in its own process" if model.isolated else "in this process"
        session = model._session
        if model.plan.engine == "openai":
            way = f"{session.flavour} by its URL"  # type: ignore[union-attr]
        elif hasattr(session, "server"):
            way = "as a server"
        for power in powers:
            assert power in model.powers
            told = f"{model.plan.engine}|{power}|{way}|{model.plan.device}"
            request.node.user_properties.append(("power", told))

    return note
