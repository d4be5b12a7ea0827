"""Load another card where the wanted one fails: the card's own chain, each failure told."""

from __future__ import annotations

import dataclasses
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from workbench.catalog import Card, catalog
from workbench.engines.memory import give_back_memory
from workbench.errors import InputError, NotFoundError, WorkbenchError

if TYPE_CHECKING:
    from workbench.engines.model import Model

_LINES_ABOVE = 4  # from here to the caller of ``load``


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A card that could not be loaded before the one that was.

    Attributes:
        card: Its id.
        reason: What its error said.
    """

    card: str
    reason: str

    def __str__(self) -> str:
        return f"{self.card}: {self.reason}"


def with_fallback(card: Card, attempt: Callable[[Card | None, tuple[Failed, ...]], Model]) -> Model:
    """Load a card, or else the first of its fallbacks that loads.

    Args:
        card: The card that is wanted.
        attempt: Loads a card, None for the wanted one, told what failed before.

    Raises:
        InputError: An argument is wrong; no fallback would help.
        WorkbenchError: All failed. This is the first error, the others are listed in it.
    """
    first: WorkbenchError | None = None
    failed: list[Failed] = []
    for step in _steps(card):
        try:
            return attempt(step, tuple(failed))
        except WorkbenchError as error:
            if first is None and not leads_on(error):
                raise
            failed.append(Failed(card=(step or card).id, reason=error.message))
            first = first or error
            release(error)
        give_back_memory()
        warnings.warn(f"Not loaded: {failed[-1]}", UserWarning, stacklevel=_LINES_ABOVE)
    assert first is not None
    others = "; ".join(map(str, failed[1:]))
    said = f"Its fallbacks failed too: {others}" if others else "Its card names no fallback."
    first.message = f"{first.message} {said}"
    first.args = (f"{first.message} {first.hint}" if first.hint else first.message,)
    raise first


def leads_on(error: WorkbenchError) -> bool:
    """Return whether an error is of the model or the machine, not a wrong argument."""
    return isinstance(error, NotFoundError) or not isinstance(error, InputError)


def _steps(card: Card) -> Iterator[Card | None]:
    yield None
    yield from catalog().fallbacks(card)


def release(error: BaseException) -> None:
    """Let go of what the frames of an error hold: a model that is half loaded, above all."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        traceback.clear_frames(current.__traceback__)
        current = current.__cause__ or current.__context__
