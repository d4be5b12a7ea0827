"""Supervised servers, by a program that behaves like one: how they start, die, end, and why."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import workbench as wb
from workbench.catalog.capabilities import engine_facts
from workbench.catalog.server_place import missing_of, program_of
from workbench.engines.model import Model
from workbench.engines.server_log import ServerLog
from workbench.errors import (
    ChildDiedError,
    EngineError,
    InputError,
    MissingPackageError,
    UnsupportedError,
)

FAKE = Path(__file__).with_name("fake_server.py")
Load = Callable[..., Model]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the fake server leaves the ids of its processes."""
    found = tmp_path / "left"
    found.mkdir()
    return found


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """What stands in for the interpreter that has vLLM."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{FAKE}" "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def load(folder: Path, python: Path) -> Load:
    def opened(mood: str = "ready", also: str = "", reason: str = "", **options: object) -> Model:
        moods = {"FAKE": mood, "FAKE_ALSO": also, "FAKE_FOLDER": str(folder)}
        if reason:
            moods["FAKE_REASON"] = reason
        settings = {"engine": "vllm", "context": 512, "python": str(python), "environment": moods}
        return wb.load("tiny-chat", **{**settings, **options})

    return opened


def left(folder: Path, kind: str = "*") -> list[int]:
    """Return the ids of the fake's processes that live."""
    found = []
    for path in folder.glob(f"{kind}-*"):
        pid = int(path.name.rpartition("-")[2])
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found


def all_gone(folder: Path, seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while left(folder) and time.monotonic() < until:
        time.sleep(0.05)
    return not left(folder)


# Starting and answering


def test_a_server_answers_and_ends_with_everything_below_it(load: Load, folder: Path) -> None:
    model = load("slow", "brood")
    assert model.ask("Hello").text == "one two three"
    assert len(left(folder, "server")) == 1
    assert len(left(folder, "brood")) == 2, "one of them cut every tie to the server"
    model.close()
    assert left(folder) == []
    freed = model_freed(model)
    assert freed.before.processes >= 3
    assert freed.before.rss_bytes > 10_000_000
    assert freed.after.processes == 0
    assert freed.after.rss_bytes == 0
    assert freed.left == ()


def model_freed(model: Model):  # the session is gone from a model that was closed
    return _sessions[id(model)].freed


_sessions: dict[int, object] = {}


@pytest.fixture(autouse=True)
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Model.__init__

    def remember(self: Model, session: object, *args: object, **named: object) -> None:
        _sessions[id(self)] = session
        made(self, session, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "__init__", remember)
    _sessions.clear()


def test_the_key_is_in_no_command_line_and_in_no_receipt(load: Load, folder: Path) -> None:
    with load("ready") as model:
        session = _sessions[id(model)]
        key = session.server.command.key
        assert len(key) > 20
        for process in session.server.processes():
            assert key not in " ".join(process.cmdline())
        assert model.receipt is not None
        assert key not in model.receipt.read_text()
        assert key not in repr(session.server.command)
    words = next(folder.glob("argv-*")).read_text()
    assert "--host=127.0.0.1" in words
    assert key not in words


def test_memory_is_that_of_the_servers_processes(load: Load) -> None:
    with load("ready") as model:
        rss = sum(p.memory_info().rss for p in _sessions[id(model)].server.processes())
        assert 0.5 * rss < model.loading.rss_bytes < 2 * rss


def test_a_taken_port_is_exchanged_for_another(load: Load, folder: Path) -> None:
    with load("taken") as model:
        assert model.ask("Hello").text == "one two three"
    ports = [
        next(word for word in path.read_text().splitlines() if word.startswith("--port"))
        for path in folder.glob("argv-*")
    ]
    assert len(ports) == len(set(ports)) == 2


def test_two_loads_at_once_do_not_meet(load: Load, folder: Path) -> None:
    models: list[Model] = []
    threads = [threading.Thread(target=lambda: models.append(load("slow"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({_sessions[id(model)].server.command.port for model in models}) == 3
    for model in models:
        assert model.ask("Hello").text == "one two three"
        model.close()
        model.close()
    assert left(folder) == []


def test_the_log_is_kept_and_shown(load: Load) -> None:
    with load("slow") as model:
        log = _sessions[id(model)].server.log
    assert log.lines(2) == ["Loading shard 4", "ready"]
    assert log.path.stat().st_mode & 0o077 == 0
    assert log.path.parent.name == "servers"


# Dying


@pytest.mark.parametrize(
    ("reason", "cause", "advice"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried 1 GiB", "memory on the GPU", "form"),
        ("ValueError: Unknown quantization method: gguf. Must be", "plug-in", "vllm-gguf-plugin"),
        ("ValueError: Unknown quantization method: bitsandbytes.", "plug-in", "vllm-bnb-plugin"),
        ("ValueError: Model architectures ['FooLM'] are not supported", "Foo", "transformers"),
        ("ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0",
         "no bfloat16", "fp16"),
        ("ValueError: torch.bfloat16 is not supported for quantization method awq", "awq", "fp16"),
        ("RuntimeError: Failed to infer device type, please set", "no CUDA device", "driver"),
        ("ValueError: No available memory for the cache blocks. Try", "KV cache", "context"),
        ("RuntimeError: Unsupported CPU attention configuration: head_dim=24 isa=1", "heads of 24",
         "transformers"),
        ("ValueError: something never heard of: 7", "something never heard of: 7", "log"),
    ],
)  # fmt: skip
def test_a_server_that_dies_while_loading_says_why(
    load: Load, folder: Path, reason: str, cause: str, advice: str
) -> None:
    with pytest.raises(EngineError, match="while it loaded") as caught:
        load("dies", "brood", reason)
    error = caught.value
    assert not isinstance(error, ChildDiedError)
    assert cause in error.message.partition("Its last words")[0]
    assert "exit code 1" in error.message
    assert "Engine core initialization failed" in error.message, "the last words"
    assert advice in (error.hint or "")
    assert left(folder) == []


def test_a_server_that_is_killed_while_loading_may_have_run_out_of_memory(load: Load) -> None:
    with pytest.raises(EngineError, match=r"killed by SIGKILL.*memory"):
        load("killed")


def test_a_silent_server_is_ended_with_a_word(load: Load, folder: Path) -> None:
    with pytest.raises(
        EngineError, match=r"neither printed nor computed anything for 0\.5 seconds"
    ):
        load("silent", patience=0.5)
    assert left(folder) == []


def test_a_server_that_dies_within_a_reply_says_why_and_says_so_again(
    load: Load, folder: Path
) -> None:
    model = load(
        "mute", "brood", "RuntimeError: Unsupported CPU attention configuration: head_dim=24"
    )
    pieces = []
    with pytest.raises(ChildDiedError, match=r"heads of 24 values") as caught:
        pieces.extend(model.stream("Hello"))
    assert "".join(piece.text for piece in pieces) == "one two "
    assert "while it answered" in caught.value.message
    with pytest.raises(ChildDiedError, match="heads of 24") as again:
        model.ask("Again")
    assert "while it answered" in again.value.message
    assert left(folder) == []
    model.close()


def test_a_launcher_that_is_killed_takes_the_server_with_it(load: Load, folder: Path) -> None:
    model = load("ready", "brood")
    os.kill(_sessions[id(model)].pid, signal.SIGKILL)
    with pytest.raises(ChildDiedError, match="SIGKILL"):
        model.ask("Hello")
    assert all_gone(folder)
    model.close()


def test_a_stubborn_server_is_killed(
    load: Load, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("ready", "stubborn")
    server = _sessions[id(model)].server
    object.__setattr__(server.command, "grace", 0.3)
    model.close()
    assert server.freed.forced
    assert left(folder) == []


# Ends with its parent

PARENT = """
import sys, time
import workbench as wb
environment = {"FAKE": sys.argv[3], "FAKE_ALSO": sys.argv[4], "FAKE_FOLDER": sys.argv[2]}
print("begun", flush=True)
settings = {"python": sys.argv[1], "environment": environment}
model = wb.load("tiny-chat", engine="vllm", context=512, **settings)
print("loaded", flush=True)
time.sleep(600)
"""


@pytest.fixture
def parent(folder: Path, python: Path):
    started: list[subprocess.Popen[str]] = []

    def run(mood: str, also: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", PARENT, str(python), str(folder), mood, also]
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_a_server_ends_with_a_parent_that_is_killed(parent, folder: Path) -> None:
    process = parent("ready", "brood stubborn")
    assert process.stdout.readline() == "begun\n"
    assert process.stdout.readline() == "loaded\n"
    assert len(left(folder, "brood")) == 2
    process.kill()
    process.wait()
    assert all_gone(folder)


def test_an_interrupt_while_loading_leaves_nothing_behind(parent, folder: Path) -> None:
    process = parent("slow", "brood endless")
    assert process.stdout.readline() == "begun\n"
    until = time.monotonic() + 30
    while len(left(folder, "brood")) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
    assert all_gone(folder)


def test_a_model_that_nobody_holds_ends_its_server(load: Load, folder: Path) -> None:
    model = load("ready")
    assert left(folder, "server")
    _sessions.clear()
    del model
    gc.collect()
    assert all_gone(folder)


def test_a_server_opened_in_a_child_ends_with_it(load: Load, folder: Path) -> None:
    model = load("ready", "brood stubborn", isolate=True)
    assert model.ask("Hello").text == "one two three"
    model.close()
    assert all_gone(folder)


# Options


def argv(folder: Path) -> list[str]:
    return next(folder.glob("argv-*")).read_text().splitlines()


def test_options_reach_the_command_line(load: Load, folder: Path) -> None:
    with load(
        dtype="bf16", tensor_parallel=2, pipeline_parallel=3, ray=True, prefix_caching=False,
        kv_cache_memory_bytes=1 << 30, parallel=7, arguments=["--seed", 3],
    ):  # fmt: skip
        words = argv(folder)
    for word in (
        "--dtype=bfloat16", "--tensor-parallel-size=2", "--pipeline-parallel-size=3",
        "--distributed-executor-backend=ray", "--no-enable-prefix-caching",
        "--kv-cache-memory-bytes=1073741824", "--max-num-seqs=7", "--max-model-len=512",
        "--generation-config=vllm", "--enforce-eager",
    ):  # fmt: skip
        assert word in words
    assert words[words.index("--seed") + 1] == "3"
    assert "--enable-prefix-caching" not in words


def test_wrong_options_are_named_before_anything_starts(load: Load, folder: Path) -> None:
    with pytest.raises(InputError, match=r"no option 'prefix_cache'.*prefix_caching"):
        load(prefix_cache=True)
    with pytest.raises(InputError, match="wants one value"):
        load(pipeline_parallel=True)
    with pytest.raises(InputError, match="parallel must be 1 or more"):
        load(parallel=0)
    with pytest.raises(UnsupportedError, match="CUDA"):
        load(sleep=True)
    with pytest.raises(MissingPackageError, match="no program"):
        load(python="/nowhere/python")
    assert not list(folder.iterdir())


def test_an_engine_that_is_not_here_says_how_to_name_it() -> None:
    facts = engine_facts()["tensorrt-llm"]
    assert facts.server is not None
    with pytest.raises(MissingPackageError, match="WORKBENCH_TRTLLM_SERVE"):
        program_of("tensorrt-llm", facts.server)
    assert missing_of(facts) == ("trtllm-serve",)
    assert wb.engines()["tensorrt-llm"].missing == ("trtllm-serve",)


def test_time_stamps_and_colours_leave_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(
        "\x1b[1;36m(EngineCore pid=7)\x1b[0;0m INFO 11-21 12:53:46 [core.py:133] Loading\n"
        "0.00.062.131 I srv  load_model: loading\n   \nINFO:     Application startup complete.\n"
    )
    assert ServerLog(path).lines() == [
        "Loading", "srv  load_model: loading", "Application startup complete."
    ]  # fmt: skip
