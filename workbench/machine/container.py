"""What a container allows: the memory and CPU limits of control groups, versions 1 and 2."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")
_NO_LIMIT = 1 << 60  # version 1 writes a number near 2**63 where there is no limit


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What control groups leave to this process.

    Attributes:
        memory_bytes: The least limit of its groups, or None.
        memory_free_bytes: The least that is left below such a limit; file cache counts as free.
        cpus: CPU time per time, for example 1.5, or None.
    """

    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    cpus: float | None = None


def limits(root: Path = _ROOT) -> Limits:
    """Return the limits of this process' groups and all groups around them.

    The groups are those in ``/proc/self/cgroup``, found through the mounts in
    ``/proc/self/mountinfo`` (cgroups(7)): in a container without a namespace of its own the mount
    shows only the container's part of the tree.

    Args:
        root: Where the file system begins.
    """
    memory: list[int] = []
    free: list[int] = []
    cpus: list[float] = []
    for folder in _folders(root):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        inherited = _statistic(folder, "hierarchical_memory_limit")
        memory += [value for value in (limit, inherited) if value is not None]
        if limit is not None and limit < _NO_LIMIT:
            free.append(max(0, limit - _used(folder)))
        cpus += _cpus(folder)
    memory = [value for value in memory if value < _NO_LIMIT]
    return Limits(
        memory_bytes=min(memory, default=None),
        memory_free_bytes=min(free, default=None),
        cpus=min(cpus, default=None),
    )


def memory_kills(root: Path = _ROOT) -> int:
    """Return how often the kernel has ended a process for memory, as far as it tells.

    The machine's own count (``oom_kill`` in /proc/vmstat) and those of this process' control
    groups (memory.events, in version 1 memory.oom_control) are added: only a change means anything.

    Args:
        root: Where the file system begins.
    """
    files = [root / "proc/vmstat"]
    for folder in _folders(root):
        files += [folder / "memory.events", folder / "memory.oom_control"]
    total = 0
    for line in (line for path in files for line in _lines(path)):
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.strip().isdigit():
            total += int(value)
    return total


def _folders(root: Path) -> Iterator[Path]:
    """Yield the folder of each of this process' groups and of each group around it."""
    mounts = list(_mounts(root))
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        for shown, folder, kinds in mounts:
            if not (set(controllers.split(",")) & kinds if controllers else "cgroup2" in kinds):
                continue
            inside = _below(group, shown)
            here = folder.joinpath(*inside)
            while not here.is_dir() and here != folder:
                here = here.parent
            yield here
            while here != folder:
                here = here.parent
                yield here


def _mounts(root: Path) -> Iterator[tuple[str, Path, set[str]]]:
    """Yield root within the tree, folder, and controllers (``cgroup2`` for version 2)."""
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        kind, _, options = [*rest.split(), "", "", ""][:3]
        if kind in ("cgroup", "cgroup2"):
            shown, folder = fields.split()[3:5]
            names = {"cgroup2"} if kind == "cgroup2" else set(options.split(","))
            yield shown, root / folder.replace("\\040", " ").lstrip("/"), names


def _below(group: str, shown: str) -> list[str]:
    """Return the parts of a group's path below what the mount shows of the tree."""
    parts, base = Path(group).parts[1:], Path(shown).parts[1:]
    if ".." in parts:  # the group lies outside of this process' namespace
        return []
    return list(parts[len(base) :] if parts[: len(base)] == base else parts)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)[:1]).strip()
    return int(text) if text.isdigit() else None


def _statistic(folder: Path, *names: str) -> int | None:
    for line in _lines(folder / "memory.stat"):
        name, _, value = line.partition(" ")
        if name in names and value.strip().isdigit():
            return int(value)
    return None


def _used(folder: Path) -> int:
    used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
    return used - (_statistic(folder, "total_inactive_file", "inactive_file") or 0)


def _cpus(folder: Path) -> list[float]:
    words = "".join(_lines(folder / "cpu.max")[:1]).split()
    if len(words) == 2 and words[0].isdigit():
        return [int(words[0]) / int(words[1])]
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return [quota / period] if quota and period else []
