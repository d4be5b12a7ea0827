"""Memory of a model by phase at several contexts, beside the estimate: ``wb.profile(...)``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.catalog import Card, resolve
from workbench.engines import child, load
from workbench.engines.base import Power
from workbench.errors import InputError, MissingPackageError, UnsupportedError, WorkbenchError
from workbench.evaluate.form import Form, read_forms
from workbench.evaluate.phases import (
    LARGE_ALLOCATION,
    SMALL_ALLOCATION,
    added_by_phase,
    bytes_in_memory,
    map_allocations_above,
    prepared,
    total_added,
    warm_up_for,
)
from workbench.evaluate.profile_shown import Reporter, Tell, profile_shown
from workbench.evaluate.profiles import Profiles
from workbench.evaluate.speed import filler_ids
from workbench.machine.meter import Meter
from workbench.messages import Message, Piece, Sampling
from workbench.planning import Plan, plan
from workbench.receipts import Receipt, write

CONTEXTS = (512, 2048)
"""Tokens of context that are profiled when none are named."""
MEASURE = "workbench.evaluate.profile:measure"
_IDLE_SECONDS = 0.2
_TIMEOUT = 1800.0


def profile(
    model: str | Path | Card,
    *,
    forms: Sequence[str | Mapping[str, Any] | Form] | None = None,
    contexts: Sequence[int] = CONTEXTS,
    output_tokens: int = 32,
    threads: int | None = None,
    timeout: float = _TIMEOUT,
    progress: bool = True,
) -> Profiles:
    """Measure what loading, prefill and decode add to memory, each form and context by itself.

    Every measurement is a child process that loads the model with exactly this context, fills the
    context but for ``output_tokens`` in one prefill, and decodes those. A form that cannot run, or
    whose child dies, keeps its row with the reason. Each leaves a receipt, from which the ledger
    takes its error.

    Args:
        model: A card id, a folder of safetensors, a GGUF file or a card.
        forms: ``engine:form`` texts, mappings, or None for the seven that ``compare`` takes.
        contexts: Tokens of context.
        output_tokens: Tokens decoded at the end of each context.
        threads: CPU threads of every form, or None for each engine's default.
        timeout: Seconds that one measurement may take.
        progress: Show a bar, and in a notebook (as ``wb.profile``) the memory while it grows.

    Raises:
        NotFoundError: No such card, folder or file.
        InputError: An unknown form, or a context that leaves no room for the prompt.
    """
    card = resolve(model)
    chosen = [form.with_threads(threads) for form in read_forms(forms)]
    wanted = _checked(contexts, output_tokens, card)
    rows: list[dict[str, Any]] = []
    labels = [form.label for form in chosen]
    steps, quiet = len(chosen) * len(wanted), None if progress else True
    with profile_shown(card.id, labels, total=steps, quiet=quiet) as shown:
        for form in chosen:
            for context in wanted:
                shown.begin(form.label, context)
                rows.append(_row(card, form, context, output_tokens, timeout, tell=shown.take))
                shown.end()
    return Profiles(card.id, tuple(rows))


def _checked(contexts: Sequence[int], output_tokens: int, card: Card) -> list[int]:
    if output_tokens < 1:
        raise InputError(f"output_tokens must be 1 or more, not {output_tokens}.")
    wanted = sorted(dict.fromkeys(int(context) for context in contexts))
    if not wanted:
        raise InputError("There is no context to profile.", hint="Give contexts=[512, 2048].")
    if wanted[0] <= output_tokens:
        raise InputError(
            f"A context of {wanted[0]} leaves no prompt before {output_tokens} output tokens.",
            hint="Give larger contexts, or fewer output tokens.",
        )
    if card.context_length is not None and wanted[-1] > card.context_length:
        raise InputError(
            f"context={wanted[-1]} is more than {card.id} was made for ({card.context_length})."
        )
    return wanted


def _row(
    card: Card, form: Form, context: int, output: int, timeout: float, *, tell: Tell
) -> dict[str, Any]:
    head: dict[str, Any] = {"form": form.label, "context": context}
    settings = {**form.load_arguments(), "context": context}
    planned: Plan | None = None
    try:
        planned = plan(form.model or card, **settings)
        head["estimate"] = planned.estimate.describe() if planned.estimate else None
        found = child.call(
            MEASURE,
            {
                "task": {
                    "model": planned.card.model_dump(mode="json"),
                    "load": settings,
                    "warm": warm_up_for(planned, settings),
                    "prompt_tokens": context - output,
                    "output_tokens": output,
                }
            },
            timeout=timeout,
            progress=tell,
        )
    except WorkbenchError as error:
        row = {**head, "outcome": "failed", "failed": str(error), "kind": type(error).__name__}
        if not isinstance(error, (UnsupportedError, MissingPackageError)):
            _leave_receipt(card, planned, row)
        return row
    row = {**head, "outcome": "done", **found}
    _leave_receipt(card, planned, row)
    return row


def _leave_receipt(card: Card, planned: Plan | None, row: Mapping[str, Any]) -> None:
    """Write the receipt; a full disk must not take the measurement away."""
    names = ("added", "total_added_bytes", "memory_source", "weight_bytes", "estimate")
    receipt = Receipt(
        what="profile",
        model=card.id,
        plan=planned.describe() if planned else {},
        parameters={"form": row["form"], "context": row["context"]},
        outcome="done" if row["outcome"] == "done" else "failed",
        result={name: row[name] for name in names if row.get(name) is not None},
        reason=row.get("failed"),
    )
    with contextlib.suppress(OSError):
        write(receipt)


def measure(task: Mapping[str, Any], progress: Tell | None = None) -> dict[str, Any]:
    """Load one form with one context and measure each phase; runs in a child process.

    Args:
        task: Plain data: ``model``, ``load`` (arguments of ``plan``), ``warm``, ``prompt_tokens``,
            ``output_tokens``.
        progress: Takes the phase and the memory in use, some twenty times a second.

    Returns:
        Plain data: plan, weight_bytes, memory (by phase), added, total_added_bytes, memory_source,
        timeline, prompt_tokens, decoded_tokens, meter_cost_seconds.
    """
    import time

    os.environ["WORKBENCH_QUIET"] = "1"  # bars are drawn by the parent
    tell = progress or (lambda reading: None)
    with Meter(timeline=True) as meter, Reporter(meter, tell) as reporter:
        map_allocations_above(SMALL_ALLOCATION)
        with reporter.phase("warm-up"):
            planned = prepared(task["model"], task["load"], warm=task.get("warm"))
        reporter.device = planned.device
        with reporter.phase("load"):
            model = load(planned)
        with model:
            weights = bytes_in_memory(model)
            with reporter.phase("idle"):
                time.sleep(_IDLE_SECONDS)
            map_allocations_above(LARGE_ALLOCATION)
            usage = _prefill_and_decode(model, reporter, task)
        described = model.plan.describe()
    device = str(described["device"])
    added, source = added_by_phase(meter.phases, device=device)
    return {
        "plan": described,
        "weight_bytes": weights,
        "memory": meter.as_rows(),
        "added": added,
        "total_added_bytes": total_added(meter.phases, source),
        "memory_source": source,
        "timeline": meter.timeline(),
        "meter_cost_seconds": meter.cost_seconds,
        **usage,
    }


def _prefill_and_decode(model: Any, reporter: Reporter, task: Mapping[str, Any]) -> dict[str, Any]:
    """Fill the context in one prefill, up to the first token; then decode the rest of it."""
    sampling = Sampling(max_tokens=int(task["output_tokens"]), ignore_end=True)
    length = int(task["prompt_tokens"])
    if {Power.COMPLETE, Power.TOKENIZE} <= model.powers:
        stream = model.complete(filler_ids(model, length), sampling=sampling)
    else:
        stream = model.stream([Message("user", "word " * max(1, length // 2))], sampling)
    last: Piece | None = None
    with reporter.phase("prefill"):
        last = next(stream, None)
    with reporter.phase("decode"):
        for last in stream:  # noqa: B007 - the last piece carries the usage
            pass
    usage = last.usage if last is not None else None
    return {
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "decoded_tokens": usage.completion_tokens if usage else None,
    }
