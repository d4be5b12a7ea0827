"""A child that dies tells how, and what helps; the kernel lives on and loads again."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest
from engine_models import open_model
from jupyter_client import KernelManager

import workbench as wb
from workbench.engines import death
from workbench.engines.death import Watch, advice, cause_of, is_memory
from workbench.errors import ChildDiedError, EngineError, InputError
from workbench.machine.container import memory_kills

DEADLY = [
    {"exact": "Abort.", "say": "so far", "die": "SIGABRT"},
    {"exact": "Kill.", "say": "so far", "die": "SIGKILL"},
    {"exact": "Fill.", "say": "so far", "die": "memory"},
    {"regex": ".", "say": "alive"},
]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("Abort.", ["SIGABRT", "error: Aborted | File ", "scripted.py"]),
        ("Kill.", ["SIGKILL", "probably for memory"]),
    ],
)
def test_a_death_in_a_reply_is_one_error_and_the_model_loads_again(
    asked: str, words: list[str]
) -> None:
    model = open_model("scripted", isolate=True, script=DEADLY)
    said: list[str] = []
    with pytest.raises(ChildDiedError) as caught:
        for piece in model.stream(asked):
            said.append(piece.text)  # noqa: PERF401 (what came before the death counts)
    assert "".join(said) == "so far"
    for word in words:
        assert word in str(caught.value)
    assert caught.value.hint
    with pytest.raises(ChildDiedError) as again:
        model.ask("x")
    assert str(again.value) == str(caught.value)
    assert re.search(r"0\.0 MB +its process, which has ended", repr(wb.loaded()))
    found = model.close()
    assert found is not None
    assert found.freed
    with open_model("scripted", isolate=True, script=DEADLY) as fresh:
        assert fresh.ask("x").text == "alive"


def test_a_child_over_its_memory_limit_fails_and_lives_on() -> None:
    with wb.load(
        "scripted", engine="scripted", script=DEADLY, isolate=True, memory_limit=1 << 30
    ) as model:
        with pytest.raises(EngineError, match="MemoryError") as caught:
            model.ask("Fill.")
        assert caught.value.hint == advice()
        assert model.ask("x").text == "alive"
    with pytest.raises(InputError, match="process of its own"):
        wb.load("scripted", engine="scripted", memory_limit=1 << 30)


def test_how_a_death_is_judged() -> None:
    said, memory = cause_of(-signal.SIGKILL, killed_for_memory=True, last_words="")
    assert "SIGKILL, by the kernel, for memory" in said
    assert memory
    said, memory = cause_of(-signal.SIGABRT, killed_for_memory=False, last_words="std::bad_alloc")
    assert said == "was killed by SIGABRT, out of memory"
    assert memory
    assert cause_of(3, killed_for_memory=False, last_words="x") == ("ended with exit code 3", False)
    assert advice(["A.", "B."]) == "What would need less: (1) A. (2) B."
    assert is_memory(MemoryError())
    assert is_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_memory(RuntimeError("no"))


def test_kills_are_counted_from_the_kernels_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tmp_path / "sys/fs/cgroup/box"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/box\n")
    mount = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n"
    (tmp_path / "proc/self/mountinfo").write_text(mount)
    (tmp_path / "proc/vmstat").write_text("pgfault 12\noom_kill 2\n")
    (group / "memory.events").write_text("low 0\noom 9\noom_kill 1\n")
    assert memory_kills(tmp_path) == 3
    monkeypatch.setattr(death, "memory_kills", lambda: memory_kills(tmp_path))
    watch = Watch()
    assert not watch.killed_for_memory()
    (group / "memory.events").write_text("low 0\noom 9\noom_kill 2\n")
    assert watch.killed_for_memory()


@pytest.mark.parametrize("how", ["kill", "restart"])
def test_a_child_ends_with_its_kernel(how: str) -> None:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env=dict(os.environ))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        cell = "import workbench as wb\nm = wb.load('scripted', engine='scripted', isolate=True)"
        found: list[str] = []
        client.execute_interactive(
            f"{cell}\nprint(m.pid)",
            timeout=120,
            output_hook=lambda message: found.append(message["content"].get("text", "")),
        )
        pid = int("".join(found))
        assert psutil.pid_exists(pid)
        if how == "kill":
            os.kill(manager.provisioner.pid, signal.SIGKILL)
        else:
            manager.restart_kernel(now=True)
        until = time.monotonic() + 30
        while psutil.pid_exists(pid) and time.monotonic() < until:
            time.sleep(0.05)
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
