"""A child process: what passes, how it dies, and that it never outlives its parent."""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from engine_models import REAL, SCRIPT, open_model

from workbench.engines import child
from workbench.engines.model import Model
from workbench.engines.wire import Wire
from workbench.errors import (
    ChildDiedError,
    ContextLengthError,
    EngineError,
    FormatError,
    InputError,
)

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def cells_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))


def gone(pid: int, seconds: float = 20) -> bool:
    """Whether the process ends within the time; a zombie that nobody reaped counts as ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not psutil.pid_exists(pid):
            return True
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def scripted() -> Iterator[Model]:
    with open_model("scripted", isolate=True) as model:
        yield model


# One function in a child


def test_a_function_runs_in_a_process_of_its_own() -> None:
    found = child.call("engine_cells:double", {"number": 21})
    assert found["doubled"] == 42
    assert found["text"] == "猫"
    assert found["pid"] != os.getpid()
    assert gone(found["pid"])


def test_progress_arrives_in_order() -> None:
    seen: list[dict[str, int]] = []
    assert child.call("engine_cells:count", {"to": 50}, progress=seen.append) == 50
    assert seen == [{"done": number} for number in range(50)]


def test_progress_does_not_put_off_the_end_of_the_time() -> None:
    before = children()
    with pytest.raises(EngineError, match="did not finish within"):
        child.call("engine_cells:count_slowly", {"to": 6000}, timeout=3, progress=lambda _: None)
    assert children() == before


def test_a_frame_that_is_interrupted_is_still_whole() -> None:
    ours, theirs = socket.socketpair()
    one, other = Wire(ours), Wire(theirs)
    found: list[Any] = []

    def read() -> None:
        select.select([theirs], [], [])  # it is begun; a socket holds far less than the frame
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        found.extend(other.receive(60) for _ in range(2))

    reader = threading.Thread(target=read)
    with ours, theirs:
        reader.start()
        with pytest.raises(KeyboardInterrupt):
            one.send({"long": "y" * 5_000_000})
            time.sleep(60)
        one.send({"next": 1})
        reader.join(60)
    assert [len(found[0]["long"]), found[1]] == [5_000_000, {"next": 1}]


def test_errors_keep_their_type_and_hint() -> None:
    with pytest.raises(FormatError, match="sour") as ours:
        child.call("engine_cells:refuse")
    assert ours.value.hint == "Sweeten it."
    with pytest.raises(EngineError, match="ZeroDivisionError: one over nothing"):
        child.call("engine_cells:stumble")
    with pytest.raises(EngineError, match="ModuleNotFoundError"):
        child.call("engine_cells_that_do_not_exist:double")
    with pytest.raises(InputError, match="not a function"):
        child.call("engine_cells:nothing")


def test_only_plain_data_passes() -> None:
    with pytest.raises(InputError, match="plain data"):
        child.call("engine_cells:double", {"number": object()})
    with pytest.raises(InputError, match="plain data"):
        child.call("engine_cells:return_an_object")


@pytest.mark.parametrize(
    ("how", "cause"),
    [("abort", "SIGABRT"), ("kill", "SIGKILL"), ("exit", "exit code 3")],
)
def test_a_death_is_told_with_its_cause_and_last_words(how: str, cause: str) -> None:
    with pytest.raises(ChildDiedError, match=cause) as caught:
        child.call("engine_cells:die", {"how": how})
    assert "GGML_ASSERT(what is wrong) failed" in str(caught.value)


def test_a_function_that_takes_too_long_is_ended() -> None:
    before = children()
    with pytest.raises(EngineError, match=r"within 1 seconds"):
        child.call("engine_cells:sleep", {"seconds": 600}, timeout=1)
    assert children() <= before


def children() -> set[psutil.Process]:
    """This process's children that hold an engine; other tests keep models open in some."""
    return {process for process in psutil.Process().children() if is_child(process)}


def is_child(process: psutil.Process) -> bool:
    try:
        return "workbench.engines.inside" in " ".join(process.cmdline())
    except psutil.Error:
        return False


# A model in a child


def test_killing_the_child_in_a_stream_is_told_at_once() -> None:
    scripted = open_model("scripted", isolate=True, tokens_per_second=20)
    pid = scripted.pid
    assert pid is not None
    stream = scripted.stream("Count.", max_tokens=300)
    next(stream)
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(ChildDiedError, match="SIGKILL"):
        for _ in stream:
            pass
    assert time.monotonic() - began < 10
    with pytest.raises(ChildDiedError, match="SIGKILL"):
        scripted.ask("Greet.")
    with pytest.raises(ChildDiedError):
        scripted.tokenize("x")
    with pytest.raises(ChildDiedError):
        scripted.ask_many(["a", "b"])
    scripted.close()
    scripted.close()


def test_closing_ends_the_child(scripted: Model) -> None:
    pid = scripted.pid
    assert pid is not None
    stream = scripted.stream("Count.", max_tokens=300)
    next(stream)
    scripted.close()
    assert gone(pid, 0.1)
    with pytest.raises(EngineError, match="closed"):
        scripted.ask("Greet.")
    assert scripted.closed


def test_a_model_that_is_dropped_takes_its_child_along() -> None:
    model = open_model("scripted", isolate=True)
    pid, reference = model.pid, weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
    assert pid is not None
    assert gone(pid)


def test_a_cancelled_stream_leaves_no_piece_for_the_next(scripted: Model) -> None:
    for taken in range(1, 12):
        stream = scripted.stream("Count.", max_tokens=300)
        for _ in range(taken):
            next(stream)
        stream.close()
        assert scripted.ask("Greet.").text == SCRIPT[0]["say"]


def test_tokens_are_counted_while_a_stream_goes_on_in_another_thread(scripted: Model) -> None:
    found: list[list[int]] = []
    thread = threading.Thread(
        target=lambda: found.extend(scripted.tokenize("ab") for _ in range(50))
    )
    thread.start()
    pieces = list(scripted.stream("Count.", max_tokens=300))
    thread.join(30)
    assert found == [[97, 98]] * 50
    assert "".join(piece.text for piece in pieces) == SCRIPT[1]["say"]


def test_a_slow_reader_loses_nothing() -> None:
    text = "猫は小さい。" * 4000
    with open_model("scripted", isolate=True, script=text, context=200_000) as model:
        stream = model.stream("x", max_tokens=100_000)
        first = next(stream)
        time.sleep(0.5)  # the child runs ahead until the socket is full
        assert first.text + "".join(piece.text for piece in stream) == text


def test_functions_cannot_be_scripts_of_a_child() -> None:
    with pytest.raises(InputError, match="plain data"):
        open_model("scripted", isolate=True, script=lambda messages: "x")


def test_a_failed_load_in_a_child_is_told_and_leaves_none(f32: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    data = bytearray(f32.read_bytes())
    at = data.index(b"llama.embedding_length") + len(b"llama.embedding_length") + 4
    data[at : at + 4] = (7).to_bytes(4, "little")
    broken.write_bytes(data)
    import workbench as wb

    before = children()
    with pytest.raises((EngineError, FormatError)):
        wb.load(broken, isolate=True, threads=1)
    assert children() <= before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("tethered", [True, False])
def test_killing_the_parent_ends_the_child(how: int, tethered: bool, tmp_path: Path) -> None:
    """Both ties hold by themselves: the kernel's, and the end of the connection."""
    marker = tmp_path / "pid"
    code = f"""
import threading
from workbench.engines import child
work = lambda: child.call("engine_cells:wait_with_a_file", {{"path": {str(marker)!r}}})
if {tethered}:
    work()
else:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        until = time.monotonic() + 60
        while not (marker.exists() and marker.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        pid = int(marker.read_text())
        assert psutil.pid_exists(pid)
        os.kill(parent.pid, how)
        parent.wait(20)
        assert gone(pid)
    finally:
        parent.kill()
        parent.wait()


def test_ctrl_c_in_a_stream_leaves_parent_and_child_usable(tmp_path: Path) -> None:
    code = """
import os, signal, sys, threading, time
import workbench as wb
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits "ignored"
model = wb.load("scripted", engine="scripted", script="a b c " * 200, tokens_per_second=40,
                isolate=True)
started = time.monotonic()
threading.Timer(1.0, lambda: os.killpg(os.getpgid(0), signal.SIGINT)).start()
try:
    for piece in model.stream("x", max_tokens=2000):
        pass
    print("not interrupted")
except KeyboardInterrupt:
    print("interrupted")
print(model.ask("x", max_tokens=5).text)
model.close()
"""
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
        env={**os.environ, "WORKBENCH_HOME": str(tmp_path)},
    )
    assert found.stdout.split("\n")[:2] == ["interrupted", "a b c"[:5]], found.stderr


def test_ctrl_c_cancels_a_batch_in_the_child(tmp_path: Path) -> None:
    """Work that is no stream is broken off too: the next request does not wait for it."""
    code = """
import os, signal, threading, time
from workbench.engines import child
signal.signal(signal.SIGINT, signal.default_int_handler)
worker = child.Child()
threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    worker.request("call", function="engine_cells:sleep", arguments={"seconds": 600})
except KeyboardInterrupt:
    print("interrupted")
print(worker.request("call", function="engine_cells:double", arguments={"number": 4})["doubled"])
worker.close()
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert found.stdout.split() == ["interrupted", "8"], found.stderr


# What isolation must not change is in test_conformance.py; here is the wire itself.


def test_frames_survive_any_split() -> None:
    ours, theirs = socket.socketpair()
    sender, receiver = Wire(ours), Wire(theirs)
    frames = [{"text": "猫" * size, "n": size, "x": [1.5, None, True]} for size in (0, 1, 70_000)]
    threading.Thread(target=lambda: [sender.send(frame) for frame in frames]).start()
    assert [receiver.receive(5) for _ in frames] == frames
    with pytest.raises(TimeoutError):
        receiver.receive(0.01)
    raw, far = socket.socketpair()
    slow = Wire(far)
    data = b"\x00\x00\x00\x0b" + b'{"a":[1,2]}'
    for byte in data[:-1]:
        raw.sendall(bytes([byte]))
        with pytest.raises(TimeoutError):
            slow.receive(0.001)
    raw.sendall(data[-1:])
    assert slow.receive(1) == {"a": [1, 2]}
    raw.close()
    with pytest.raises(EOFError):
        slow.receive(1)


def test_large_tables_pass_exactly(opened: Callable[..., Model]) -> None:
    here, there = opened("llama.cpp", False), opened("llama.cpp", True)
    ids = here.tokenize("A quiet cat. " * 120)
    expected, found = here.log_probabilities(ids), there.log_probabilities(ids)
    assert found.nbytes > 4_000_000
    np.testing.assert_array_equal(found, expected)
    assert found.flags.writeable
    np.testing.assert_array_equal(there.score(ids[:5]), here.score(ids[:5]))


@pytest.mark.parametrize("engine", list(REAL))
def test_the_template_and_the_powers_pass(engine: str, opened: Callable[..., Model]) -> None:
    here, there = opened(engine, False), opened(engine, True)
    assert "<|im_start|>" in here.template
    assert there.template == here.template
    assert there.powers == here.powers


def test_errors_in_the_child_have_their_numbers(opened: Callable[..., Model]) -> None:
    with pytest.raises(ContextLengthError, match=r"9000.*2048") as caught:
        opened("llama.cpp", True).score([5] * 9000)
    assert caught.value.hint is not None
