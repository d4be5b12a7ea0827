"""The ledger: estimates beside the measurements of receipts, and the estimator's own error."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from workbench.errors import InputError, did_you_mean
from workbench.figures import Table
from workbench.memory.estimate import Estimate, Place
from workbench.paths import outputs
from workbench.receipts import receipts

Moment = Literal["load", "train"]
KEY = "ledger"
"""Where the result of a receipt holds what ``beside`` made."""
LEAST = 3
"""Measurements from which a band is told."""
SMALL = 2**30
"""Bytes below which constant costs of a process rule the error: it says nothing of larger ones."""
_BY = ("engine", "quantization", "family", "device", "moment", "model")
_QUANTILES = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One estimate beside its measurement.

    Attributes:
        model: Card id.
        family: The card's family, or None.
        engine: Engine.
        quantization: Form of the weights.
        device: ``cpu``, ``cuda`` or ``mps``.
        moment: ``load``, or ``train`` for the peak of a training.
        counter: How it was measured, in words.
        estimated_bytes: The part of the estimate that this measurement sees.
        measured_bytes: The measurement.
        conditions: Context, batch, dtype and so on.
        time: When, ISO 8601.
        receipt: Identity of the receipt.
    """

    model: str
    family: str | None
    engine: str | None
    quantization: str | None
    device: str
    moment: str
    counter: str
    estimated_bytes: int
    measured_bytes: int
    conditions: Mapping[str, Any]
    time: str
    receipt: str

    @property
    def ratio(self) -> float:
        """Measured by estimated, 1 where they agree."""
        return self.measured_bytes / self.estimated_bytes

    @property
    def error(self) -> float:
        """Estimated by measured less 1: above 0 the estimate was too high."""
        return self.estimated_bytes / self.measured_bytes - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """What the measured errors say of a new estimate.

    Attributes:
        low: Least of measured by estimated (the lowest tenth).
        high: Greatest of it (the highest tenth).
        count: Measurements.
        source: Where it is from, in words.
    """

    low: float
    high: float
    count: int
    source: str

    def around(self, estimate: Estimate) -> Estimate:
        """Return the estimate with this band around its total."""
        total = estimate.total("device") or estimate.total("host")
        return estimate.with_band(int(total * self.low), int(total * self.high), source=self.source)


class Ledger:
    """Estimates beside measurements; displays the error by engine, quantization and family."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def where(self, **conditions: str | None) -> Ledger:
        """Return the entries whose fields equal all conditions.

        Raises:
            InputError: There is no such field.
        """
        for name in conditions:
            if name not in _BY:
                raise InputError(f"A ledger has no column {name!r}.", hint=did_you_mean(name, _BY))
        return Ledger(
            [
                entry
                for entry in self.entries
                if all(getattr(entry, name) == value for name, value in conditions.items())
            ]
        )

    def band(
        self,
        engine: str,
        quantization: str,
        family: str | None,
        device: str,
        *,
        moment: Moment = "load",
    ) -> Band | None:
        """Return what the errors so far say of a new estimate.

        The model's own family is asked first, then all models whose memory is not ruled by
        constant costs; below three measurements nothing is said.

        Returns:
            The band, or None: not yet measured here.
        """
        same = self.where(engine=engine, quantization=quantization, device=device, moment=moment)
        own = [entry for entry in same if family is not None and entry.family == family]
        large = [entry for entry in same if entry.measured_bytes >= SMALL]
        for entries, of in ((own, f"of {family}"), (large, "of all families")):
            if len(entries) >= LEAST:
                ratios = sorted(entry.ratio for entry in entries)
                cut = statistics.quantiles(ratios, n=_QUANTILES, method="inclusive")
                return Band(
                    low=cut[0],
                    high=cut[-1],
                    count=len(ratios),
                    source=f"{len(ratios)} measurements here {of}",
                )
        return None

    def table(self, by: Sequence[str] = ("engine", "quantization", "family", "device")) -> Table:
        """Return one row per group: number of measurements, median and worst error in percent.

        Raises:
            InputError: There is no such column.
        """
        for name in by:
            if name not in _BY:
                raise InputError(f"A ledger has no column {name!r}.", hint=did_you_mean(name, _BY))
        groups: dict[tuple[Any, ...], list[Entry]] = {}
        for entry in self.entries:
            groups.setdefault(tuple(getattr(entry, name) for name in by), []).append(entry)
        rows = [
            {
                **dict(zip(by, key, strict=True)),
                "count": len(entries),
                "median_error_%": 100 * statistics.median(entry.error for entry in entries),
                "worst_error_%": 100 * max((entry.error for entry in entries), key=abs),
                "largest_GiB": max(entry.measured_bytes for entry in entries) / 2**30,
            }
            for key, entries in sorted(groups.items(), key=lambda group: str(group[0]))
        ]
        formats = {"median_error_%": "+.1f", "worst_error_%": "+.1f", "largest_GiB": ".3f"}
        return Table(rows, caption=self._caption(), formats=formats if rows else None)

    def rows(self) -> Table:
        """Return every entry as a row, the newest last."""
        rows = [
            {
                "model": entry.model,
                "engine": entry.engine,
                "quantization": entry.quantization,
                "device": entry.device,
                "moment": entry.moment,
                "estimated_MB": entry.estimated_bytes / 1e6,
                "measured_MB": entry.measured_bytes / 1e6,
                "error_%": 100 * entry.error,
                "counter": entry.counter,
            }
            for entry in self.entries
        ]
        formats = {"estimated_MB": ".1f", "measured_MB": ".1f", "error_%": "+.1f"}
        return Table(rows, caption=self._caption(), formats=formats if rows else None)

    def _caption(self) -> str:
        if not self.entries:
            return "Ledger: nothing measured yet; every load and fine-tuning adds a line"
        return (
            f"Ledger: {len(self.entries)} estimates beside their measurements; "
            "an error above 0 is an estimate too high"
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.table()._repr_mimebundle_()


def beside(
    estimate: Estimate,
    measured_bytes: int,
    *,
    moment: Moment,
    counter: str,
    device: str,
    family: str | None,
) -> dict[str, Any] | None:
    """Return what a receipt keeps of an estimate and its measurement, None where nothing compares.

    Args:
        estimate: Made before.
        measured_bytes: Growth of the process at a load, or peak of a training.
        moment: ``load`` or ``train``.
        counter: How it was measured, in words.
        device: Where the weights lie.
        family: The card's family.
    """
    seen = seen_bytes(estimate, moment=moment, device=device)
    if seen <= 0 or measured_bytes <= 0:
        return None
    return {
        "moment": moment,
        "device": device,
        "family": family,
        "counter": counter,
        "estimated_bytes": seen,
        "measured_bytes": int(measured_bytes),
        "error": round(seen / measured_bytes - 1, 4),
    }


def seen_bytes(estimate: Estimate, *, moment: Moment, device: str) -> int:
    """Return the part of an estimate that a measurement sees.

    At a load that is the weights and what an engine fills before the first prompt: llama.cpp
    clears its cache, and on a GPU it also allocates its buffers, which a CPU only touches when they
    are used. A training is seen at its peak, without what the driver or the process books besides.
    """
    if moment == "train":
        return estimate.total("host" if device == "cpu" else "device", what="allocated")
    place: Place = "host" if device == "cpu" else "device"
    found = estimate.total(place, what="allocated", group="weights")
    if estimate.conditions.get("engine") == "llama.cpp":
        found += estimate.total(place, group="cache")
        found += estimate.total("device", group="compute")
    return found


def ledger(*, folder: Path | None = None) -> Ledger:
    """Return the estimates beside the measurements of this machine, oldest first.

    Args:
        folder: Receipts of this folder, wherever measured; default is this machine's own.
    """
    found = receipts(folder=folder) if folder else receipts(where="here")
    return Ledger([entry for receipt in found if (entry := _entry(receipt)) is not None])


def banded(
    estimate: Estimate,
    *,
    engine: str,
    quantization: str,
    family: str | None,
    device: str,
    moment: Moment = "load",
) -> Estimate:
    """Return the estimate with the band that this machine's measurements put around it, if any."""
    here = outputs("receipts", "x").parent
    try:
        changed = here.stat().st_mtime_ns
    except FileNotFoundError:
        return estimate
    found = _of_folder(str(here), changed).band(engine, quantization, family, device, moment=moment)
    return estimate if found is None else found.around(estimate)


@functools.lru_cache(maxsize=4)
def _of_folder(folder: str, changed: int) -> Ledger:
    """Return this machine's ledger, read again when a receipt was added."""
    return ledger()


def _entry(receipt: Any) -> Entry | None:
    values = receipt.result.get(KEY)
    if receipt.outcome != "done" or not isinstance(values, Mapping):
        return None
    try:
        estimated, measured = int(values["estimated_bytes"]), int(values["measured_bytes"])
        if estimated <= 0 or measured <= 0:
            return None
        return Entry(
            model=receipt.model,
            family=values.get("family"),
            engine=receipt.engine,
            quantization=receipt.quantization,
            device=str(values["device"]),
            moment=str(values["moment"]),
            counter=str(values["counter"]),
            estimated_bytes=estimated,
            measured_bytes=measured,
            conditions={
                name: receipt.plan.get(name) for name in ("context", "batch", "dtype", "cache_type")
            },
            time=receipt.time,
            receipt=receipt.id,
        )
    except (KeyError, TypeError, ValueError):
        return None  # a receipt of another kind, or written by hand
