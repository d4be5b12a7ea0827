"""The processor, its instruction sets, memory and disks of this computer."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from pathlib import Path

from workbench import paths

_FLAGS = {
    "avx": "AVX",
    "avx2": "AVX2",
    "fma": "FMA",
    "f16c": "F16C",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "avx_vnni": "AVX-VNNI",
    "amx_tile": "AMX",
    "amx_bf16": "AMX-BF16",
    "amx_int8": "AMX-INT8",
    "asimd": "NEON",
    "neon": "NEON",
    "asimddp": "DOTPROD",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
    "sve2": "SVE2",
    "sme": "SME",
}
"""Linux' name of a processor flag -> the name that engines' builds use; only those that matter."""
_APPLE = {
    "hw.optional.AdvSIMD": "NEON",
    "hw.optional.arm.FEAT_DotProd": "DOTPROD",
    "hw.optional.arm.FEAT_I8MM": "I8MM",
    "hw.optional.arm.FEAT_BF16": "BF16",
    "hw.optional.arm.FEAT_SME": "SME",
    "hw.optional.avx2_0": "AVX2",
    "hw.optional.avx512f": "AVX512",
}
_SYSCTL_SECONDS = 5


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's model name."""
    for field in ("model name", "Model"):
        found = _field(cpuinfo, field)
        if found:
            return found
    return sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def instruction_sets(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Return the vector and matrix instructions that engines make use of."""
    flags = (_field(cpuinfo, "flags") or _field(cpuinfo, "Features") or "").split()
    found = [name for flag, name in _FLAGS.items() if flag in flags]
    found += [name for key, name in _APPLE.items() if sysctl(key) == "1"]
    return tuple(dict.fromkeys(found))


def _field(cpuinfo: Path, name: str) -> str | None:
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        label, _, value = line.partition(":")
        if label.strip() == name:
            return value.strip()
    return None


@functools.cache
def sysctl(name: str) -> str | None:
    """Return a value of the kernel of macOS, or None elsewhere and where there is none."""
    if platform.system() != "Darwin":
        return None
    return _asked(["sysctl", "-n", name])


def _asked(command: list[str]) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SYSCTL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def allowed_cores() -> int:
    """Return the logical cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def physical_memory() -> int:
    """Return the bytes of memory that the kernel manages."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int:
    """Return the bytes that could be had now without swapping (MemAvailable on Linux)."""
    import psutil

    return int(psutil.virtual_memory().available)


def swap() -> tuple[int, int]:
    """Return total and free bytes of swap."""
    import psutil

    found = psutil.swap_memory()
    return int(found.total), int(found.free)


def disks() -> dict[str, int]:
    """Return the free bytes where outputs and the cache lie; nothing is made there."""
    return {"outputs": _free(paths.home()), "cache": _free(paths.cache())}


def _free(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
