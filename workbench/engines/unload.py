"""What closing a model gave back, by place; what did not come back, and who holds it."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench.engines.holders import holders
from workbench.engines.memory import RAM, Grown, give_back_memory, readings
from workbench.engines.plain import described
from workbench.engines.tensors import bytes_of, is_tensors, parts_of, watched_of
from workbench.figures import Table
from workbench.notebook import forget, release_frames
from workbench.planning import Plan
from workbench.receipts import Receipt, write

LIMIT_BYTES = 64_000_000
"""Least limit: pages of freed arenas that glibc cannot trim, and the 20 MB blocks in which PyTorch
reserves, come to a few tens of megabytes whatever the model's size."""
LIMIT_SHARE = 0.05
"""Limit as a share of what loading added: a model of 14 GB may leave 0.7 GB, never itself."""
_SETTLE_SECONDS = 2.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One memory before loading, after it, and around closing, in bytes.

    Attributes:
        name: ``RAM``, ``process 4711``, ``cuda:0 tensors`` ...
        before: Before loading; None where it was not read.
        loaded: After loading, likewise.
        closing: Just before closing.
        after: After closing.
        judged: Whether the figure is this model's alone, so that a verdict follows from it.
    """

    name: str
    before: int | None
    loaded: int | None
    closing: int
    after: int
    judged: bool = True

    @property
    def returned(self) -> int:
        """Bytes that closing gave back."""
        return self.closing - self.after

    @property
    def added(self) -> int | None:
        """Bytes that loading added, None where it was not read."""
        if self.before is None or self.loaded is None:
            return None
        return self.loaded - self.before

    @property
    def missing(self) -> int:
        """Bytes that loading added and closing did not give back.

        What else this process took or freed between the two is no part of it. Where nothing was
        held before loading, as in a process of its own, no more can be missing than is still
        held: one that died before it was closed has given everything back.
        """
        if not self.judged:
            return 0
        stayed = max(0, (self.added or 0) - self.returned)
        return min(stayed, self.after) if self.before == 0 else stayed

    @property
    def limit(self) -> int:
        """Most bytes that may be missing."""
        return max(LIMIT_BYTES, int(LIMIT_SHARE * (self.added or 0)))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unload:
    """The proof of an unloading; displays itself, red where something stayed.

    Attributes:
        model: Label of the model.
        places: Each memory that was read.
        held_bytes: Bytes of the model's own tensors that are still alive.
        holders: Names of what keeps them alive.
        seconds: What closing took.
        receipt: File of the receipt, or None when none could be written.
    """

    model: str
    places: tuple[Place, ...]
    held_bytes: int = 0
    holders: tuple[str, ...] = ()
    seconds: float
    receipt: Path | None = None

    @property
    def freed(self) -> bool:
        """Whether everything came back, within the limit of each place."""
        return not self.reasons()

    def reasons(self) -> list[str]:
        """Return what did not come back, in sentences; empty when all did."""
        said = [
            f"{_mb(place.missing)} MB of {place.name} did not come back, "
            f"the limit is {_mb(place.limit)} MB."
            for place in self.places
            if place.missing > place.limit
        ]
        if self.held_bytes:
            named = "; ".join(self.holders) or "something that has no name"
            said.append(f"{_mb(self.held_bytes)} MB of the model are still held by {named}.")
        elif said:
            said.append("Nothing that can be named refers to the model any more.")
        return said

    def table(self) -> Table:
        """Return it as a table of places, with what did not come back."""
        rows: list[dict[str, Any]] = [
            {
                "place": place.name,
                "before": place.before,
                "loaded": place.loaded,
                "closing": place.closing,
                "after": place.after,
                "returned": place.returned,
                "failed": f"{_mb(place.missing)} MB missing, limit {_mb(place.limit)} MB"
                if place.missing > place.limit
                else "",
            }
            for place in self.places
        ]
        if self.held_bytes:
            rows.append({"place": "held", "failed": self.reasons()[-1]})
        columns = {
            "place": "place",
            "before": "before loading MB",
            "loaded": "loaded MB",
            "closing": "before closing MB",
            "after": "after closing MB",
            "returned": "came back MB",
        }
        state = "unloaded" if self.freed else "NOT wholly unloaded"
        return Table(
            rows,
            columns=columns if rows else None,
            caption=f"{self.model}: {state} in {self.seconds:.2f} s",
            formats=dict.fromkeys(list(columns)[1:], _mb) if rows else None,
        )

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.table()._repr_mimebundle_()

    def describe(self) -> dict[str, Any]:
        """Return it as plain data for the receipt, in bytes."""
        return {
            "close_seconds": round(self.seconds, 4),
            "places": [
                {
                    **dataclasses.asdict(place),
                    "returned": place.returned,
                    "missing": place.missing,
                    "limit": place.limit,
                }
                for place in self.places
            ],
            "missing_bytes": max((place.missing for place in self.places), default=0),
            "held_bytes": self.held_bytes,
            "holders": list(self.holders),
        }


class Unloading:
    """One closing: made while the session is open, asked for its proof when it is closed.

    Args:
        session: What is to be closed; only weakly kept.
        plan: How it was loaded.
        grown: What loading added.
        also: Further objects that nobody should keep for the session's sake, such as the Model.
    """

    def __init__(self, session: Any, plan: Plan, grown: Grown | None, *also: Any) -> None:
        self._began = time.perf_counter()
        self._plan, self._grown = plan, grown
        self._pid: int | None = getattr(session, "pid", None)
        self._processes = _tree(self._pid)
        self._closing = _held(self._pid, self._processes) if self._pid else readings()
        raw = None if self._pid else _tensors_of(session)
        self._watched = [weakref.ref(each) for each in watched_of(raw)]
        parts = {id(each) for each in parts_of(raw)} | {id(session), *map(id, also)}
        forget(parts)
        error = sys.exc_info()[1]
        if error is not None:  # closed by a ``with`` block that failed, or in an ``except``
            release_frames(error, parts)

    def proof(self) -> Unload:
        """Free what can be freed, and return what came back; the receipt is written."""
        give_back_memory()
        alive = [each for each in (reference() for reference in self._watched) if each is not None]
        held = bytes_of(alive[0]) if alive else 0  # the whole model, or what is left of it
        names = holders(alive)
        del alive
        after = _held_after(self._pid, self._processes) if self._pid else readings()
        found = Unload(
            model=self._plan.label,
            places=tuple(self._places(after)),
            held_bytes=held,
            holders=names,
            seconds=time.perf_counter() - self._began,
        )
        return dataclasses.replace(found, receipt=_leave_receipt(found, self._plan))

    def _places(self, after: Mapping[str, int]) -> Iterator[Place]:
        grown = self._grown
        before = dict(grown.before) if grown else {}
        loaded = dict(grown.after) if grown else {}
        if self._pid and grown:  # a process of its own began with nothing
            (name, *_) = self._closing
            before, loaded = {name: 0}, {name: grown.after.get(RAM, grown.host_bytes)}
        for name, closing in self._closing.items():
            yield Place(
                name=name,
                before=before.get(name, 0 if name in loaded else None),
                loaded=loaded.get(name),
                closing=closing,
                after=after.get(name, 0),
                judged=self._judges(name),
            )

    def _judges(self, name: str) -> bool:
        """Return whether a place's figure is the model's alone.

        The driver counts the context too, which stays while the process lives, and so does the
        host's share of it; "device-wide" counts other programs.
        """
        if self._pid:
            return True
        if name == RAM:
            return self._plan.device == "cpu"
        return not name.endswith((" process", " device-wide"))


def _leave_receipt(found: Unload, plan: Plan) -> Path | None:
    """Write the receipt; a full disk must not keep a model open."""
    reasons = found.reasons()
    receipt = Receipt(
        what="unload",
        model=plan.card.id,
        revision=plan.files.revision if plan.files else None,
        plan=described(plan),
        outcome="failed" if reasons else "done",
        reason=" ".join(reasons) or None,
        result=found.describe(),
    )
    with contextlib.suppress(OSError):
        return write(receipt)
    return None


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f}"


def bytes_held(session: Any) -> int | None:
    """Return the bytes of a session's tensors or processes now, None where neither tells."""
    pid: int | None = getattr(session, "pid", None)
    if pid:
        return sum(_held(pid, _tree(pid)).values())
    raw = _tensors_of(session)
    return bytes_of(raw) if is_tensors(raw) else None


def _tensors_of(session: Any) -> Any:
    """Return the object that may be a tree of tensors; a session may say that it has none."""
    return session.tensors if hasattr(session, "tensors") else getattr(session, "raw", None)


# Processes of their own


def _tree(pid: int | None) -> list[Any]:
    import psutil

    if pid is None:
        return []
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def _held(pid: int, processes: list[Any]) -> dict[str, int]:
    """Return what the tree of a process holds, nothing where it has ended."""
    from workbench.engines.server_memory import held_by

    held = held_by(processes)
    found = {f"process {pid}": held.rss_bytes}
    if held.device_bytes is not None:
        found["GPU (NVML, by process)"] = held.device_bytes
    return found


def _held_after(pid: int, processes: list[Any]) -> dict[str, int]:
    """Return what is left of them; the last ones may take a moment to end."""
    until = time.monotonic() + _SETTLE_SECONDS
    found = _held(pid, processes)
    while any(found.values()) and time.monotonic() < until:
        time.sleep(0.02)
        found = _held(pid, processes)
    return found
