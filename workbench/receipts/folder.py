"""Receipts as files: written once under a name that sorts by time, read back, scanned."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench import notebook
from workbench.errors import InputError, NotFoundError
from workbench.paths import atomic_file, outputs, shipped, sweep_partials
from workbench.receipts.migration import NewerReceiptError, current
from workbench.receipts.place import Place, place_of
from workbench.receipts.receipt import Receipt, moment
from workbench.redact import redacted

_OPTIONAL_TEXTS = ("revision", "sha256", "engine", "quantization", "form", "reason")
_TEXTS = ("id", "time", "what", "model")
_MAPPINGS = ("plan", "parameters", "result", "machine", "versions")
_KNOWN = frozenset(Receipt.model_fields)
_CONDITIONS = ("dtype", "device", "context", "adapter")
_swept: set[Path] = set()


def here_folder() -> Path:
    """Return the folder of what was measured on this machine, ``outputs/receipts``."""
    return outputs("receipts", "x").parent


def shipped_folder() -> Path | None:
    """Return the folder of receipts that ship, ``data/receipts``, or None without one."""
    try:
        return shipped("data", "receipts")
    except NotFoundError:
        return None


def write(receipt: Receipt, *, folder: Path | None = None) -> Path:
    """Write a receipt as a new JSON file, with keys, home paths, host names and e-mails redacted.

    A receipt is never rewritten. It appears under its name when it is whole, or not at all.

    Args:
        receipt: What to write.
        folder: Where; default is ``outputs/receipts``.

    Raises:
        InputError: There is a receipt of this name already.
    """
    folder = folder or here_folder()
    if folder not in _swept:  # once a process: what killed writers left
        _swept.add(folder)
        sweep_partials(folder)
    final = write_text(receipt, folder)
    notebook.note("receipt", id=receipt.id)  # for the run around this, if any
    return final


def write_text(receipt: Receipt, folder: Path) -> Path:
    """Write the redacted receipt as a new file of ``folder`` and return its path.

    Raises:
        InputError: There is a receipt of this name already.
    """
    final = folder / file_name(receipt)
    text = json.dumps(redacted(receipt.model_dump(), public=True), indent=1, ensure_ascii=False)
    try:
        with atomic_file(final, new=True) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
    except FileExistsError:
        raise InputError(
            f"The receipt {final} is there already; a receipt is never rewritten.",
            hint="Write a new receipt, with an id of its own.",
        ) from None
    return final


def file_name(receipt: Receipt) -> str:
    """Return the receipt's file name: UTC time to the millisecond, what, id."""
    at = receipt.moment.astimezone(dt.UTC)
    stamp = f"{at:%Y%m%dT%H%M%S}{at.microsecond // 1000:03d}"
    what, name = (re.sub(r"[^A-Za-z0-9_-]", "-", text) for text in (receipt.what, receipt.id))
    return f"{stamp}-{what}-{name}.json"


def read(path: Path) -> Receipt:
    """Read one receipt, of this schema or an older one.

    Raises:
        NotFoundError: There is no such file.
        InputError: Not JSON, not a receipt, or of a newer schema.
    """
    values = _values(path)
    problem = _problem(values)
    if problem:
        raise InputError(f"{path} is not a receipt: {problem}.")
    return Receipt.of(values, source=str(path))


def _values(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NotFoundError(f"There is no receipt {path}.", hint="Check its name.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8
        raise InputError(f"{path} is not valid JSON: {error}.") from None
    return current(values, source=str(path))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a search asks of a receipt, without the receipt's body.

    Attributes:
        path: The file.
        ships: Whether it lies in ``data/receipts``.
        moment: When it was written.
        conditions: Dtype, device, context and adapter of the plan.
        place: The machine, as far as two machines are told apart.
        versions: Package versions, sorted.
    """

    path: Path
    ships: bool
    id: str
    moment: dt.datetime
    what: str
    model: str
    revision: str | None
    engine: str | None
    quantization: str | None
    form: str | None
    outcome: str
    conditions: tuple[str, ...]
    place: Place
    versions: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """A file that is no readable receipt.

    Attributes:
        path: The file.
        reason: What is wrong with it.
        newer: It is of a schema newer than this workbench knows.
    """

    path: Path
    reason: str
    newer: bool = False


def scan(folder: Path, *, ships: bool) -> Iterator[Entry | Damaged]:
    """Yield every receipt of a folder, by name, and what could not be read."""
    for name in _names(folder):
        path = folder / name
        try:
            values = _values(path)
            problem = _problem(values)
        except NotFoundError:  # removed since it was listed
            continue
        except InputError as error:
            newer = isinstance(error, NewerReceiptError)
            yield Damaged(path=path, reason=error.message, newer=newer)
            continue
        yield Damaged(path=path, reason=problem) if problem else _entry(path, values, ships=ships)


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as found:
            names = [item.name for item in found]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in names if name[0] in string.digits and name.endswith(".json"))


def _problem(values: dict[str, Any]) -> str | None:
    """Return what is wrong with a receipt's fields, or None.

    As strict as ``Receipt`` and many times faster; and no field may be missing: the defaults of a
    new receipt, its time and this machine, are not those of a file.
    """
    if values.keys() != _KNOWN:
        missing = _KNOWN - values.keys()
        if missing:
            return f"{min(missing)} is missing"
        return f"it has the unknown field {min(values.keys() - _KNOWN)!r}"
    for name in _TEXTS:
        if not isinstance(values[name], str) or not (values[name] or name == "model"):
            return f"{name} is {values[name]!r}"
    for name in _OPTIONAL_TEXTS:
        if values[name] is not None and not isinstance(values[name], str):
            return f"{name} is {values[name]!r}"
    for name in _MAPPINGS:
        if not isinstance(values[name], dict):
            return f"{name} is a {type(values[name]).__name__}"
    if not all(isinstance(version, str) for version in values["versions"].values()):
        return "a version is not text"
    if values["outcome"] not in ("done", "failed"):
        return f"outcome is {values['outcome']!r}"
    try:
        moment(values["time"])
    except ValueError:
        return f"time is {values['time']!r}"
    return None


def _entry(path: Path, values: dict[str, Any], *, ships: bool) -> Entry:
    plan = values["plan"]
    return Entry(
        path=path,
        ships=ships,
        id=values["id"],
        moment=moment(values["time"]),
        what=values["what"],
        model=values["model"],
        revision=values["revision"],
        engine=values["engine"],
        quantization=values["quantization"],
        form=values["form"],
        outcome=values["outcome"],
        conditions=tuple(str(plan.get(name)) for name in _CONDITIONS),
        place=place_of(values["machine"]),
        versions=tuple(sorted(values["versions"].items())),
    )
