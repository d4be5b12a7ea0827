"""What a run is on disk: its folder, run.json, and whether its process still lives."""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from workbench.errors import InputError, NotFoundError
from workbench.figures import Table
from workbench.notebook import KERNEL_ID, NOTES
from workbench.paths import atomic_file, outputs
from workbench.progress import CURRENT, duration
from workbench.redact import redacted
from workbench.runs.notes import Number

SCHEMA = 1
RUN_FILE, NOTEBOOK, REPORT, LOG = "run.json", "notebook.ipynb", "report.html", "run.log"
PARTIAL, CELL, ALIVE = ".partial.ipynb", ".cell", ".alive"
HEARTBEAT, FRESH = 5.0, 60.0
OUTCOMES = ("running", "done", "failed", "interrupted", "lost")


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One notebook executed with parameters, and the folder it left.

    Attributes:
        folder: The run folder.
        data: What run.json holds.
    """

    folder: Path
    data: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Identity of the run, the end of its folder's name."""
        return str(self.data["id"])

    @property
    def notebook(self) -> str:
        """Name of the notebook."""
        return str(self.data["notebook"])

    @property
    def outcome(self) -> str:
        """``running``, ``done``, ``failed``, ``interrupted`` or ``lost`` (its process is gone)."""
        said = str(self.data["outcome"])
        return "lost" if said == "running" and not alive(self) else said

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that were used, given or default."""
        return {name: given["value"] for name, given in self.data["parameters"].items()}

    @property
    def numbers(self) -> dict[str, Any]:
        """The key numbers, name to value."""
        return {number["name"]: number["value"] for number in self.data["numbers"]}

    @property
    def outputs(self) -> dict[str, Path]:
        """The named outputs, name to absolute path."""
        return {
            name: Path(os.path.normpath(self.folder / path))
            for name, path in self.data["outputs"].items()
        }

    @property
    def report(self) -> Path | None:
        """The rendered report, or None when it was not written."""
        path = self.folder / REPORT
        return path if path.is_file() else None

    @property
    def error(self) -> Mapping[str, Any] | None:
        """Cell, name, message and short traceback of what stopped the run, or None."""
        said: Mapping[str, Any] | None = self.data.get("error")
        return said

    def trouble(self) -> str:
        """Return one sentence about what stopped the run, empty when nothing did."""
        if self.outcome in ("done", "running"):
            return ""
        if self.outcome == "lost":
            return f"The process of this run ended without a word{_in_cell(self.data)}."
        error = self.error or {}
        said = error.get("message", "").strip().split("\n")[0]
        name = f"{error['name']}: " if error.get("name") else ""
        end = "" if said.endswith((".", "!", "?")) or not said else "."
        return f"{self.outcome.capitalize()}{_in_cell(self.data)}. {name}{said}{end}".strip()

    def said(self) -> list[str]:
        """Return the key numbers for reading, ``accuracy: 97.9%``."""
        return [str(Number(**number)) for number in self.data["numbers"]]

    def __str__(self) -> str:
        lines = [f"{self.notebook}: {self.outcome} in {duration(self.data['duration_s'] or 0)}"]
        lines += [self.trouble()] if self.trouble() else []
        lines += [f"  {said}" for said in self.said()]
        lines += [f"  {name} -> {path}" for name, path in self.outputs.items()]
        lines.append(f"  {self.report or self.folder}")
        return "\n".join(lines)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        rows = [("notebook", self.notebook), ("outcome", self.trouble() or self.outcome)]
        rows += [(said.partition(": ")[0], said.partition(": ")[2]) for said in self.said()]
        rows += [(name, str(redacted(path))) for name, path in self.outputs.items()]
        rows.append(("report", str(redacted(self.report or self.folder))))
        table = Table([{"run": name, self.id: value} for name, value in rows])
        return {"text/plain": str(self), "text/html": table.html()}


def _in_cell(data: Mapping[str, Any]) -> str:
    cells = data.get("cells", {})
    return f" in code cell {cells['reached']} of {cells['total']}" if cells.get("reached") else ""


def read(folder: Path) -> Run:
    """Read the run in a folder.

    Raises:
        NotFoundError: The folder holds no run.
        InputError: Its run.json is broken or of another schema.
    """
    path = Path(folder) / RUN_FILE
    if not path.is_file():
        raise NotFoundError(f"There is no run in {folder}.", hint="Name a folder with a run.json.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA:
        raise InputError(
            f"{path} is no run file of schema {SCHEMA}.",
            hint="Read it with the version that wrote it.",
        )
    return Run(Path(folder), data)


def write(folder: Path, data: Mapping[str, Any]) -> Run:
    """Write run.json, redacted, by renaming a complete file."""
    clean = redacted(dict(data))
    with atomic_file(folder / RUN_FILE) as partial:
        text = json.dumps(clean, indent=1, ensure_ascii=False, default=str)
        partial.write_text(text + "\n", encoding="utf-8")
    return Run(folder, clean)


def runs_folder() -> Path:
    """Return the folder that holds all run folders; it is made."""
    folder = outputs("runs", "x").parent
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def now() -> str:
    """Return the time in UTC, ISO 8601 with seconds."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def process(pid: int) -> dict[str, Any]:
    """Return what identifies a process for ever: number, start and place."""
    return {"pid": pid, "started": psutil.Process(pid).create_time(), "place": _place()}


def alive(run: Run) -> bool:
    """Return True while the run's process lives.

    On the same machine (and in the same container) the process is looked up; elsewhere its
    heartbeat must be younger than a minute.
    """
    said = run.data.get("process") or {}
    if said.get("place") != _place():
        beat = run.folder / ALIVE
        return beat.is_file() and time.time() - beat.stat().st_mtime < FRESH
    try:
        found = psutil.Process(said["pid"])
        same = abs(found.create_time() - said["started"]) < 2  # a clock may be set in between
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _place() -> str:
    """Return a name, not telling the host, for where a process number means something."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    parts = [
        boot.read_text(encoding="ascii") if boot.is_file() else str(psutil.boot_time()),
        os.readlink(space) if space.exists() else "",
        platform.node(),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def collected(folder: Path) -> dict[str, Any]:
    """Return what the cells noted in the run folder: numbers, outputs, receipts, conclusion."""
    numbers: dict[str, Any] = {}
    found: dict[str, Any] = {"outputs": {}, "receipts": [], "conclusion": None}
    path = folder / NOTES
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        try:
            note = json.loads(line)
        except json.JSONDecodeError:
            continue  # the process was killed while it wrote its last line
        kind = note.pop("kind", None)
        if kind == "number":
            numbers[note["name"]] = note
        elif kind == "output":
            found["outputs"][note["name"]] = note["path"]
        elif kind == "receipt":
            found["receipts"].append(note["id"])
        elif kind == "conclusion":
            found["conclusion"] = note["text"]
    return {"numbers": list(numbers.values()), **found}


def reached(folder: Path) -> int:
    """Return the number of the code cell that was last begun, 0 for none."""
    path = folder / CELL
    text = path.read_text(encoding="utf-8").split(" ", 1)[0] if path.is_file() else ""
    return int(text) if text.isdigit() else 0


def clear(folder: Path) -> None:
    """Remove the working files of a run that is over."""
    for name in (NOTES, CELL, KERNEL_ID, ALIVE, CURRENT, PARTIAL, f"{CURRENT}.partial"):
        (folder / name).unlink(missing_ok=True)
