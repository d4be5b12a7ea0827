"""An estimate: named parts, each with its bytes and the rule that gave them, as plain data."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping
from typing import Any, Literal, get_args

from workbench.errors import InputError
from workbench.figures import Figure, Table, show_with_figure, stacked

Place = Literal["device", "host"]
Group = Literal[
    "weights",
    "cache",
    "compute",
    "activations",
    "logits",
    "gradients",
    "optimizer",
    "overhead",
]
Counter = Literal["allocated", "reserved", "process"]
GROUPS: tuple[Group, ...] = get_args(Group)
COUNTERS: tuple[Counter, ...] = get_args(Counter)
GIB = 2**30
NOT_MEASURED = "not yet measured here"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of an estimate.

    Attributes:
        name: What it is, in two or three words.
        bytes: Its size.
        rule: How the bytes come about, with the numbers that went in.
        place: ``device`` (GPU, or unified memory) or ``host`` (RAM). On a CPU all is ``host``.
        group: What kind of memory it is; the figure stacks by it.
        counter: The first measurement that sees it: ``allocated`` (live tensors and buffers, as
            ``torch.cuda.max_memory_allocated`` counts), ``reserved`` (the allocator's pool),
            ``process`` (what the driver or the operating system books for the process).
    """

    name: str
    bytes: int
    rule: str
    place: Place = "device"
    group: Group = "weights"
    counter: Counter = "allocated"

    def __post_init__(self) -> None:
        if self.bytes < 0:
            raise InputError(f"The part {self.name!r} has {self.bytes} bytes.")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The memory of one way to run or train a model, at its peak.

    Attributes:
        label: Model, engine and form, for tables.
        parts: What is there at the moment of the peak.
        conditions: What was assumed: engine, quantization, context and so on, as plain data.
        notes: What a reader should know, in sentences.
        uncertain: Why the figure may be far off, or None where every rule was checked.
        band: Least and greatest bytes of ``total()`` by the errors measured so far, or None.
        band_from: Where the band is from, for example ``12 receipts of this machine``.
    """

    label: str
    parts: tuple[Part, ...]
    conditions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    uncertain: str | None = None
    band: tuple[int, int] | None = None
    band_from: str = ""

    def total(
        self,
        place: Place | None = "device",
        *,
        what: Counter = "process",
        group: Group | None = None,
    ) -> int:
        """Return bytes of a place, as one kind of measurement would see them.

        Args:
            place: ``device`` or ``host``; None takes both.
            what: ``allocated`` leaves out the allocator's slack and the runtime's own memory,
                ``reserved`` the runtime's own, ``process`` nothing.
            group: Only this kind of memory.
        """
        seen = COUNTERS[: COUNTERS.index(what) + 1]
        return sum(
            part.bytes
            for part in self.parts
            if place in (None, part.place)
            and part.counter in seen
            and (group is None or part.group == group)
        )

    @property
    def weights(self) -> int:
        """Bytes of the weights, wherever they lie."""
        return self.total(None, group="weights")

    @property
    def cache(self) -> int:
        """Bytes of KV cache and state, wherever they lie."""
        return self.total(None, group="cache")

    def part(self, name: str) -> Part | None:
        """Return the part of this name, or None."""
        return next((part for part in self.parts if part.name == name), None)

    def with_band(self, low: int, high: int, *, source: str) -> Estimate:
        """Return the estimate with the band that measured errors put around ``total()``."""
        return dataclasses.replace(self, band=(low, high), band_from=source)

    def describe(self) -> dict[str, Any]:
        """Return the estimate as plain data for receipts and files."""
        data = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "parts"
        }
        return {
            **data,
            "conditions": dict(self.conditions),
            "notes": list(self.notes),
            "band": list(self.band) if self.band else None,
            "parts": [dataclasses.asdict(part) for part in self.parts],
        }

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Estimate:
        """Return the estimate that ``describe`` wrote.

        Raises:
            InputError: A key is missing or unknown.
        """
        try:
            parts = tuple(Part(**part) for part in data["parts"])
            band = data.get("band")
            return cls(
                **{
                    **data,
                    "parts": parts,
                    "notes": tuple(data.get("notes", ())),
                    "band": (band[0], band[1]) if band else None,
                }
            )
        except (KeyError, TypeError, IndexError) as error:
            raise InputError(
                f"This is no estimate: {error}.", hint="Give what describe() returned."
            ) from None

    def table(self) -> Table:
        """Return the parts as rows, the largest first, with the totals last."""
        ordered = sorted(self.parts, key=lambda part: (part.place, -part.bytes))
        rows = [
            {"part": part.name, "GiB": part.bytes / GIB, "where": part.place, "rule": part.rule}
            for part in ordered
            if part.bytes
        ]
        rows += [
            {
                "part": "total",
                "GiB": self.total(place) / GIB,
                "where": place,
                "rule": self.certainty() if place == self._main_place() else "",
            }
            for place in self._places()
        ]
        return Table(rows, caption=self.label, formats={"GiB": _gib})

    def figure(self) -> Figure:
        """Return the parts as stacked bars, one bar for each place."""
        data: dict[str, dict[str, float]] = {
            group: {place: self.total(place, group=group) / GIB for place in self._places()}
            for group in GROUPS
            if self.total(None, group=group)
        }
        return stacked(
            data or {"nothing": {"device": 0.0}},
            title=f"Memory: {self.label}",
            y_title="memory",
            unit="GiB",
        )

    def certainty(self) -> str:
        """Return in a sentence how far the figure was checked."""
        if self.band is not None:
            low, high = (_gib(value / GIB) for value in self.band)
            return f"{low} to {high} GiB by {self.band_from or 'measurements'}"
        return f"{NOT_MEASURED}; uncertain: {self.uncertain}" if self.uncertain else NOT_MEASURED

    def summary(self) -> str:
        """Return one line: totals by place and how far they were checked."""
        totals = [f"{_gib(self.total(place) / GIB)} GiB {place}" for place in self._places()]
        return f"{self.label}: {', '.join(totals) or 'nothing'} ({self.certainty()})"

    def _places(self) -> list[Place]:
        both: tuple[Place, ...] = get_args(Place)
        return [place for place in both if self.total(place)]

    def _main_place(self) -> Place:
        return "device" if self.total("device") else "host"

    def __str__(self) -> str:
        return "\n".join([str(self.table()), self.summary(), *self.notes])

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        said = "".join(f"<div>{html.escape(line)}</div>" for line in (self.summary(), *self.notes))
        return {"text/plain": str(self), "text/html": f"{self.table().html()}{said}"}

    def _ipython_display_(self) -> None:
        show_with_figure(self._repr_mimebundle_(), self.figure())


def _gib(value: float) -> str:
    """Return GiB with three digits that matter, and no more than that below a thousandth."""
    return f"{value:,.2f}" if value >= 1 else f"{value:.3f}"
