"""What the doctor found: one row per engine and form, and how to mend what is broken."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from workbench.doctor.remedies import Verdict
from workbench.errors import InputError
from workbench.figures import Table
from workbench.machine import Machine

BROKEN: tuple[Verdict, ...] = ("fails", "wrong")
ALL = "all"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One engine and quantization on this machine.

    Attributes:
        engine: Name of the engine.
        quantization: The form, ``none``, or ``all`` where the finding is of the whole engine.
        verdict: ``runs``, ``imports``, ``wrong``, ``fails``, ``missing`` or ``unsupported``.
        reason: Why, or what is to be known of it.
        mend: The command that mends it, or a sentence.
        device: Where it ran.
        seconds: Loading and answering; a conversion before it is not counted.
        answers: What the model answered.
        receipt: File of the receipt, or None when none could be written.
    """

    engine: str
    quantization: str
    verdict: Verdict
    reason: str = ""
    mend: str = ""
    device: str | None = None
    seconds: float | None = None
    answers: tuple[str, ...] = ()
    receipt: Path | None = None

    @property
    def broken(self) -> bool:
        """Whether it is installed and yet does not work."""
        return self.verdict in BROKEN


class Diagnosis:
    """Every check; displays itself.

    Attributes:
        checks: In the order of the engines.
        machine: Where this was.
    """

    def __init__(self, checks: tuple[Check, ...], machine: Machine) -> None:
        self.checks = checks
        self.machine = machine

    @property
    def ok(self) -> bool:
        """Whether nothing that is installed is broken; a missing optional package is no failure."""
        return not self.broken

    @property
    def broken(self) -> tuple[Check, ...]:
        """The checks of what is installed and does not work."""
        return tuple(check for check in self.checks if check.broken)

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def __len__(self) -> int:
        return len(self.checks)

    def __getitem__(self, form: tuple[str, str]) -> Check:
        """Return the check of an engine and a quantization.

        Raises:
            InputError: It was not checked.
        """
        engine, quantization = form
        for check in self.checks:
            if check.engine == engine and check.quantization in (quantization, ALL):
                return check
        raise InputError(f"{engine} with {quantization} was not checked.")

    def table(self) -> Table:
        """Return one row per check, the broken ones marked."""
        rows = [
            {
                "engine": check.engine,
                "quantization": check.quantization,
                "verdict": check.verdict,
                "device": check.device,
                "seconds": check.seconds,
                **({"failed" if check.broken else "note": check.reason} if check.reason else {}),
            }
            for check in self.checks
        ]
        good = sum(check.verdict in ("runs", "imports") for check in self.checks)
        word = "imported" if all(c.verdict != "runs" for c in self.checks) else "run"
        caption = f"{good} of {len(self.checks)} forms {word} here; {self.machine.summary()}"
        return Table(rows, caption=caption, formats={"seconds": ".2f"} if rows else None)

    def remedies(self) -> Table:
        """Return one row per command or advice, with the forms that it mends."""
        forms: dict[str, list[str]] = {}
        for check in self.checks:
            if check.mend:
                forms.setdefault(check.mend, []).append(f"{check.engine} {check.quantization}")
        rows = [{"for": _some(names), "do": mend} for mend, names in forms.items()]
        return Table(rows, columns=["for", "do"], caption="To mend it")

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        tables = [self.table()] + ([remedies] if len(remedies := self.remedies()) else [])
        return {
            "text/plain": "\n\n".join(str(table) for table in tables),
            "text/html": "".join(table.html() for table in tables),
        }

    def __repr__(self) -> str:
        return self._repr_mimebundle_()["text/plain"]


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} others"
