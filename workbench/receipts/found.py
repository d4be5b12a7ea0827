"""Find receipts, and show those found as a table."""

from __future__ import annotations

import collections
import datetime as dt
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from workbench.errors import InputError, did_you_mean
from workbench.receipts.folder import Damaged, Entry, here_folder, read, scan, shipped_folder
from workbench.receipts.place import this_place
from workbench.receipts.receipt import Receipt, moment

if TYPE_CHECKING:
    import pandas

    from workbench.figures import Table

Where = Literal["here", "elsewhere"]
Since = str | dt.date | dt.timedelta
_SHOWN = 50
_OUTCOMES, _PLACES = ("done", "failed"), ("here", "elsewhere")
_AGO = re.compile(r"(\d+)\s*([mhdw])", re.IGNORECASE)
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_TOLD = ("load_seconds", "weight_bytes", "right", "count", "mean_kl")


def where_of(entry: Entry) -> Where:
    """Return ``here`` for a receipt of this machine in ``outputs/receipts``, else ``elsewhere``."""
    return "here" if not entry.ships and entry.place.same(this_place()) else "elsewhere"


def entries(folder: Path | None = None) -> tuple[list[Entry], list[Damaged]]:
    """Return what is known of every receipt, oldest first, and the files that cannot be read.

    Args:
        folder: Only this folder; default is ``outputs/receipts`` and what ships.
    """
    ships = shipped_folder()
    folders = [folder] if folder else [here_folder(), *([ships] if ships else [])]
    found: dict[str, Entry] = {}
    damaged: list[Damaged] = []
    for place in folders:
        shipping = ships is not None and place.resolve() == ships.resolve()
        for item in scan(place, ships=shipping):
            if isinstance(item, Damaged):
                damaged.append(item)
            else:
                found.setdefault(item.id, item)  # one that was kept lies in both folders
    return sorted(found.values(), key=lambda entry: (entry.moment, entry.id)), damaged


def receipts(
    what: str | None = None,
    *,
    model: str | None = None,
    engine: str | None = None,
    quantization: str | None = None,
    outcome: Literal["done", "failed"] | None = None,
    since: Since | None = None,
    where: Where | None = None,
    id: str | None = None,
    revision: str | None = None,
    folder: Path | None = None,
) -> Receipts:
    """Return the receipts that meet every condition, oldest first.

    Args:
        what: What was measured: ``load``, ``compare``, ``finetune``, ``merge``, ``export`` ...
        model: Card id.
        engine: Engine.
        quantization: Quantization.
        outcome: ``done`` or ``failed``.
        since: A time (ISO 8601, UTC unless it says otherwise), a date, or how long ago: ``7d``,
            ``12h``, a timedelta.
        where: ``here`` (this machine, judged by processor, devices and memory) or ``elsewhere``
            (another one, or shipped in ``data/receipts``).
        id: Identity, or its beginning.
        revision: Commit of the model's repository.
        folder: Search only there; default is ``outputs/receipts`` and what ships.

    Raises:
        InputError: An unknown outcome or place, or a time that is none.
    """
    _check("outcome", outcome, _OUTCOMES)
    _check("where", where, _PLACES)
    from_moment = None if since is None else _moment(since)
    equal = {
        "what": what,
        "model": model,
        "engine": engine,
        "quantization": quantization,
        "outcome": outcome,
        "revision": revision,
    }
    asked = {name: value for name, value in equal.items() if value is not None}

    def holds(entry: Entry) -> bool:
        return (
            all(getattr(entry, name) == value for name, value in asked.items())
            and (id is None or entry.id.startswith(id))
            and (from_moment is None or entry.moment >= from_moment)
            and (where is None or where_of(entry) == where)
        )

    found, damaged = entries(folder)
    return Receipts([entry for entry in found if holds(entry)], damaged)


def _check(name: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise InputError(f"{name}={value!r} is not known.", hint=did_you_mean(value, known))


def _moment(since: Since) -> dt.datetime:
    if isinstance(since, dt.timedelta):
        return dt.datetime.now(dt.UTC) - since
    if isinstance(since, dt.datetime):
        return since if since.tzinfo else since.replace(tzinfo=dt.UTC)
    if isinstance(since, dt.date):
        return dt.datetime(since.year, since.month, since.day, tzinfo=dt.UTC)
    ago = _AGO.fullmatch(since.strip())
    try:
        if ago:
            span = dt.timedelta(**{_UNITS[ago[2].lower()]: int(ago[1])})
            return dt.datetime.now(dt.UTC) - span
        return moment(since.strip())
    except (ValueError, OverflowError):
        raise InputError(
            f"since={since!r} is no time.",
            hint="Write 2026-05-01, 2026-05-01T12:00, or how long ago: 12h, 7d.",
        ) from None


class Receipts(Sequence[Receipt]):
    """Receipts that were found, oldest first; each is read when it is asked for.

    Attributes:
        damaged: Files that are no readable receipts; they are shown, and never counted.
    """

    def __init__(self, found: Sequence[Entry], damaged: Sequence[Damaged] = ()) -> None:
        self._entries = tuple(found)
        self.damaged = tuple(damaged)

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Receipt: ...

    @overload
    def __getitem__(self, index: slice) -> Receipts: ...

    def __getitem__(self, index: int | slice) -> Receipt | Receipts:
        if isinstance(index, slice):
            return Receipts(self._entries[index], self.damaged)
        return read(self._entries[index].path)

    def __iter__(self) -> Iterator[Receipt]:
        return (read(entry.path) for entry in self._entries)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, in the same order."""
        return tuple(entry.path for entry in self._entries)

    def latest(self) -> Receipt | None:
        """Return the newest receipt, or None when none was found."""
        return self[-1] if self._entries else None

    def to_frame(self) -> pandas.DataFrame:
        """Return a pandas frame: one row each, nested values under dotted names, and ``where``."""
        import pandas

        rows = [
            {**receipt.model_dump(), "where": where_of(entry)}
            for receipt, entry in zip(self, self._entries, strict=True)
        ]
        if not rows:
            return pandas.DataFrame(columns=[*Receipt.model_fields, "where"])
        frame = pandas.json_normalize(rows)
        frame["time"] = pandas.to_datetime(frame["time"], utc=True, format="ISO8601")
        return frame

    def table(self, *, most: int = _SHOWN) -> Table:
        """Return the newest receipts as a table, the newest last; damaged files stand below.

        Args:
            most: Rows at most; the caption says when there are more.
        """
        from workbench.figures import Table

        shown = self._entries[-most:] if most > 0 else ()
        rows = [_row(entry) for entry in shown]
        rows += [_damaged_row(item) for item in self.damaged if not item.newer]
        columns = {
            "time": "time (UTC)",
            "what": "what",
            "model": "model",
            "engine": "engine",
            "quantization": "quantization",
            "outcome": "outcome",
            "result": "result",
            "where": "where",
            "id": "id",
        }
        return Table(rows, columns=columns, caption=self._caption(len(shown)))

    def _caption(self, shown: int) -> str:
        count = len(self._entries)
        text = f"{count} receipt{'' if count == 1 else 's'}"
        if shown < count:
            text = f"The latest {shown} of {text}"
        kinds = collections.Counter(item.newer for item in self.damaged)
        if kinds[False]:
            text += f", {kinds[False]} damaged"
        if kinds[True]:
            text += f"\nWarning: {kinds[True]} of a newer schema not shown; update the workbench."
        return text

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.table()._repr_mimebundle_()


def _row(entry: Entry) -> dict[str, Any]:
    receipt = read(entry.path)
    return {
        "time": f"{entry.moment.astimezone(dt.UTC):%Y-%m-%d %H:%M}",
        "what": receipt.what,
        "model": receipt.model,
        "engine": receipt.engine,
        "quantization": receipt.quantization,
        "outcome": receipt.outcome,
        "result": _result(receipt.result),
        "where": where_of(entry),
        "id": receipt.id,
        "failed": receipt.reason or "no reason" if receipt.outcome == "failed" else None,
    }


def _damaged_row(item: Damaged) -> dict[str, Any]:
    return {"model": item.path.name, "outcome": "damaged", "failed": item.reason}


def _result(result: Mapping[str, Any]) -> str | None:
    """Return the first plain numbers of a result, those that most receipts have before others."""
    numbers = {
        name: value
        for name, value in result.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    order = [*(name for name in _TOLD if name in numbers), *numbers]
    told = [_number(name, numbers[name]) for name in dict.fromkeys(order)]
    return ", ".join(told[:2]) or None


def _number(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return f"{name.removesuffix('_bytes').replace('_', ' ')} {value / 1e9:.3g} GB"
    if name.endswith("_seconds"):
        return f"{name.removesuffix('_seconds').replace('_', ' ')} {value:.3g} s"
    return f"{name.replace('_', ' ')} {value:.4g}"
