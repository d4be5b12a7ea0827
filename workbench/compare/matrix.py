"""The matrix model x form: which cells there are, in which order, and the comparison they make."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from workbench.catalog import Card, locate, resolve
from workbench.compare.comparison import Comparison
from workbench.compare.work import Cell, Work
from workbench.errors import InputError, MissingPackageError, UnsupportedError, did_you_mean
from workbench.evaluate.agreement import held_out
from workbench.evaluate.form import Form, read_forms
from workbench.evaluate.phases import EMBEDDED, warm_up_for
from workbench.evaluate.speed import OUTPUT_TOKENS, PROMPT_LENGTHS
from workbench.evaluate.tasks import MAX_TOKENS, Prompt, load_prompts
from workbench.formats.cache import content_key
from workbench.machine import machine
from workbench.paths import outputs, sha256
from workbench.planning import Plan, plan
from workbench.progress import Bar
from workbench.progress import progress as show_progress
from workbench.settings import Settings

Model = str | Path | Card


class CompareSettings(Settings):
    """How each cell is measured; all cells of a comparison share these."""

    repetitions: int = Field(default=3, ge=1)
    """Measured repetitions of each speed, after one warm-up."""
    max_tokens: int = Field(default=MAX_TOKENS, ge=1)
    """Most new tokens of a reply to a prompt; replies are greedy."""
    prompt_lengths: tuple[int, ...] = Field(default=PROMPT_LENGTHS, min_length=1)
    """Tokens of the prompts whose prefill is timed; the shortest gives TTFT."""
    output_tokens: int = Field(default=OUTPUT_TOKENS, ge=1)
    """Tokens decoded in one repetition."""
    agreement_texts: int = Field(default=70, ge=0)
    """Conversations on which log-probabilities are compared with the reference's; 0 is none."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of every form that names none itself; None leaves it to each engine."""
    timeout: float = Field(default=1800.0, gt=0)
    """Seconds that one cell may take."""
    resume: bool = True
    """Keep the finished cells of an interrupted comparison under the same conditions."""


def compare(
    models: Model | Sequence[Model] = EMBEDDED,
    *,
    forms: Sequence[str | Mapping[str, Any] | Form] | None = None,
    prompts: str | Path | Iterable[str | Path | Prompt] | None = None,
    limit: int | None = None,
    reference: str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> Comparison:
    """Measure every form of every model, each in its own child process.

    A cell that fails (unsupported, crash, out of memory, timeout) stays with its reason, and the
    others go on. An interrupted comparison, called again, keeps the cells that were finished.

    Args:
        models: A card id, path or card, or several.
        forms: ``"engine:form"`` strings (``transformers:bf16``, ``llama.cpp:Q4_K_M``) or mappings
            (label, engine, quantization, dtype, adapter, model, context, device, gpu_layers,
            threads, options); default is ``FORMS``.
        prompts: As for ``load_prompts``; None takes all sets that ship.
        limit: Keep at most so many prompts, from each skill and language in turn.
        reference: Label of the form that the others are compared with; default is the first.
        out: Folder that keeps one JSON file a cell; the default one is removed at the end.
        progress: Show a bar.
        settings: Fields of ``CompareSettings``: repetitions, max_tokens, prompt_lengths,
            output_tokens, agreement_texts, threads, timeout, resume.

    Raises:
        InputError: An unknown form, prompt set, reference or setting.
        NotFoundError: No such model.
    """
    chosen = CompareSettings.of(settings)
    items = load_prompts(prompts, limit=limit)
    wanted = [form.with_threads(chosen.threads) for form in read_forms(forms)]
    cells = _cells(_listed(models), wanted, reference)
    conditions = _conditions(items, chosen)
    cells = [dataclasses.replace(cell, key=_key(cell, conditions)) for cell in cells]
    work = Work(
        folder=_folder(out, cells),
        conditions=conditions,
        measured=_measured(items, chosen),
        timeout=chosen.timeout,
        resume=chosen.resume,
    )
    found: dict[str, Mapping[str, Any]] = {}
    quiet = None if progress else True
    with show_progress("Comparing", total=len(cells), unit="forms", quiet=quiet) as bar:
        for cell in sorted(cells, key=lambda cell: (cell.group, not cell.is_reference)):
            others = [other for other in cells if other.group == cell.group and other is not cell]
            found[cell.label] = work.result(cell, others=others, tell=_teller(bar, cell))
            bar.advance()
    work.clear(keep_cells=out is not None)
    return Comparison(
        cells=tuple(found[cell.label] for cell in cells),
        conditions=conditions,
        folder=work.folder if out is not None else None,
    )


def _teller(bar: Bar, cell: Cell) -> Callable[[str], None]:
    bar.update(note=cell.label)
    return lambda step: bar.update(note=f"{cell.label}, {step}")


def _listed(models: Model | Sequence[Model]) -> list[Model]:
    listed = [models] if isinstance(models, str | Path | Card) else list(models)
    if not listed:
        raise InputError("There is no model to compare.", hint="Give a card id or a path.")
    return listed


def _cells(models: Sequence[Model], forms: Sequence[Form], reference: str | None) -> list[Cell]:
    """Return all cells; a model that is missing or broken is an error before anything runs."""
    names = [form.label for form in forms]
    if reference is not None and reference not in names:
        raise InputError(
            f"The reference {reference!r} is none of the forms.",
            hint=did_you_mean(reference, names),
        )
    base = reference or names[0]
    cells: list[Cell] = []
    for group, model in enumerate(models):
        card = resolve(model)
        if card.source_is_local:
            locate(card)
        cells += [
            _cell(card, form, group=group, base=base, several=len(models) > 1) for form in forms
        ]
    labels = [cell.label for cell in cells]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"Two cells are called {label!r}: one model was named twice.")
    return cells


def _cell(card: Card, form: Form, *, group: int, base: str, several: bool) -> Cell:
    model = card if form.model is None else resolve(form.model)
    prefix = f"{card.id} · " if several else ""
    planned: Plan | None = None
    refusal: UnsupportedError | MissingPackageError | None = None
    try:
        planned = plan(model, **form.load_arguments())
    except (UnsupportedError, MissingPackageError) as error:
        refusal = error
    return Cell(
        label=prefix + form.label,
        card=model,
        form=form,
        plan=planned,
        refusal=refusal,
        reference=None if form.label == base else prefix + base,
        group=group,
        warm=warm_up_for(planned, form.load_arguments()),
        content=content_key(planned.files) if planned and planned.files else None,
    )


def _texts(limit: int) -> list[list[dict[str, str]]]:
    """Return the conversations on which forms are compared token by token, as plain data."""
    return [[message.as_dict() for message in turns] for turns in held_out(limit)] if limit else []


def _measured(items: Sequence[Prompt], settings: CompareSettings) -> dict[str, Any]:
    """Return the arguments that every cell's child gets, as plain data."""
    return {
        "prompts": [item.as_dict() for item in items],
        "conversations": _texts(settings.agreement_texts),
        "sampling": {"max_tokens": settings.max_tokens},
        "repetitions": settings.repetitions,
        "prompt_lengths": list(settings.prompt_lengths),
        "output_tokens": settings.output_tokens,
    }


def _conditions(items: Sequence[Prompt], settings: CompareSettings) -> dict[str, Any]:
    """Return what all cells share, as it stands in receipts."""
    asked = [item.as_dict() for item in items]
    return {
        "prompts": {
            "count": len(items),
            "sets": sorted({f"{item.skill}.{item.lang}" for item in items}),
            "sha256": _digest(asked),
        },
        "texts": {
            "count": settings.agreement_texts,
            "sha256": _digest(_texts(settings.agreement_texts)),
        },
        **settings.model_dump(mode="json", exclude={"timeout", "resume"}),
        "python": machine().python,
        "versions": machine().versions,
        "machine": machine().summary(),
    }


def _key(cell: Cell, conditions: Mapping[str, Any]) -> str:
    """Return the digest of everything that a cell's result depends on."""
    adapter = cell.plan.adapter if cell.plan else None
    return _digest(
        {
            "conditions": conditions,
            "label": cell.label,
            "reference": cell.reference,
            "load": cell.form.load_arguments(),
            "refusal": str(cell.refusal) if cell.refusal else None,
            "content": cell.content or cell.card.id,
            "adapter": [
                f"{path.name}:{sha256(path)}"
                for path in sorted(adapter.iterdir())
                if path.is_file()
            ]
            if adapter
            else None,
        }
    )


def _digest(values: Any) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _folder(out: str | Path | None, cells: Sequence[Cell]) -> Path:
    if out is not None:
        return Path(out).expanduser().resolve()
    return outputs("compare", _digest([cell.key for cell in cells])[:16])
