"""Load a model: plan, open, leave a receipt; and list what is open."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from workbench.catalog import Card, fetch, resolve
from workbench.catalog.capabilities import engine_facts
from workbench.catalog.source import form_of, kind_to_fetch
from workbench.engines.base import Loading, Session
from workbench.engines.death import memory_hint
from workbench.engines.fallback import Failed, release, with_fallback
from workbench.engines.loaded import LoadedModels
from workbench.engines.memory import Grown, Growth, give_back_memory
from workbench.engines.model import Model
from workbench.engines.plain import described
from workbench.engines.registry import engine as engine_named
from workbench.errors import EngineError, InputError, WorkbenchError
from workbench.memory.ledger import KEY, beside
from workbench.planning import Plan, require_memory
from workbench.planning import plan as make_plan
from workbench.progress import progress
from workbench.receipts import Receipt, known_sha256, write

_PATIENCE = 1.0
_models: weakref.WeakSet[Model] = weakref.WeakSet()
_listing = threading.Lock()  # a set that grows cannot be read


def load(
    model: str | Path | Card | Plan,
    *,
    engine: str = "auto",
    quantization: str = "auto",
    dtype: str = "auto",
    context: int | None = None,
    device: str = "auto",
    gpu_layers: int | None = None,
    threads: int | None = None,
    adapter: str | Path | None = None,
    isolate: bool = False,
    force: bool = False,
    fallback: bool = False,
    memory_limit: int | None = None,
    **options: Any,
) -> Model:
    """Load a model and leave a receipt of it; whatever is given is kept, the rest is chosen.

    Args:
        model: A card id, a folder of safetensors, a GGUF file, a card, or a finished plan.
        engine: ``transformers``, ``llama.cpp``, ``openai`` (any URL: ``url=``) ... or ``auto``;
            ``wb.engines()`` lists them.
        quantization: ``none``, ``int8``, ``nf4``, ``Q4_K_M``, ... or ``auto`` (as the files are).
        dtype: ``fp32``, ``bf16``, ``fp16`` or ``auto``.
        context: Tokens to allocate; default is the card's context, at most 8192.
        device: ``cpu``, ``cuda``, ``mps`` or ``auto``.
        gpu_layers: llama.cpp layers on the GPU, -1 for all.
        threads: CPU threads.
        adapter: Folder of a LoRA adapter to load on top.
        isolate: Open it in a process of its own: a crash there leaves this one alive, and closing
            frees everything for certain; ``model.raw`` is not to be had.
        force: Load also what does not fit into the memory that is free.
        fallback: Where loading fails, load the first of the card's fallbacks that can be; each
            failure is told in a warning, and kept in the receipt and in ``model.fallbacks``.
        memory_limit: With ``isolate=True``, most bytes of data that the child may hold.
        options: Further arguments of ``plan`` (``batch``, ``policy`` ...) and of the
            engine.

    Raises:
        NotFoundError: No such card, folder or file.
        InputError: An unknown engine, quantization or dtype, or an impossible context.
        UnsupportedError: The engine cannot do this quantization or this file format.
        MissingPackageError: The engine's package is not installed.
        FormatError: A file is damaged or cut off.
        MemoryShortError: It cannot fit into what is free now; nothing was loaded.
        EngineError: Loading failed; a receipt keeps the reason.
    """
    if memory_limit is not None and not isolate:
        raise InputError("memory_limit needs a process of its own.", hint="Give isolate=True too.")
    settings = {
        "engine": engine,
        "quantization": quantization,
        "dtype": dtype,
        "context": context,
        "device": device,
        "gpu_layers": gpu_layers,
        "threads": threads,
        "adapter": adapter,
        **options,
    }

    def attempt(card: Card | None, failed: tuple[Failed, ...]) -> Model:
        if card is not None:
            planned = make_plan(card, **_without_plan(model, settings))
        else:
            planned = model if isinstance(model, Plan) else make_plan(model, **settings)
        with progress(f"Loading {planned.card.id}", unit="seconds", patience=_PATIENCE) as bar:
            bar.update(note=f"{planned.engine}, {planned.device}")
            return _open(
                planned, isolate=isolate, force=force, memory_limit=memory_limit, failed=failed
            )

    if not fallback:
        return attempt(None, ())
    if engine != "auto":
        engine_named(engine)  # a wrong name is told before a card's files are looked at
    return with_fallback(model.card if isinstance(model, Plan) else resolve(model), attempt)


def _without_plan(model: object, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what another card is planned by: of a finished plan only where it runs."""
    if not isinstance(model, Plan):
        return settings
    return {**settings, "device": model.device, "threads": model.threads}


def _open(
    plan: Plan,
    *,
    isolate: bool,
    force: bool,
    memory_limit: int | None = None,
    failed: tuple[Failed, ...] = (),
) -> Model:
    began = time.perf_counter()
    conditions: dict[str, Any] = {"isolate": isolate}
    if failed:
        conditions["fallback_from"] = [dataclasses.asdict(each) for each in failed]
    try:
        back_end = engine_named(plan.engine)
        if not force:
            require_memory(plan)
        plan = _with_files(plan)
        prepare = getattr(back_end, "prepare", None)
        if prepare is not None:
            plan = prepare(plan)
        own = isolate and not _is_server(plan)
        session, grown = _isolated(plan, memory_limit) if own else _here(back_end, plan)
    except Exception as error:
        named = _named(error, plan)
        release(error)  # what is half loaded must not stay as long as the error is remembered
        give_back_memory()
        _leave_receipt(plan, conditions, reason=str(named))
        if named is error:
            raise
        raise named from error
    loading = Loading(
        seconds=time.perf_counter() - began,
        weight_bytes=plan.files.weight_bytes() if plan.files else 0,
        rss_bytes=grown.host_bytes,
    )
    context = getattr(session, "context", None)
    if plan.files is None and context:  # a server says itself what it holds
        plan = dataclasses.replace(plan, context=context)
    receipt = _leave_receipt(plan, conditions, loading=loading, grown=grown)
    model = Model(
        session,
        plan,
        loading=loading,
        receipt=receipt,
        isolated=isolate,
        grown=grown,
        fallbacks=failed,
    )
    with _listing:
        _models.add(model)
    return model


def _with_files(plan: Plan) -> Plan:
    """Return the plan with its files, downloaded now where the engine needs some and none are here.

    Raises:
        WorkbenchError: As ``workbench.catalog.fetch``.
    """
    facts = engine_facts().get(plan.engine)
    if plan.files is not None or facts is None or not facts.formats:
        return plan
    if plan.repository is not None and plan.quantization == "gptq-8":  # not the card's first GPTQ
        ready = Card(id=plan.card.id, repository=plan.repository)
        return dataclasses.replace(plan, files=fetch(ready, form="safetensors"))
    form = form_of(plan.card, plan.repository) if plan.repository else None
    form = form or kind_to_fetch(plan.card, (*facts.formats, *facts.converts))
    quantization = plan.quantization if form == "gguf" and plan.quantization != "none" else None
    files = fetch(plan.card, form=form, quantization=quantization)
    return dataclasses.replace(plan, files=files)


def _here(back_end: Any, plan: Plan) -> tuple[Session, Grown]:
    growth = Growth(plan.engine, plan.device, quantization=plan.quantization)
    session: Session = back_end.open(plan)
    held: Grown | None = getattr(session, "grown", None)  # a server's, in processes of its own
    return session, held or growth.end()


def _is_server(plan: Plan) -> bool:
    """Return whether the engine is a process of its own already."""
    facts = engine_facts().get(plan.engine)
    return facts is not None and facts.server is not None


def _isolated(plan: Plan, memory_limit: int | None) -> tuple[Session, Grown]:
    from workbench.engines.child_session import open_in_child

    session = open_in_child(plan, memory_limit=memory_limit)
    return session, session.grown


def _beside_estimate(plan: Plan, grown: Grown) -> dict[str, Any]:
    """Return what the ledger reads: the estimate beside what the load added."""
    if plan.estimate is None:
        return {}
    measured = grown.host_bytes if plan.device == "cpu" else grown.device_bytes
    found = beside(
        plan.estimate,
        measured or 0,
        moment="load",
        counter="resident set" if plan.device == "cpu" else grown.counter,
        device=plan.device,
        family=plan.card.family,
    )
    return {KEY: found} if found else {}


def _named(error: Exception, plan: Plan) -> WorkbenchError:
    if isinstance(error, WorkbenchError):
        return error
    return EngineError(
        f"{plan.engine} cannot load {plan.card.id}: {type(error).__name__}: {error}",
        hint=memory_hint(error, plan.changes) or "The receipt of this load keeps the reason.",
    )


def _leave_receipt(
    plan: Plan,
    conditions: dict[str, Any],
    *,
    loading: Loading | None = None,
    grown: Grown | None = None,
    reason: str | None = None,
) -> Path | None:
    """Write the receipt; a full disk must not take a loaded model away again."""
    result: dict[str, Any] = {}
    if loading is not None:
        result = {
            "load_seconds": round(loading.seconds, 4),
            "weight_bytes": loading.weight_bytes,
            "rss_growth_bytes": loading.rss_bytes,
            **(_beside_estimate(plan, grown) if grown else {}),
        }
    receipt = Receipt(
        what="load",
        model=plan.card.id,
        revision=plan.files.revision if plan.files else None,
        sha256=known_sha256(plan.files.weights) if plan.files else None,
        form=plan.files.kind if plan.files else None,
        plan=described(plan),
        parameters=conditions,
        outcome="failed" if loading is None else "done",
        result=result,
        reason=reason,
    )
    with contextlib.suppress(OSError):
        return write(receipt)
    return None


def loaded() -> LoadedModels:
    """Return the models that are open in this process, the latest last; ``close()`` frees all."""
    with _listing:
        models = list(_models)
    return LoadedModels(sorted((m for m in models if not m.closed), key=lambda m: m.number))
