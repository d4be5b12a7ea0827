"""Host memory: the kernel's own peak, samples of the resident set, and every child process."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from workbench.machine.phase import CHILD, EXACT, HOST, SAMPLED, TREE, PhaseMemory, Sampled

_PROC = Path("/proc")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets the peak resident set size to the present one


def status(pid: int | str = "self") -> dict[str, int]:
    """Return the memory lines of /proc/<pid>/status in bytes; empty when there is none to read."""
    try:
        path = _PROC / str(pid) / "status"
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines if line.startswith(("Vm", "Rss")))
    return {pair[0].rstrip(":"): int(pair[1]) * 1024 for pair in pairs if len(pair) == 3}


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _growth(start: dict[str, int], end: dict[str, int], field: str) -> int | None:
    return end[field] - start[field] if field in start and field in end else None


class HostPeak:
    """The kernel's own peak of this process (VmHWM), reset when a phase begins: misses nothing."""

    sampled = False

    @staticmethod
    def permitted() -> bool:
        """Return whether this kernel lets this process reset and read its peak."""
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
        except OSError:
            return False
        return "VmHWM" in status()

    def begin(self) -> None:
        """Reset the peak and note the resident set."""
        _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
        self._start = status()

    def sample(self) -> None:
        """Nothing to do: the kernel keeps the peak."""

    def now(self) -> list[tuple[str, int]]:
        """Return the resident set."""
        return [(HOST, _resident())]

    def end(self, name: str, seconds: float) -> Iterator[PhaseMemory]:
        """Yield the phase of this process."""
        end, start = status(), self._start
        yield PhaseMemory(
            name=name,
            place=HOST,
            source=EXACT,
            seconds=seconds,
            start_bytes=start["VmRSS"],
            peak_bytes=max(end["VmHWM"], end["VmRSS"], start["VmRSS"]),
            end_bytes=end["VmRSS"],
            anonymous_bytes=_growth(start, end, "RssAnon"),
            file_bytes=_growth(start, end, "RssFile"),
        )


class HostSampled(Sampled):
    """The resident set of this process, sampled; a spike between two samples is missed."""

    source = SAMPLED

    def begin(self) -> None:
        """Note the first reading and the split into heap and files."""
        super().begin()
        self._split = status()

    def _read(self) -> int:
        return _resident()

    def end(self, name: str, seconds: float) -> Iterator[PhaseMemory]:
        """Yield the phase of this process."""
        end = status()
        for phase in super().end(name, seconds):
            yield dataclasses.replace(
                phase,
                anonymous_bytes=_growth(self._split, end, "RssAnon"),
                file_bytes=_growth(self._split, end, "RssFile"),
            )


@dataclasses.dataclass(slots=True)
class _Child:
    """What was read of one child process.

    Attributes:
        start: Resident set when the phase began, 0 for a child that was born in it.
        floor: Its VmHWM when the phase began: a figure above it is a peak of this phase.
        mark: Its VmHWM at the last reading; one that falls was reset by the child itself.
        peak: Most that was seen in this phase.
        last: Resident set at the last reading.
        alive: Whether the last look found it.
    """

    start: int
    floor: int
    mark: int
    peak: int
    last: int
    alive: bool = True

    def look(self, read: dict[str, int]) -> None:
        """Take one reading of /proc/<pid>/status in."""
        mark = read.get("VmHWM", 0)
        if mark < self.mark:
            self.floor = 0
        self.mark, self.last = mark, read["VmRSS"]
        self.peak = max(self.peak, self.last, mark if mark > self.floor else 0)


class TreeSampled(Sampled):
    """The resident sets of this process and its children, summed; shared pages count each time.

    Where there is a /proc, every child also gets a phase of its own, with the kernel's peak of it
    as last read: exact while it lives, and short of what it took after the last reading when it
    ended within the phase. Nothing of a child is reset: it may be measuring itself.
    """

    place = TREE
    source = "sampled RSS of the process tree"

    def _read(self, *, begin: bool = False) -> int:
        import psutil

        own = psutil.Process()
        total = int(own.memory_info().rss)
        present = set()
        with contextlib.suppress(psutil.Error):
            for process in own.children(recursive=True):
                present.add(process.pid)
                total += self._look(process.pid, begin=begin)
        for pid, child in self._children.items():
            child.alive = pid in present and child.alive
        return total

    def _look(self, pid: int, *, begin: bool) -> int:
        """Return the resident set of one child, 0 when it is gone or a zombie."""
        import psutil

        read = status(pid)
        if "VmRSS" not in read:
            if pid in self._children:
                self._children[pid].alive = False
            with contextlib.suppress(psutil.Error):  # elsewhere than on Linux
                return int(psutil.Process(pid).memory_info().rss)
            return 0
        resident = read["VmRSS"]
        if pid not in self._children:
            start, floor = (resident, read.get("VmHWM", 0)) if begin else (0, 0)
            self._children[pid] = _Child(start, floor, floor, resident, resident)
        self._children[pid].look(read)
        return resident

    def begin(self) -> None:
        """Note the children that are there."""
        self._children: dict[int, _Child] = {}
        self._start = self._read(begin=True)
        self._peak = self._start

    def now(self) -> list[tuple[str, int]]:
        """Return the sum; the children's own figures are untouched."""
        import psutil

        total = _resident()
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss
        return [(TREE, total)]

    def end(self, name: str, seconds: float) -> Iterator[PhaseMemory]:
        """Yield the sum, then each child."""
        yield from super().end(name, seconds)
        for pid, child in self._children.items():
            yield PhaseMemory(
                name=name,
                place=f"child {pid}",
                source=CHILD,
                seconds=seconds,
                start_bytes=child.start,
                peak_bytes=child.peak,
                end_bytes=child.last if child.alive else 0,
                ended=not child.alive,
            )
