"""What holds memory: the open models of this process with their bytes, listed and closed."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from workbench.engines.unload import Unload, bytes_held
from workbench.figures import Table
from workbench.progress import duration

if TYPE_CHECKING:
    from workbench.engines.model import Model


class LoadedModels:
    """The open models, displayed as a table; held weakly, so that this list keeps none alive."""

    def __init__(self, models: Iterable[Model]) -> None:
        self._references = [weakref.ref(model) for model in models]

    def __iter__(self) -> Iterator[Model]:
        for reference in self._references:
            model = reference()
            if model is not None and not model.closed:
                yield model

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, index: int) -> Model:
        return list(self)[index]

    def close(self) -> Unloads:
        """Close every model in the list and return what came back of each."""
        return Unloads(found for found in [model.close() for model in self] if found is not None)

    def table(self) -> Table:
        """Return the models as a table: what each holds now, where, and for how long."""
        return Table([_row(model) for model in self], caption="Loaded models")

    def __repr__(self) -> str:
        return str(self.table()) if len(self) else "No model is loaded."

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        if not len(self):
            return {"text/plain": repr(self), "text/html": f"<div>{self!r}</div>"}
        return self.table()._repr_mimebundle_()


class Unloads(tuple[Unload, ...]):
    """What closing several models gave back; displays itself."""

    __slots__ = ()

    @property
    def freed(self) -> bool:
        """Whether everything came back."""
        return all(each.freed for each in self)

    def table(self) -> Table:
        """Return it as a table of models and places."""
        rows = [{"model": each.model, **row} for each in self for row in each.table()]
        return Table(
            rows,
            columns={"model": "model", **(self[0].table().columns if self else {})}
            if rows
            else None,
            caption="Unloaded",
            formats=self[0].table().formats if rows else None,
        )

    def __repr__(self) -> str:
        return str(self.table()) if self else "Nothing was loaded."

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.table()._repr_mimebundle_()


def _row(model: Model) -> dict[str, Any]:
    size, how = memory_of(model)
    return {
        "model": model.label,
        "where": f"process {model.pid}" if model.pid else "this process",
        "holds": f"{size / 1e6:,.1f} MB",
        "by": how,
        "weights on disk": f"{model.loading.weight_bytes / 1e6:,.1f} MB",
        "context": model.plan.context,
        "age": duration(time.monotonic() - model.since),
    }


def memory_of(model: Model) -> tuple[int, str]:
    """Return the bytes that an open model holds now, and what says so.

    A process of its own is asked for its resident set and its share of the GPU, a tree of tensors
    for their sizes; of other models it is known what loading them added.
    """
    size = bytes_held(model._session)
    if size is not None:
        if model.pid:
            return size, "its process" if size else "its process, which has ended"
        return size, "its tensors"
    grown = model.grown
    added = (grown.host_bytes + (grown.device_bytes or 0)) if grown else model.loading.rss_bytes
    return max(0, added), "added by loading"
