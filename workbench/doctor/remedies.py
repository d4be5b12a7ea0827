"""What is wrong, said in a sentence, and the command that mends it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from workbench.catalog.capabilities import EngineFacts
from workbench.machine import Machine
from workbench.paths import checkout

Verdict = Literal["runs", "imports", "wrong", "fails", "missing", "unsupported"]
LLAMA = "llama-cpp-python"
_DISTRIBUTIONS = {"llama_cpp": LLAMA}
_LEAST_DRIVER = {13: 580, 12: 525, 11: 450}
"""CUDA major version -> least driver (NVIDIA, CUDA Compatibility, table 1)."""
_TORCH_INDEX = "https://download.pytorch.org/whl/"
_CU13_CAPABILITY = (7, 5)
"""Least compute capability of PyTorch's CUDA 13 builds; those of CUDA 12.6 reach from 5.0 to 9.0
(PyTorch, release compatibility matrix of 2.12 to 2.14)."""
_CAUSE = re.compile(r"was killed by (?:signal )?(\w+)|ended with exit code (\d+)")
_LAST_WORDS = re.compile(r"Its last words: (.*)", re.DOTALL)
_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemory|MemoryError|cannot allocate memory|failed to allocate",
    re.IGNORECASE,
)
_OLD_DRIVER = re.compile(r"driver .*too old|driver version is insufficient", re.IGNORECASE)
_OTHER_DEVICE = re.compile(r"no kernel image is available", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found of one form.

    Attributes:
        verdict: ``runs``, ``imports`` (nothing but imported), ``wrong`` (a wrong answer), ``fails``
            (installed, but does not run), ``missing`` (not installed), ``unsupported`` (nothing
            that this engine could do with the embedded model).
        reason: Why, "" where there is nothing to say.
        mend: A command, or a sentence where no command helps; "" where there is nothing to mend.
    """

    verdict: Verdict
    reason: str = ""
    mend: str = ""


# Commands


def pip_install(*words: str, environment: str = "") -> str:
    """Return the pip line for this interpreter, with the constraints where they are at hand."""
    found = shutil.which("pip")
    same = found is not None and Path(found).parent == Path(sys.executable).parent
    program = "pip" if same else f"{shlex.quote(sys.executable)} -m pip"
    root = checkout()
    here = root is not None and Path.cwd().resolve() == root
    pins = "constraints.txt" if here or root is None else shlex.quote(f"{root}/constraints.txt")
    constrained = [] if root is None else ["-c", pins]
    line = " ".join([program, "install", *words[:-1], *constrained, words[-1]])
    return f"{environment} {line}" if environment else line


def install_extra(extra: str) -> str:
    """Return the line that installs one of the workbench's extras."""
    root = checkout()
    if root is None:
        return pip_install(f"'llm-workbench[{extra}]'")
    place = "." if Path.cwd().resolve() == root else str(root)
    return pip_install("-e", shlex.quote(f"{place}[{extra}]"))


def reinstall(module: str) -> str:
    """Return the line that installs a module's distribution again, without what it needs."""
    return pip_install("--force-reinstall", "--no-cache-dir", "--no-deps", _pinned(module))


def rebuild_llama(machine: Machine) -> str:
    """Return the line that builds llama-cpp-python for the processor and devices here."""
    kinds = {device.kind for device in machine.devices}
    flag = "-DGGML_CUDA=on" if "cuda" in kinds else "-DGGML_METAL=on" if "mps" in kinds else ""
    return pip_install(
        *("--force-reinstall", "--no-cache-dir", "--no-binary", LLAMA, _pinned("llama_cpp")),
        environment=f'CMAKE_ARGS="{flag}"' if flag else "",
    )


def torch_for(machine: Machine) -> str:
    """Return the line that installs a PyTorch for the driver and devices here, or what to do."""
    supported = _major(machine.cuda)
    capabilities = [d.compute_capability for d in machine.devices if d.compute_capability]
    if supported is not None and supported < 12:
        return update_driver(12)
    old = supported == 12 or any(each < _CU13_CAPABILITY for each in capabilities)
    index = _TORCH_INDEX + ("cu126" if old else "cu130")
    return pip_install("--force-reinstall", "--extra-index-url", index, _pinned("torch"))


def update_driver(major: int) -> str:
    """Return what to do about a driver that is too old for a CUDA major version."""
    return f"Update the NVIDIA driver to {_LEAST_DRIVER.get(major, _LEAST_DRIVER[13])} or newer."


def _pinned(module: str) -> str:
    """Return a module's distribution; without the constraints, with the workbench's own pin."""
    name = distribution(module)
    if checkout() is None:
        for line in importlib.metadata.requires("llm-workbench") or ():
            pin = re.match(rf"{re.escape(name)}\s*(==[\w.]+)", line)
            if pin:
                return f"{name}{pin[1]}"
    return name


def distribution(module: str) -> str:
    """Return the name that pip knows a module by."""
    return _DISTRIBUTIONS.get(module, module.partition(".")[0].replace("_", "-"))


def _major(version: str | None) -> int | None:
    head = (version or "").partition(".")[0]
    return int(head) if head.isdigit() else None


# Findings


def missing(facts: EngineFacts, names: list[str]) -> Finding:
    """Return the finding for packages that are not installed."""
    words = f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} not installed"
    if set(names) & set(facts.packages):
        return Finding(verdict="missing", reason=words, mend=install_extra(facts.extra))
    needed = " ".join(_pinned(name) for name in names)
    return Finding(verdict="missing", reason=words, mend=pip_install(needed))


def unimportable(module: str, kind: str, message: str, machine: Machine) -> Finding:
    """Return the finding for a package that raises when it is imported."""
    mend = rebuild_llama(machine) if module == "llama_cpp" else reinstall(module)
    return Finding(verdict="fails", reason=f"importing {module}: {kind}: {message}", mend=mend)


def died(doing: str, message: str, module: str | None, machine: Machine) -> Finding:
    """Return the finding for a child process that died.

    Args:
        doing: What it did, for example ``importing llama_cpp``.
        message: The error that says how it ended.
        module: The package at fault, or None.
        machine: Where this was.
    """
    cause = _CAUSE.search(message)
    name = (cause[1] or f"exit code {cause[2]}") if cause else "an unknown cause"
    if name == "SIGKILL":
        return out_of_memory(f"{doing} was killed by SIGKILL, as the system does", machine)
    reason = f"{doing} ended the process with {name}"
    if name == "SIGILL":
        avx2 = " (AVX2)" if "x86" in machine.system and "AVX2" not in machine.instructions else ""
        reason += f": it was built for instructions that this processor lacks{avx2}"
    said = _LAST_WORDS.search(message)
    if said and name != "SIGILL":
        reason += f"; its last words: {said[1].strip()[:300]}"
    if module is None:
        return Finding(verdict="fails", reason=reason)
    mend = rebuild_llama(machine) if module == "llama_cpp" else reinstall(module)
    return Finding(verdict="fails", reason=reason, mend=mend)


def out_of_memory(what: str, machine: Machine) -> Finding:
    """Return the finding for memory that ran out."""
    free = ", ".join(f"{size / 2**30:.1f} GiB of {name}" for name, size in machine.free().items())
    return Finding(
        verdict="fails",
        reason=f"{what} when memory runs out; free now: {free}",
        mend="Free some memory (close models, kernels and other programs) and try again.",
    )


def too_slow(facts: EngineFacts, doing: str, seconds: float) -> Finding:
    """Return the finding for a step that did not end in time."""
    return Finding(
        verdict="fails",
        reason=f"{doing} did not end within {seconds:g} seconds",
        mend=f"workbench doctor --engine {facts.name} --timeout {2 * seconds:g}",
    )


def raised(
    facts: EngineFacts, quantization: str, told: Mapping[str, Any], machine: Machine
) -> Finding:
    """Return the finding for an error that loading or asking raised."""
    error = told["error"]
    kind, message, hint = error["type"], error["message"], error["hint"] or ""
    ours = kind.endswith("Error") and hint
    reason = message if ours else f"{kind}: {message}"
    if told["missing"]:
        return missing(facts, told["missing"])
    if kind == "MissingPackageError":
        return Finding(verdict="missing", reason=message, mend=hint)
    if kind in ("UnsupportedError", "InputError", "NotFoundError"):
        return Finding(verdict="unsupported", reason=message, mend=hint)
    text = f"{kind}: {message}"
    if _OUT_OF_MEMORY.search(text):
        return out_of_memory(f"{text}, raised", machine)
    if _OLD_DRIVER.search(text) or _OTHER_DEVICE.search(text):
        return Finding(verdict="fails", reason=reason, mend=torch_for(machine))
    look = f"workbench load tiny-chat --engine {facts.name} --quantization {quantization}"
    return Finding(verdict="fails", reason=reason, mend=hint or f"{look} --ask Hello")


def unused_device(facts: EngineFacts, builds: Mapping[str, Any], machine: Machine) -> Finding:
    """Return what keeps an engine that runs from the accelerator here; all well says nothing."""
    kinds = {device.kind for device in machine.devices} & set(facts.devices)
    llama, torch = builds.get("llama_cpp"), builds.get("torch")
    if kinds and llama is not None and not llama["offload"]:
        device = "CUDA" if "cuda" in kinds else "Metal"
        reason = f"on the CPU only: this {LLAMA} was built without {device}"
        return Finding(verdict="runs", reason=reason, mend=rebuild_llama(machine))
    if "cuda" not in kinds or torch is None or torch["usable"]:
        return Finding(verdict="runs")
    if torch["cuda"] is None:
        reason = f"on the CPU only: PyTorch {torch['version']} was built without CUDA"
        return Finding(verdict="runs", reason=reason, mend=torch_for(machine))
    built, supported = _major(torch["cuda"]), _major(machine.cuda)
    if built is not None and supported is not None and supported < built:
        reason = (
            f"on the CPU only: PyTorch was built for CUDA {torch['cuda']}, which needs driver "
            f"{_LEAST_DRIVER.get(built, '?')} or newer; {machine.driver or 'the one here'} "
            f"supports CUDA {machine.cuda}"
        )
        return Finding(verdict="runs", reason=reason, mend=torch_for(machine))
    reason = f"on the CPU only: PyTorch {torch['version']} sees no CUDA device"
    return Finding(verdict="runs", reason=reason, mend="Compare nvidia-smi, CUDA_VISIBLE_DEVICES.")
