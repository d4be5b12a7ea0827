"""llama-server, by the package xllamacpp: slots, key, adapters, errors, and how it ends.

What it answers is held against the other engines by the conformance suite.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conformance import SERVED_CONTEXT, SLOTS
from test_llama_cpp_adapters import write_adapter

import workbench as wb
from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.errors import ContextLengthError, EngineError, UnsupportedError

CONTEXT = 256


@pytest.fixture
def served(llama_server_model: Model) -> Model:
    return llama_server_model


def test_each_slot_has_the_whole_context(served: Model) -> None:
    session = served._session
    slots = session.http.json("GET", "/slots", at_root=True)
    assert len(slots) == SLOTS
    assert {slot["n_ctx"] for slot in slots} == {SERVED_CONTEXT}
    long = "cat " * (SERVED_CONTEXT // 2 - 20)
    assert len(served.prompt_ids(long)) > SERVED_CONTEXT // SLOTS
    assert served.ask(long, max_tokens=2).usage.prompt_tokens > SERVED_CONTEXT // SLOTS
    with pytest.raises(ContextLengthError):
        served.ask("cat " * SERVED_CONTEXT, max_tokens=4)


def test_its_key_is_asked_for(served: Model) -> None:
    import urllib.error
    import urllib.request

    url = served._session.server.command.url
    assert url.startswith("http://127.0.0.1:")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{url}/v1/models", timeout=10)
    assert caught.value.code == 401
    caught.value.close()


def test_an_architecture_it_does_not_know_is_named(tmp_path: Path, f32: Path) -> None:
    strange = tmp_path / "strange.gguf"
    data = f32.read_bytes()
    place = data.index(b"llama", data.index(b"general.architecture"))
    strange.write_bytes(data[:place] + b"lluma" + data[place + 5 :])
    with pytest.raises(EngineError, match="does not know the architecture lluma"):
        wb.load(strange, engine="llama-server", context=CONTEXT, threads=1)


def test_an_adapter_it_was_not_started_with_is_refused(served: Model, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="started without the adapter"):
        served.use_adapter(tmp_path)


def test_an_adapter_is_switched_as_in_llama_cpp(tmp_path: Path, shows: Callable[..., None]) -> None:
    folder = write_adapter(tmp_path / "adapter", r=4, lora_alpha=24)
    settings = {"quantization": "F32", "context": CONTEXT, "threads": 1, "adapter": folder}
    with wb.load("tiny-chat", engine="llama.cpp", **settings) as model:
        adapted = model.ask("Tell me a story.", max_tokens=8).text
        model.use_adapter(None)
        base = model.ask("Tell me a story.", max_tokens=8).text
    assert adapted != base
    with wb.load("tiny-chat", engine="llama-server", **settings) as model:
        assert model.ask("Tell me a story.", max_tokens=8).text == adapted
        model.use_adapter(None)
        assert model.ask("Tell me a story.", max_tokens=8).text == base
        model.use_adapter(folder)
        assert model.ask("Tell me a story.", max_tokens=8).text == adapted
        shows(model, Power.ADAPTERS)


def test_closing_ends_it(f32: Path) -> None:
    model = wb.load(f32, engine="llama-server", context=CONTEXT, threads=1)
    session = model._session
    processes = session.server.processes()
    assert len(processes) == 2
    model.close()
    assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert session.freed.before.rss_bytes > 20_000_000
    assert session.freed.after.rss_bytes == 0
