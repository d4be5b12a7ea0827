"""One accelerator, and a number of bytes as a person writes it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from workbench.settings import Settings

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
SIZE = r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?"
_SIZE = re.compile(SIZE, re.IGNORECASE)


def bytes_of(value: Any) -> Any:
    """Return "24GB" as bytes, where GB, GiB and G are all 2**30; what is no text stays as it is.

    Memory is sold in powers of two: a card of "24 GB" has 24 GiB, less what its driver keeps.

    Raises:
        ValueError: The text is no size.
    """
    if not isinstance(value, str):
        return value
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"{value!r} is no size such as 24GB")
    return int(float(found[1]) * (1 << _UNITS[found[2].upper()]))


Bytes = Annotated[int, BeforeValidator(bytes_of), Field(ge=0)]


class Device(Settings):
    """One accelerator."""

    kind: Literal["cuda", "mps"]
    """``cuda`` or ``mps``."""
    name: str
    """What the driver calls it."""
    total_bytes: Bytes | None = None
    """Its memory; all of the computer's where that is unified."""
    free_bytes: Bytes | None = None
    """What was free of it when it was asked, other processes counted; None where unknown."""
    compute_capability: tuple[int, int] | None = None
    """CUDA's number of the architecture, for example (8, 9)."""
    unified: bool = False
    """Whether it shares the computer's memory."""
    working_set_bytes: Bytes | None = None
    """The most that its driver recommends to use of unified memory; None where that is no limit."""

    @property
    def usable_bytes(self) -> int | None:
        """The most that one may plan with when nothing else runs: working set, else all."""
        return self.total_bytes if self.working_set_bytes is None else self.working_set_bytes

    @property
    def label(self) -> str:
        """Return name, memory and compute capability in one line."""
        parts = [self.name]
        if self.total_bytes is not None:
            free = "" if self.free_bytes is None else f"{gib(self.free_bytes)} free of "
            shared = " shared with the processor" if self.unified else ""
            parts.append(f"{free}{gib(self.total_bytes)} GiB{shared}")
        if self.working_set_bytes is not None:
            parts.append(f"at most {gib(self.working_set_bytes)} GiB recommended")
        if self.compute_capability is not None:
            parts.append("compute capability {}.{}".format(*self.compute_capability))
        return ", ".join(parts)


def gib(size: int) -> str:
    """Return bytes as GiB with one decimal."""
    return f"{size / (1 << 30):.1f}"
