"""Loading: plans, receipts, bad input, what is open, and that closing frees."""

from __future__ import annotations

import gc
import importlib
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from engine_models import open_model

import workbench as wb
from workbench.engines.model import Model
from workbench.errors import (
    EngineError,
    FormatError,
    InputError,
    NotFoundError,
    UnsupportedError,
    WorkbenchError,
)
from workbench.receipts import receipts


def test_importing_the_room_loads_no_engine() -> None:
    code = """
import sys
import threading
import workbench.engines, workbench.engines.registry, workbench.engines.child_session
print([name for name in ("torch", "transformers", "llama_cpp", "numpy") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_load_leaves_a_receipt(home: Path) -> None:
    with open_model("llama.cpp", context=256) as model:
        assert model.receipt is not None
        receipt = json.loads(model.receipt.read_text())
        assert model.receipt.is_relative_to(home)
        assert receipt["what"] == "load"
        assert receipt["outcome"] == "done"
        assert receipt["plan"]["context"] == 256
        assert receipt["plan"]["quantization"] == "F32"
        assert receipt["result"]["weight_bytes"] == model.plan.files.weight_bytes() > 10_000_000
        assert receipt["result"]["load_seconds"] > 0
        assert isinstance(receipt["result"]["rss_growth_bytes"], int)


def test_a_failed_load_is_kept_with_its_reason_and_raised(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 7}))
    with pytest.raises(FormatError, match="lacks"):
        wb.load(copy, engine="transformers")
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "no_such_thing"}))
    with pytest.raises(EngineError, match="no_such_thing"):
        wb.load(copy, engine="transformers")
    kept = receipts(what="load", outcome="failed", where="here")
    assert len(kept) == 2
    assert "lacks" in str(kept[0].reason)
    assert "no_such_thing" in str(kept[1].reason)
    assert kept[1].result == {}


def test_a_full_disk_does_not_take_a_loaded_model_away(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importlib.import_module("workbench.engines.load"), "write", full)
    with open_model("scripted") as model:
        assert model.receipt is None
        assert model.ask("Greet.").text


# Closing


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
def test_closing_frees_the_model(engine: str) -> None:
    model = open_model(engine)
    assert model.ask("Hi!", max_tokens=3).token_ids
    reference = weakref.ref(model.raw)
    assert reference() is not None
    model.close()
    gc.collect()
    if engine == "transformers":
        assert reference() is None
    else:
        native = reference()
        assert native is None or native._model.model is None
    model.close()
    assert model.closed
    for use in (
        lambda: model.ask("Hi!"),
        lambda: model.raw,
        lambda: model.tokenize("x"),
        lambda: model.powers,
    ):
        with pytest.raises(EngineError, match="is closed"):
            use()
    assert "closed" in repr(model)
    assert "closed" in model._repr_mimebundle_()["text/plain"]


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
def test_a_child_is_gone_after_closing(engine: str) -> None:
    model = open_model(engine, isolate=True)
    pid = model.pid
    assert pid is not None
    assert psutil.pid_exists(pid)
    model.close()
    assert not psutil.pid_exists(pid)


def test_loading_and_closing_often_does_not_grow() -> None:
    def once() -> None:
        with open_model("llama.cpp") as model:
            model.ask("Hi!", max_tokens=4)

    once()
    before = psutil.Process().memory_info().rss
    for _ in range(12):
        once()
    assert psutil.Process().memory_info().rss - before < 40e6  # each holds 20 MB and more


def test_the_list_of_open_models_keeps_none_alive() -> None:
    before = len(wb.loaded())
    one, two = open_model("scripted"), open_model("scripted")
    listed = wb.loaded()
    assert list(listed)[before:] == [one, two]
    assert "scripted" in repr(listed)
    assert "<table>" in listed._repr_mimebundle_()["text/html"]
    reference = weakref.ref(one)
    del one
    gc.collect()
    assert reference() is None
    assert len(wb.loaded()) == before + 1
    two.close()
    assert len(wb.loaded()) == before


def test_models_are_listed_while_another_thread_loads_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = importlib.import_module("workbench.engines.load")

    class Interrupted(weakref.WeakSet[Model]):
        def __iter__(self) -> Iterator[Model]:
            for each in super().__iter__():
                other.start() if other.ident is None else None
                other.join(0.5)
                yield each

    def load() -> None:
        loaded.append(wb.load("scripted", engine="scripted", script="b"))

    loaded: list[Model] = []
    other = threading.Thread(target=load)
    monkeypatch.setattr(module, "_models", Interrupted())
    with wb.load("scripted", engine="scripted", script="a") as model:
        assert list(wb.loaded()) == [model]
        other.join()
        assert list(wb.loaded()) == [model, *loaded]
        loaded[0].close()


def test_a_model_closes_after_an_exception_in_its_block() -> None:
    with pytest.raises(RuntimeError), open_model("scripted") as model:
        raise RuntimeError
    assert model.closed


# Bad input


@pytest.mark.parametrize(
    ("model", "settings", "error", "words"),
    [
        ("tiny-chta", {}, NotFoundError, "Did you mean 'tiny-chat'"),
        ("missing/folder", {}, NotFoundError, "missing/folder does not exist"),
        ("missing.gguf", {}, NotFoundError, "missing.gguf does not exist"),
        ("tiny-chat", {"engine": "transformer"}, InputError, "Did you mean 'transformers'"),
        ("tiny-chat", {"quantization": "nf5"}, InputError, "Did you mean 'nf4'"),
        (
            "tiny-chat",
            {"engine": "transformers", "quantization": "Q4_K_M"},
            UnsupportedError,
            "transformers cannot do the quantization 'Q4_K_M'. llama.cpp can",
        ),
        (
            "tiny-chat",
            {"engine": "llama.cpp", "quantization": "nf4"},
            UnsupportedError,
            "transformers can",
        ),
        ("tiny-chat", {"engine": "transformers", "dtype": "fp8"}, InputError, "no dtype 'fp8'"),
        ("tiny-chat", {"device": "tpu"}, UnsupportedError, "does not run on 'tpu'"),
        ("tiny-chat", {"context": 0}, InputError, "context must be 1 or more"),
        ("tiny-chat", {"context": 10**6}, InputError, "more than tiny-chat was made for (2048)"),
        ("tiny-chat", {"adapter": "missing/adapter"}, InputError, "no adapter_config.json"),
        ("scripted", {"engine": "scripted", "scirpt": "x"}, InputError, "Did you mean 'script'"),
    ],
)
@pytest.mark.parametrize("isolate", [False, True])
def test_bad_input_gets_one_clear_error(
    model: str, settings: dict[str, object], error: type[Exception], words: str, isolate: bool
) -> None:
    with pytest.raises(error) as caught:
        wb.load(model, isolate=isolate, **settings)
    assert words in str(caught.value)


def test_pickles_are_refused(tmp_path: Path, copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    for path in (copy, copy / "pytorch_model.bin"):
        with pytest.raises(UnsupportedError, match=r"pytorch_model\.bin is a pickle"):
            wb.load(path)


def test_damaged_safetensors_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    data = weights.read_bytes()
    for size in (0, 4, 100, len(data) // 2, len(data) - 1):
        weights.write_bytes(data[:size])
        with pytest.raises(FormatError, match=r"model\.safetensors is not a whole"):
            wb.load(copy, engine="transformers")


def test_an_empty_folder_and_a_text_file_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match=r"no config\.json"):
        wb.load(tmp_path)
    (tmp_path / "notes.gguf").write_text("these are notes")
    with pytest.raises(FormatError, match="does not begin like a GGUF"):
        wb.load(tmp_path / "notes.gguf")
    (tmp_path / "notes.txt").write_text("these are notes")
    with pytest.raises(UnsupportedError, match="not a model file"):
        wb.load(tmp_path / "notes.txt")


def test_mlx_does_not_take_a_gguf(f32: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"does not load gguf files.*llama\.cpp"):
        wb.load(f32, engine="mlx")
    with pytest.raises(UnsupportedError, match="already a GGUF"):
        wb.load(f32, engine="llama.cpp", quantization="Q4_K_M")


# Tables


def test_the_table_of_engines_shows_itself() -> None:
    table = wb.engines()
    names = [row.name for row in table]
    assert names[:3] == ["transformers", "llama.cpp", "mlx"]
    assert names[-1] == "scripted"
    assert {"vllm", "llama-server", "sglang", "tensorrt-llm", "openai"} <= set(names)
    assert table["llama.cpp"].installed
    text = table._repr_mimebundle_()["text/plain"]
    for word in ("nf4", "Q4_K_M", "safetensors (converted)", "mps", "0.3.36"):
        assert word in text
    assert "<table>" in table._repr_mimebundle_()["text/html"]
    with pytest.raises(InputError, match=r"llama\.cpp"):
        _ = table["lama.cpp"]


def test_an_engine_without_its_packages_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib.util

    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "llama_cpp" else original(name)
    )
    assert not wb.engines()["llama.cpp"].installed
    assert "no: llama_cpp" in repr(wb.engines())
    with pytest.raises(WorkbenchError, match=r"llm-workbench\[llama\]"):
        wb.load("tiny-chat", engine="llama.cpp")


def test_a_model_shows_itself(opened: Callable[..., Model]) -> None:
    bundle = opened("llama.cpp", True)._repr_mimebundle_()
    for word in ("llama.cpp in its own process", "2048 tokens", "score", "MB on disk"):
        assert word in bundle["text/plain"]
    assert bundle["text/html"].count("<tr>") == 7
