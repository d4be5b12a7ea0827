"""Parity: hold each form of a model against the one before it, and name the first that fails."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.catalog import Card, locate, resolve
from workbench.engines import Model, load
from workbench.errors import InputError, ParityError, WorkbenchError
from workbench.evaluate.agreement import (
    Agreement,
    Reference,
    compare_references,
    compare_to_reference,
    held_out,
    write_reference,
)
from workbench.export.adapter import read_adapter
from workbench.export.limits import Limit, limit_of
from workbench.figures import Figure, Table, bar
from workbench.messages import Conversation, as_messages
from workbench.paths import cache, sweep_partials
from workbench.progress import progress
from workbench.receipts import Receipt, write

FLOATS = ("F32", "F16", "BF16")
_SMALL_BYTES = 64_000_000
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One form held against another.

    Attributes:
        form: ``merged``, ``F16``, ``Q4_K_M``, ...
        against: The form it is held against.
        limit: What it must keep.
        agreement: What was measured, or None when it could not be.
        broken: The figure outside its limit, or the reason of a failure; None when all is kept.
    """

    form: str
    against: str
    limit: Limit
    agreement: Agreement | None = None
    broken: str | None = None

    def row(self) -> dict[str, Any]:
        """Return the hop as one row of the table."""
        row: dict[str, Any] = {"form": self.form, "against": self.against}
        found = self.agreement
        if found is None:
            return {**row, "failed": self.broken}
        equal = (
            "equal" if found.prompt_ids_equal else f"{found.prompts - found.prompts_equal} differ"
        )
        return {
            **row,
            "tokens": found.tokens,
            "prompt_ids": equal,
            "top1": found.top1,
            "least_top1": self.limit.top1,
            "mean_kl": found.mean_kl,
            "most_kl": self.limit.mean_kl,
            "p99_kl": found.p99_kl,
            "perplexity": found.perplexity,
            "ratio": found.perplexity_ratio,
            "answers": f"{found.answers_equal} of {found.answers}",
            "first_divergence": str(found.first_divergence or "none"),
            "verdict": f"outside: {self.broken}" if self.broken else "within its limits",
        }


_COLUMNS = {
    "form": "form", "against": "against", "tokens": "tokens", "prompt_ids": "prompt ids",
    "top1": "top-1", "least_top1": "limit", "mean_kl": "mean KL (nats)", "most_kl": "limit",
    "perplexity": "perplexity", "ratio": "ratio", "answers": "equal greedy answers",
    "first_divergence": "first divergence", "verdict": "verdict",
}  # fmt: skip
_FORMATS = {
    "top1": ".2%", "least_top1": ".1%", "mean_kl": ".2e", "most_kl": "g", "perplexity": ".4f",
    "ratio": ".5f",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The chain of forms, each held against the one before; displays itself as a table.

    Attributes:
        model: Name of the model.
        hops: In order: adapter to merged, merged to the float GGUF, that to each quantization.
    """

    model: str
    hops: tuple[Hop, ...]

    @property
    def broken(self) -> Hop | None:
        """The first hop outside its limit, or None."""
        return next((hop for hop in self.hops if hop.broken), None)

    @property
    def ok(self) -> bool:
        """Whether every hop keeps its limits."""
        return self.broken is None

    def require(self) -> None:
        """Raise when a hop is outside its limit.

        Raises:
            ParityError: Names the hop, the figure and the limit.
        """
        hop = self.broken
        if hop is not None:
            raise ParityError(
                f"{self.model}: the hop from {hop.against} to {hop.form} is broken: {hop.broken}.",
                hint="Everything before this hop keeps its limits; look at what made this form.",
            )

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each hop, as plain data."""
        return [hop.row() for hop in self.hops]

    def table(self) -> Table:
        """Return the hops as a table."""
        rows = self.rows()
        known = {name for row in rows for name in row}
        return Table(
            rows,
            columns={name: title for name, title in _COLUMNS.items() if name in known},
            caption=f"{self.model}: each form against the one before it",
            formats={name: form for name, form in _FORMATS.items() if name in known},
        )

    def figure(self) -> Figure:
        """Return how much of its limits each form uses, in percent."""
        shares: dict[str, dict[str, float]] = {"mean KL": {}, "top-1": {}, "perplexity": {}}
        for hop in self.hops:
            found, limit = hop.agreement, hop.limit
            if found is not None:
                shares["mean KL"][hop.form] = 100 * found.mean_kl / limit.mean_kl
                shares["top-1"][hop.form] = 100 * (1 - found.top1) / (1 - limit.top1)
                off = abs(found.perplexity_ratio - 1)
                shares["perplexity"][hop.form] = 100 * off / limit.perplexity
        return bar(
            shares, title="Share of each limit that is used", y_title="share of the limit", unit="%"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the whole chain as plain data."""
        return {
            "model": self.model,
            "ok": self.ok,
            "hops": [
                {
                    "form": hop.form,
                    "against": hop.against,
                    "limit": hop.limit.model_dump(exclude={"moe"}),
                    "agreement": hop.agreement.as_dict() if hop.agreement else None,
                    "broken": hop.broken,
                }
                for hop in self.hops
            ],
        }

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        bundle: dict[str, str] = self.table()._repr_mimebundle_(**options)
        return bundle


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """One form: how to load it, and what it is held against."""

    name: str
    load: Mapping[str, Any]
    against: str | None = None
    limit: Limit | None = None


def parity(
    model: str | Path | Card | None = None,
    *,
    adapter: str | Path | None = None,
    merged: str | Path | None = None,
    ggufs: Mapping[str, str | Path] | None = None,
    conversations: Sequence[Conversation] | None = None,
    dtype: str = "fp32",
) -> Parity:
    """Measure how far the forms of one model agree, each in a process of its own.

    The chain is: adapter on its base, merged model, float GGUF, and each quantized GGUF against
    the float GGUF. All positions of the rendered conversations count.

    Args:
        model: The base of ``adapter``; without an adapter the safetensors model that the GGUF
            files were made from.
        adapter: Folder of a LoRA adapter.
        merged: Folder of the merged model.
        ggufs: Form to file, for example ``{"F16": ..., "Q4_K_M": ...}``.
        conversations: What to measure on; default are the held-out conversations that ship.
        dtype: Compute dtype of the safetensors forms; fp32 is exact.

    Returns:
        The hops with their figures and limits; ``require()`` raises when one is broken.

    Raises:
        InputError: There is nothing to compare.
    """
    talks = [as_messages(each) for each in conversations] if conversations else held_out()
    name, forms = _chain(model, adapter, merged, ggufs or {}, dtype)
    measured: list[Hop] = []
    folder = cache("parity", "x").parent
    sweep_partials(folder)
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=f".partial-{os.getpid()}-") as scratch,
        progress(f"Parity of {name}", total=len(forms), unit="forms", even=False) as bar_shown,
    ):
        references: dict[str, Reference] = {}
        for form in forms:
            bar_shown.advance(0, note=form.name)
            hop = _measure(form, forms, references, talks, Path(scratch))
            measured += [hop] if hop else []
            bar_shown.advance()
    result = Parity(model=name, hops=tuple(measured))
    _leave_receipt(result)
    return result


def _measure(
    form: _Form,
    forms: Sequence[_Form],
    references: dict[str, Reference],
    talks: Sequence[Conversation],
    scratch: Path,
) -> Hop | None:
    """Load one form, hold it against its reference, keep what later forms need of it."""
    before = references.get(form.against or "")
    try:
        if form.against is not None and before is None:
            raise InputError(f"{form.against} could not be measured.")
        with load(**form.load, isolate=True) as opened:
            needed = any(later.against == form.name for later in forms)
            found = _agreement(opened, form, needed, before, references, talks, scratch)
    except WorkbenchError as error:
        if form.against is None or form.limit is None:
            raise
        return Hop(form=form.name, against=form.against, limit=form.limit, broken=str(error))
    if form.against is None or form.limit is None or found is None:
        return None
    return Hop(
        form=form.name,
        against=form.against,
        limit=form.limit,
        agreement=found,
        broken=form.limit.broken(found),
    )


def _agreement(
    opened: Model,
    form: _Form,
    needed: bool,
    before: Reference | None,
    references: dict[str, Reference],
    talks: Sequence[Conversation],
    scratch: Path,
) -> Agreement | None:
    if not needed:
        return compare_to_reference(opened, before) if before else None
    path = scratch / f"{form.name}.npy"
    references[form.name] = write_reference(opened, talks, path, like=before)
    return compare_references(before, references[form.name]) if before else None


def _chain(
    model: str | Path | Card | None,
    adapter: str | Path | None,
    merged: str | Path | None,
    ggufs: Mapping[str, str | Path],
    dtype: str,
) -> tuple[str, list[_Form]]:
    """Return the model's name and the forms in order of measuring."""
    exact = {"engine": "transformers", "dtype": dtype, "attn_implementation": "eager"}
    forms: list[_Form] = []
    config: Path | None = None
    label = ""
    if adapter is not None:
        found = read_adapter(adapter, base=model)
        config, label = found.base_files.path, found.folder.name
        forms.append(
            _Form(name="adapter", load={**exact, "model": found.base, "adapter": found.folder})
        )
    source = merged if merged is not None else (model if adapter is None else None)
    if source is not None:
        card = resolve(source)
        config, label = locate(card).path, label or card.id
        against = "adapter" if adapter is not None else None
        form = "merged" if merged is not None else "source"
        limit = limit_of("merged", moe=_is_moe(config)) if against else None
        forms.append(_Form(name=form, load={**exact, "model": card}, against=against, limit=limit))
    forms += _gguf_forms(ggufs, forms, moe=config is not None and _is_moe(config))
    if len(forms) < 2:
        raise InputError(
            "Parity needs at least two forms of a model.", hint="Give merged= or ggufs= as well."
        )
    return label or Path(next(iter(ggufs.values()))).stem, forms


def _gguf_forms(
    ggufs: Mapping[str, str | Path], before: Sequence[_Form], *, moe: bool
) -> list[_Form]:
    """Return the GGUF forms: floats first, held against the source; the others against a float."""
    names = sorted(ggufs, key=lambda name: name not in FLOATS)  # stable: else as given
    source = before[-1].name if before else None
    first = next((name for name in names if name in FLOATS), None)
    forms = []
    for name in names:
        path = Path(ggufs[name])
        against = source if name in FLOATS or first is None else first
        if against is None and name != names[0]:
            against = names[0]
        forms.append(
            _Form(
                name=name,
                load={"model": path, "engine": "llama.cpp", "threads": _threads(path)},
                against=against,
                limit=limit_of(name, moe=moe) if against else None,
            )
        )
    return forms


def _threads(path: Path) -> int | None:
    """Return 1 for a small file: it gains nothing from threads, which wait for one another busily.

    On a computer that does other work as well, two threads have been 20 times slower than one.
    """
    small = path.is_file() and path.stat().st_size < _SMALL_BYTES
    return 1 if small else None


def _is_moe(folder: Path) -> bool:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") or config
    return any((text.get(key) or 0) > 1 for key in _EXPERTS)


def _leave_receipt(found: Parity) -> None:
    hop = found.broken
    write(
        Receipt(
            what="parity",
            model=found.model,
            outcome="done" if found.ok else "failed",
            result=found.as_dict(),
            reason=f"{hop.against} to {hop.form}: {hop.broken}" if hop else None,
        )
    )
