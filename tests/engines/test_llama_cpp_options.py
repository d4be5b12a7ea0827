"""Options of llama.cpp by name, files in parts, the template, and a clean end."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from engine_models import open_model
from random_bert import bert_gguf
from random_models import tiny_chat

import workbench as wb
from workbench.catalog import Card
from workbench.engines.llama_cpp_memory import experts_in_ram
from workbench.engines.llama_cpp_vocabulary import end_ids_of_source
from workbench.errors import InputError, UnsupportedError
from workbench.planning import Plan

SUM = "What is 3 + 4?"


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"mmap": False}, InputError, "Did you mean 'use_mmap'"),
        ({"n_bach": 8}, InputError, "Did you mean 'n_batch'"),
        ({"n_batch": 0}, InputError, "n_batch is a whole number"),
        ({"use_mlock": 1}, InputError, "use_mlock is True or False"),
        ({"type_k": "q9_0"}, InputError, "no cache type 'q9_0'"),
        ({"type_v": "q8_0", "flash_attn": False}, InputError, "needs flash attention"),
        ({"n_ctx": 12}, UnsupportedError, "context="),
        ({"lora_path": "x"}, UnsupportedError, "adapter="),
    ],
    ids=str,
)
def test_a_wrong_option_is_one_error(options: dict[str, Any], error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        open_model("llama.cpp", **options)


def test_experts_in_ram_are_those_of_the_model_that_asks() -> None:
    """The library's defaults carry the wish, and another thread may load meanwhile."""
    import llama_cpp

    found: dict[str, Any] = {}

    def look(who: str) -> None:
        given = importlib.import_module("llama_cpp.llama_cpp").llama_model_default_params()
        found[who] = given.tensor_buft_overrides

    with experts_in_ram(llama_cpp, 2):
        look("here")
        other = threading.Thread(target=look, args=("there",))
        other.start()
        other.join()
    look("after")
    assert found["here"]
    assert not found["there"]
    assert not found["after"]


@pytest.mark.parametrize(
    "options",
    [
        {"use_mmap": False},
        {"use_mmap": True, "use_mlock": True},
        {"n_batch": 16, "n_ubatch": 8},
        {"n_threads": 2},
        {"type_k": "q8_0", "type_v": "q8_0"},
        {"type_k": "f16", "type_v": "bf16"},
    ],
    ids=str,
)
def test_options_reach_llama_cpp_and_the_answer_stays(options: dict[str, Any]) -> None:
    with open_model("llama.cpp", **options) as model:
        assert "7" in model.ask(SUM, max_tokens=20).text
        llama = model.raw
        if "n_batch" in options:
            assert (llama.n_batch, llama.context_params.n_ubatch) == (16, 8)
        if "n_threads" in options:
            assert (llama.n_threads, llama.n_threads_batch) == (2, 2)
        if options.get("type_v") == "q8_0":
            assert (llama.context_params.type_k, llama.context_params.type_v) == (8, 8)
            assert llama.context_params.flash_attn_type == 1
        if "use_mmap" in options:
            wanted = 3 if options.get("use_mlock") else 0
            assert llama.model_params.load_mode == wanted


def test_the_template_is_the_files_own() -> None:
    with open_model("llama.cpp") as model:
        source = (tiny_chat() / "chat_template.jinja").read_text()
        assert model.template.strip() == source.strip()


def test_end_tokens_come_from_the_source_of_a_gguf_too(tmp_path: Path) -> None:
    source = shutil.copytree(tiny_chat(), tmp_path / "source")
    path = source / "generation_config.json"
    given = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**given, "eos_token_id": [2, 445]}))
    plan = Plan(card=Card(id="two-ends", path=str(source)), engine="llama.cpp", context=64)
    assert end_ids_of_source(plan) == [2, 445]
    path.write_text("[")
    assert end_ids_of_source(plan) == []


@pytest.mark.slow
def test_a_model_in_parts_is_loaded_by_its_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    more = ("--split-max-tensors", "12")
    bert_gguf(tiny_chat(), tmp_path / "tiny.gguf", pre_tokenizer="llama-bpe", more=more)
    parts = sorted(tmp_path.glob("tiny-*.gguf"))
    assert len(parts) > 2
    with wb.load(parts[0], threads=1) as split, open_model("llama.cpp") as whole:
        assert split.ask(SUM, max_tokens=12).token_ids == whole.ask(SUM, max_tokens=12).token_ids
    parts[1].unlink()
    with pytest.raises(wb.WorkbenchError, match="00002"):
        wb.load(parts[0], threads=1)


@pytest.mark.parametrize("leave", ["", "next(model.stream('Tell me a story.'))", "1 / 0"])
def test_the_interpreter_ends_cleanly_with_a_model_open(leave: str) -> None:
    code = (
        "import workbench as wb\n"
        "model = wb.load('tiny-chat', engine='llama.cpp', quantization='F32', threads=1)\n"
        "kept = model.stream('Hi!')\n"
        f"next(kept)\n{leave}\n"
    )
    if leave.startswith("next"):
        code = code.replace("next(kept)\n", "")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if leave == "1 / 0":
        assert found.returncode == 1
        assert found.stderr.strip().endswith("ZeroDivisionError: division by zero")
        assert found.stderr.count("Traceback") == 1
    else:
        assert (found.returncode, found.stderr) == (0, "")
