"""The doctor against real engines, and against packages that are broken on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.catalog.capabilities import engine_facts
from workbench.doctor import doctor, examine, remedies, visit
from workbench.doctor.diagnosis import Check, Diagnosis
from workbench.errors import InputError, UnsupportedError
from workbench.machine import describe_machine, machine
from workbench.receipts import receipts

REBUILD = "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python -c "
CPU = describe_machine("cpu-32GB")
CUDA = describe_machine("24GB-cuda")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose packages a child process finds before the installed ones."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def package(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text, encoding="utf-8")


def here(monkeypatch: pytest.MonkeyPatch, described: str, **changes: object) -> None:
    """Let the doctor believe that it is on another machine."""
    other = describe_machine(described).changed(**changes)
    monkeypatch.setattr(visit, "machine", lambda: other)


# Real engines


def test_forms_that_run_answer_right_and_leave_receipts() -> None:
    found = doctor(["llama.cpp", "scripted"], ["Q4_K_M", "none"], threads=1)
    assert [(c.engine, c.quantization, c.verdict) for c in found] == [
        ("llama.cpp", "Q4_K_M", "runs"),
        ("scripted", "none", "runs"),
    ]
    assert found.ok
    assert "19" in found["llama.cpp", "Q4_K_M"].answers[0]
    assert "猫" in found["llama.cpp", "Q4_K_M"].answers[1]
    left = list(receipts(what="doctor"))
    assert [(r.plan["engine"], r.outcome) for r in left] == [
        ("llama.cpp", "done"),
        ("scripted", "done"),
    ]
    assert left[0].result["verdict"] == "runs"
    assert left[0].result["load_seconds"] > 0
    assert left[0].result["tokens"] > 3
    assert {check.receipt.name for check in found if check.receipt} == {
        path.name for path in found.checks[0].receipt.parent.glob("*-doctor-*.json")
    }


def test_transformers_runs_and_shows_itself() -> None:
    found = doctor("transformers", "none", threads=1)
    assert found["transformers", "none"].verdict == "runs"
    shown = found._repr_mimebundle_()
    assert "1 of 1 forms run here" in shown["text/plain"]
    assert "<table>" in shown["text/html"]
    assert "To mend it" not in shown["text/plain"]


def test_a_wrong_answer_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(visit.OPTIONS, "scripted", {"script": ["12 + 7 = 20"]})
    found = doctor("scripted")
    (check,) = found
    assert check.verdict == "wrong"
    assert "12 + 7 = 20" in check.reason
    assert not found.ok
    (receipt,) = receipts(what="doctor")
    assert receipt.outcome == "failed"
    assert receipt.reason == check.reason


def test_every_engine_of_the_facts_is_visited(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {
        "other": engine_facts()["scripted"].changed(
            name="other", packages=("no_such_package_anywhere",), extra="mlx"
        ),
        "remote": engine_facts()["transformers"].changed(
            name="remote", packages=("json",), quantizations=(), formats=("mlx",)
        ),
    }
    monkeypatch.setattr(visit, "engine_facts", lambda: facts)
    found = doctor()
    assert [(c.engine, c.verdict) for c in found] == [
        ("other", "missing"),
        ("remote", "unsupported"),
    ]
    assert found.checks[1].reason
    assert found.ok
    other = found.checks[0]
    assert other.reason == "no_such_package_anywhere is not installed"
    assert "[mlx]" in other.mend


def test_bad_names_are_told_with_what_is_near() -> None:
    with pytest.raises(InputError, match=r"llama\.cpp"):
        doctor("lama.cpp")
    with pytest.raises(InputError, match="Did you mean 'Q4_K_"):
        doctor("llama.cpp", "Q4_K_N")
    with pytest.raises(UnsupportedError, match="cannot do 'nf4'"):
        doctor("llama.cpp", "nf4")
    with pytest.raises(InputError, match="timeout"):
        doctor("scripted", timeout=0)


# Packages that are broken on purpose


def test_an_import_that_raises_is_told_with_its_command(packages: Path) -> None:
    package(packages, "llama_cpp", "raise OSError('libcudart.so.12: cannot open shared object')")
    found = doctor("llama.cpp")
    (check,) = found  # one row for the engine: no form can run
    assert (check.quantization, check.verdict) == ("all", "fails")
    assert "OSError: libcudart.so.12" in check.reason
    assert REBUILD in check.mend
    assert check.mend.endswith(" llama-cpp-python")
    assert "libcudart" in str(found)
    assert check.mend in str(found)
    assert not found.ok


@pytest.mark.parametrize(
    ("signal", "words"),
    [
        ("SIGILL", "instructions that this processor lacks"),
        ("SIGKILL", "memory runs out; free now: "),
        ("SIGSEGV", "with SIGSEGV"),
    ],
)
def test_an_import_that_kills_the_process_is_told(packages: Path, signal: str, words: str) -> None:
    package(packages, "llama_cpp", f"import os, signal\nos.kill(os.getpid(), signal.{signal})\n")
    found = doctor("llama.cpp", quick=True)
    (check,) = found
    assert check.verdict == "fails"
    assert "importing llama_cpp" in check.reason
    assert words in check.reason
    assert not found.ok
    if signal == "SIGKILL":
        assert "GiB of ram" in check.reason
    else:
        assert REBUILD in check.mend


def test_an_import_that_hangs_ends_in_time(packages: Path) -> None:
    package(packages, "llama_cpp", "import time\ntime.sleep(600)\n")
    (check,) = doctor("llama.cpp", quick=True, timeout=8)
    assert check.verdict == "fails"
    assert check.reason == "importing llama_cpp did not end within 8 seconds"
    assert check.mend == "workbench doctor --engine llama.cpp --timeout 16"


def test_a_death_while_running_is_told(packages: Path) -> None:
    # the package imports, and dies when the model is loaded
    package(packages, "torch", TORCH)
    package(packages, "transformers", "import os\ndef __getattr__(name): os.abort()\n")
    (check,) = doctor("transformers", "none")
    assert check.verdict == "fails"
    assert check.reason.startswith("running it ended the process with SIGABRT")


def test_a_missing_quantizer_is_no_failure(packages: Path) -> None:
    (packages / "sitecustomize.py").write_text(
        "import sys\nsys.modules['bitsandbytes'] = None\n", encoding="utf-8"
    )
    found = doctor("transformers", "nf4", threads=1)
    (check,) = found
    assert (check.verdict, check.reason) == ("missing", "bitsandbytes is not installed")
    assert check.mend.endswith(" bitsandbytes")
    assert "pip install -c " in check.mend
    assert found.ok
    (receipt,) = receipts(what="doctor")
    assert receipt.outcome == "failed"


TORCH = """
__version__ = "2.13.0"
class version: cuda = None; hip = None
class cuda:
    @staticmethod
    def is_available(): return False
"""


def test_builds_without_a_gpu_are_told_where_there_is_one(
    packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(packages, "torch", TORCH)
    package(packages, "transformers", "")
    package(packages, "llama_cpp", "def llama_supports_gpu_offload(): return False\n")
    here(monkeypatch, "24GB-cuda", cuda="13.0")
    found = doctor(["transformers", "llama.cpp"], quick=True)
    torch, llama = found
    assert torch.verdict == llama.verdict == "imports"
    assert "built without CUDA" in torch.reason
    assert "--extra-index-url https://download.pytorch.org/whl/cu130" in torch.mend
    assert "built without CUDA" in llama.reason
    assert llama.mend.startswith('CMAKE_ARGS="-DGGML_CUDA=on" ')
    assert REBUILD in llama.mend
    assert found.ok  # they run, if slowly
    here(monkeypatch, "16GB-mac")
    (llama,) = doctor("llama.cpp", quick=True)
    assert llama.mend.startswith('CMAKE_ARGS="-DGGML_METAL=on" ')


def test_a_driver_that_is_too_old_is_told(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(packages, "torch", TORCH.replace("cuda = None", "cuda = '13.0'"))
    package(packages, "transformers", "")
    here(monkeypatch, "24GB-cuda", cuda="12.4", driver="550.54.15")
    (check,) = doctor("transformers", quick=True)
    assert "needs driver 580 or newer; 550.54.15 supports CUDA 12.4" in check.reason
    assert "whl/cu126" in check.mend
    here(monkeypatch, "24GB-cuda", cuda="11.8", driver="520.61")
    (check,) = doctor("transformers", quick=True)
    assert check.mend == "Update the NVIDIA driver to 525 or newer."


# What is wrong, from what was said


def test_old_devices_get_the_builds_that_still_know_them() -> None:
    assert "cu126" in remedies.torch_for(describe_machine("16GB-cuda-volta").changed(cuda="13.0"))
    assert "cu130" in remedies.torch_for(describe_machine("16GB-cuda-turing").changed(cuda="13.0"))


def told(kind: str, message: str, *, hint: str | None = None, missing: tuple[str, ...] = ()):
    return {"error": {"type": kind, "message": message, "hint": hint}, "missing": list(missing)}


@pytest.mark.parametrize(
    ("kind", "message", "verdict", "mend"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate", "fails", "Free some memory"),
        ("RuntimeError", "The NVIDIA driver on your system is too old", "fails", "pytorch.org/whl"),
        ("AcceleratorError", "CUDA error: no kernel image is available", "fails", "pytorch.org"),
        ("UnsupportedError", "It loads no safetensors.", "unsupported", ""),
        ("ValueError", "odd", "fails", "workbench load tiny-chat --engine transformers"),
    ],
)
def test_errors_are_sorted(kind: str, message: str, verdict: str, mend: str) -> None:
    facts = engine_facts()["transformers"]
    found = remedies.raised(facts, "nf4", told(kind, message), CUDA)
    assert found.verdict == verdict
    assert message in found.reason
    assert mend in found.mend


def test_names_of_missing_packages_are_read_from_errors() -> None:
    shapes = examine._NAMES_A_PACKAGE
    for text in (
        "No module named 'bitsandbytes.nn'",
        "No package metadata was found for bitsandbytes",
        "Using `bitsandbytes` 4-bit quantization requires bitsandbytes: `pip install -U bitsand`",
    ):
        found = {match[1] for shape in shapes for match in shape.finditer(text)}
        assert found == {"bitsandbytes"}, text


def test_commands_name_the_constraints_and_the_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    root = remedies.checkout()
    assert root is not None
    monkeypatch.chdir(root)
    assert remedies.rebuild_llama(CPU).endswith(f"{REBUILD}constraints.txt llama-cpp-python")
    assert remedies.install_extra("llama").endswith("install -e -c constraints.txt '.[llama]'")
    monkeypatch.chdir("/")
    assert f"-c {root}/constraints.txt" in remedies.install_extra("llama")
    monkeypatch.setattr(remedies, "checkout", lambda: None)
    assert remedies.install_extra("llama").endswith("pip install 'llm-workbench[llama]'")
    assert remedies.rebuild_llama(CPU).endswith(" llama-cpp-python==0.3.36")


# Display and command line


def test_the_tables_mark_what_is_broken_and_join_like_commands() -> None:
    checks = tuple(
        Check(engine="x", quantization=f"Q{n}", verdict="fails", reason="bad", mend="do <this>")
        for n in range(5)
    )
    found = Diagnosis((*checks, Check(engine="y", quantization="none", verdict="runs")), machine())
    assert len(found.broken) == 5
    assert [row["for"] for row in found.remedies()] == ["x Q0 and 4 others"]
    page = found._repr_mimebundle_()["text/html"]
    assert page.count('class="failed"') == 5
    assert "do &lt;this&gt;" in page
    assert "1 of 6 forms run here" in page


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workbench.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "200", **environment},
        check=False,
    )


def test_the_command_exits_1_when_something_installed_is_broken(packages: Path) -> None:
    package(packages, "llama_cpp", "raise ImportError('GLIBCXX_3.4.32 not found')")
    done = run("doctor", "--quick", "--engine", "llama.cpp", "--engine", "scripted")
    assert done.returncode == 1, done.stderr
    assert "GLIBCXX_3.4.32 not found" in done.stdout
    assert REBUILD in done.stdout
    assert "Traceback" not in done.stderr
    done = run("doctor", "--quick", "--engine", "scripted")
    assert done.returncode == 0, done.stderr


def test_receipts_hold_no_private_names(packages: Path, home: Path) -> None:
    package(packages, "llama_cpp", f"raise OSError({str(Path('~').expanduser() / 'x.so')!r})")
    doctor("llama.cpp", quick=True)
    (path,) = (home / "outputs" / "receipts").glob("*-doctor-*.json")
    text = path.read_text(encoding="utf-8")
    assert json.loads(text)["outcome"] == "failed"
    assert "~/x.so" in text
