"""Choose how a card is loaded on a machine: what is given is kept, the rest follows a policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.catalog import Card, ModelFiles
from workbench.catalog.capabilities import EngineFacts
from workbench.catalog.source import find_local
from workbench.errors import UnsupportedError, WorkbenchError
from workbench.machine import Machine
from workbench.memory.ledger import banded
from workbench.planning import sentences
from workbench.planning.changes import changes_that_fit
from workbench.planning.form import Form
from workbench.planning.forms import automatic, forms_of, is_gpu_built
from workbench.planning.given import (
    AUTO,
    asked_form,
    card_layers,
    check_adapter,
    check_format,
    check_installed,
    check_names,
    contexts_of,
    device_for,
    find,
    has_slots,
    named_engine,
    sequences_of,
)
from workbench.planning.offload import Attempt, Placer, flash_attention, max_memory
from workbench.planning.planned import Plan
from workbench.planning.policy import rules
from workbench.planning.refused import nothing_loads
from workbench.planning.remote import ENGINE as REMOTE
from workbench.planning.remote import Backend, backend_for, remote_plan, service_of
from workbench.planning.room import Room, room_of
from workbench.planning.search import Found, Wanted, search


def plan(
    model: str | Path | Card,
    *,
    machine: Machine | str | Path | Mapping[str, Any] | None = None,
    context: int | None = None,
    batch: int = 1,
    task: str = "chat",
    policy: str = "fit",
    engine: str = AUTO,
    quantization: str = AUTO,
    dtype: str = AUTO,
    device: str = AUTO,
    gpu_layers: int | None = None,
    experts_on_cpu: int | None = None,
    cache_type: str = AUTO,
    tensor_parallel: int | None = None,
    threads: int | None = None,
    adapter: str | Path | None = None,
    margin: float | None = None,
    **options: Any,
) -> Plan:
    """Choose how to load or fine-tune a model; whatever is given is kept, the rest is chosen.

    Args:
        model: A card id, a folder of safetensors, a GGUF file, or a card.
        machine: A machine or its description (``24GB-cuda``, ``16GB-mac``, ``cpu-32GB``); None for
            this one, by what is free now. Engines need not be installed for another machine.
        context: Tokens to allocate; default is the card's context, at most 8192, less where that
            is what makes it fit. Tokens of a row for a fine-tuning.
        batch: Sequences at a time.
        task: ``chat`` or ``finetune``.
        policy: ``fit``, the best quality that fits, or ``by-size``, by parameters alone; their
            rules stand in ``configs/quantization.yaml``.
        engine: Engine name or ``auto``.
        quantization: ``none`` (as the files are), a name an engine knows, or ``auto``.
        dtype: ``fp32``, ``bf16``, ``fp16`` or ``auto``.
        device: ``cpu``, ``cuda``, ``mps`` or ``auto``.
        gpu_layers: llama.cpp layers on the GPU, -1 for all.
        experts_on_cpu: First layers whose experts stay in RAM (llama.cpp).
        cache_type: Type of the KV cache, ``f16`` or smaller (llama.cpp).
        tensor_parallel: GPUs that share the model.
        threads: CPU threads.
        adapter: Folder of a LoRA adapter.
        margin: Share of each memory that stays free, 0 to below 1; None takes the rules'.
        options: Passed on to the engine.

    Raises:
        NotFoundError: No such card, folder or file.
        InputError: An unknown engine, quantization, dtype, policy or task, an impossible context,
            or a machine that cannot be read.
        UnsupportedError: The engine cannot do this quantization or this file format.
        MissingPackageError: The engine's package is not installed.
    """
    check_names(policy=policy, task=task, cache_type=cache_type, batch=batch)
    backend = Backend(engine=engine)
    if task == "chat":
        backend = backend_for(model, engine, options, here=machine is None)
    if backend.engine == REMOTE:
        return remote_plan(model, backend, context=context, options=options)
    engine = backend.engine
    card, files = find(model, engine)
    if card.remote is not None and engine == AUTO and files is None:
        return remote_plan(card, service_of(card), context=context, options=options)
    facts = named_engine(engine)
    extra = {"threads": threads, "adapter": check_adapter(adapter), "options": options}
    if facts is not None and not facts.formats:
        check_installed(facts)
        return _without_files(facts, card, context, device, gpu_layers, extra)
    room = room_of(machine, rules=rules(), device=device_for(device, facts), margin=margin)
    if facts is not None and room.here:
        check_installed(facts)
    if facts is not None:
        check_format(facts, card, files)
        if room.device not in facts.devices:
            room = room.on_cpu()
    if task == "finetune":
        from workbench.planning.finetune import plan_finetune

        return plan_finetune(
            card,
            files=files,
            room=room,
            length=context,
            batch=None if batch == 1 else batch,
            quantization=quantization,
            policy=policy,
        )
    asked = asked_form(quantization, card, files, facts, rules())
    wanted = Wanted(
        contexts=contexts_of(context, card, rules()),
        cache_type=None if cache_type == AUTO else cache_type,
        gpu_layers=gpu_layers if gpu_layers is not None else card_layers(card),
        experts_on_cpu=experts_on_cpu,
        devices=tensor_parallel,
        device_given=device != AUTO,
        full_window=bool(options.get("swa_full", facts is None or not has_slots(facts))),
        form_given=asked is not None or (facts is not None and facts.name == "transformers"),
    )
    named = facts is not None
    held = sequences_of(facts, batch, options)
    chooser = _Chooser(card, files, room, wanted, held, asked, dtype, policy, named)
    found = chooser.plan(facts, context=context, extra=extra)
    said = [backend.reason] if backend.reason else []
    if facts is not None and has_slots(facts):
        said.append(sentences.of_slots(held))
    return dataclasses.replace(found, batch=batch, reasons=(*said, *found.reasons))


class _Chooser:
    """One question to the policies, asked of the devices and then of the CPU alone."""

    def __init__(
        self,
        card: Card,
        files: ModelFiles | None,
        room: Room,
        wanted: Wanted,
        batch: int,
        asked: str | None,
        dtype: str,
        policy: str,
        named: bool,
    ) -> None:
        self.named = named
        self.card, self.files, self.room, self.wanted = card, files, room, wanted
        self.batch, self.asked, self.dtype, self.policy = batch, asked, dtype, policy
        self.rules = rules()

    def plan(
        self, facts: EngineFacts | None, *, context: int | None, extra: dict[str, Any]
    ) -> Plan:
        """Return the plan of the first form that fits, else of the one that misses least."""
        room, reasons = self.room, list[str]()
        engines = [facts.name] if facts else []
        if room.here and room.device != "cpu" and engines == ["llama.cpp"] and not is_gpu_built():
            room = room.on_cpu()
            reasons.append("On the CPU, because this llama-cpp-python was built without a GPU.")
        found, room = self._search(room, engines)
        if found.attempt is None and found.unknown is None:
            raise nothing_loads(
                self.card, room, self.rules, facts, asked=self.asked, dtype=self.dtype
            )
        reasons += _engine_reason(facts, self.files, found)
        reasons += sentences.chosen(
            found, self.card, room, self.wanted, self.rules, policy=self.policy
        )
        if context is None:
            reasons += _context_reason(self.wanted.context, found, self.card)
        return self._made(found, room, reasons, extra)

    def _search(self, room: Room, engines: Sequence[str]) -> tuple[Found, Room]:
        found = self.search_in(room, engines)
        if room.device == "cpu" or (found.attempt is not None and found.attempt.fits):
            return found, room
        if self.wanted.placed or self.wanted.device_given:
            return found, room
        alone = self.search_in(room.on_cpu(), engines)
        if alone.attempt is not None and (found.attempt is None or alone.attempt.fits):
            tried = (*found.tried, *([found.attempt] if found.attempt else []), *alone.tried)
            return dataclasses.replace(alone, tried=tried), room.on_cpu()
        return found, room

    def search_in(self, room: Room, engines: Sequence[str]) -> Found:
        """Search the forms of these engines on a room."""
        forms = self.forms(room, engines or automatic(room))
        placer = Placer(
            self.card, self.files, room, batch=self.batch, full_window=self.wanted.full_window
        )
        by_size = self.policy == "by-size" and self.asked is None
        return search(forms, placer, self.wanted, self.rules, by_size=by_size)

    def forms(self, room: Room, engines: Sequence[str]) -> list[Form]:
        """Return the forms that the user's words and the policy leave."""
        found = forms_of(
            self.card,
            self.files,
            room=room,
            rules=self.rules,
            engines=engines,
            asked=self.asked,
            named=self.named,
        )
        if self.asked is not None:
            found = [form for form in found if form.quantization == self.asked]
        elif self.policy == "by-size":
            found = self._sized(found)
        return [form for each in found if (form := _with_dtype(each, self.dtype)) is not None]

    def _sized(self, forms: Sequence[Form]) -> list[Form]:
        rule = self.rules.size_rule(self.card.architecture.parameters or 0)
        for name in rule.forms:
            same = [form for form in forms if form.quantization == name]
            if same:
                dtype = rule.dtype if rule.dtype in same[0].facts.dtypes else None
                return [dataclasses.replace(form, dtype=dtype or form.dtype) for form in same]
        for name in rule.forms:
            stand_in = self.rules.gguf_counterpart.get(name)
            same = [form for form in forms if form.quantization == stand_in]
            if same:
                return same
        return list(forms)

    def _made(self, found: Found, room: Room, reasons: list[str], extra: dict[str, Any]) -> Plan:
        attempt, form = found.attempt, found.unknown
        if attempt is not None:
            form = attempt.form
        assert form is not None
        values = _placed(attempt, room, self.wanted)
        if attempt is None:
            reasons.append("Its memory is not known: the card has too few facts to estimate it.")
        estimate = attempt.estimate if attempt else None
        if attempt is not None and estimate is not None and room.here:
            estimate = banded(
                estimate,
                engine=form.facts.name,
                quantization=form.quantization,
                family=self.card.family,
                device=attempt.device,
            )
        changes: tuple[str, ...] = ()
        if attempt is not None and not attempt.fits:
            changes = changes_that_fit(
                self.card, self.files, room, self.wanted, self.batch, attempt
            )
        return Plan(
            card=self.card,
            engine=form.facts.name,
            files=self.files or _here_already(self.card, form, room),
            repository=form.repository,
            quantization=form.quantization,
            dtype=form.dtype,
            batch=self.batch,
            policy=self.policy,
            machine=room.name,
            fits=attempt.fits if attempt else None,
            needs=attempt.needs if attempt else (),
            estimate=estimate,
            reasons=tuple(reasons),
            considered=sentences.considered(found, self.wanted),
            changes=changes,
            **values,
            **extra,
        )


def _placed(attempt: Attempt | None, room: Room, wanted: Wanted) -> dict[str, Any]:
    """Return the fields of a plan that say where the layers lie."""
    if attempt is None:
        layers = -1 if wanted.gpu_layers is None else wanted.gpu_layers
        cache = wanted.cache_type or "f16"
        return {
            "context": wanted.context,
            "device": room.device,
            "gpu_layers": 0 if room.device == "cpu" else layers,
            "experts_on_cpu": wanted.experts_on_cpu or 0,
            "cache_type": cache,
            "flash_attention": None if cache == "f16" else True,
            "tensor_parallel": wanted.devices or 1,
        }
    placement = attempt.placement
    return {
        "context": placement.context,
        "device": attempt.device,
        "gpu_layers": placement.gpu_layers,
        "experts_on_cpu": placement.experts_on_cpu,
        "cache_type": placement.cache_type,
        "flash_attention": flash_attention(attempt.form, placement, attempt.device),
        "tensor_parallel": placement.devices if attempt.device != "cpu" else 1,
        "max_memory": max_memory(attempt, room),
    }


def _with_dtype(form: Form, dtype: str) -> Form | None:
    """Return the form with the dtype that was given, None where its engine has no such one."""
    if dtype == AUTO or not form.facts.dtypes:
        return form
    if dtype not in form.facts.dtypes:
        return None
    if form.packed is not None and not form.unpacked and dtype != form.dtype:
        allowed = rules().packed[form.packed].dtypes
        if dtype not in allowed:
            raise UnsupportedError(
                f"{form.packed} weights do not compute in {dtype}.",
                hint=f"They compute in {', '.join(allowed)}.",
            )
    return dataclasses.replace(form, dtype=dtype)


def _without_files(
    facts: EngineFacts,
    card: Card,
    context: int | None,
    device: str,
    gpu_layers: int | None,
    extra: dict[str, Any],
) -> Plan:
    """Return the plan of an engine that holds no weights here."""
    device_for(device, facts)
    return Plan(
        card=card,
        engine=facts.name,
        context=contexts_of(context, card, rules())[0],
        gpu_layers=gpu_layers or 0,
        **extra,
    )


def _engine_reason(facts: EngineFacts | None, files: ModelFiles | None, found: Found) -> list[str]:
    if facts is not None or files is None:
        return []
    form = found.attempt.form if found.attempt else found.unknown
    if form is not None and files.kind in form.facts.formats:
        return [f"{form.facts.name}, because the files are {files.kind}."]
    return []


def _context_reason(wanted: int, found: Found, card: Card) -> list[str]:
    taken = found.attempt.placement.context if found.attempt else wanted
    limit = card.context_length
    if limit and taken == wanted < limit:
        return [f"Context {taken} of the card's {limit}, to keep the KV cache small."]
    return []


def _here_already(card: Card, form: Form, room: Room) -> ModelFiles | None:
    """Return the files of a form where an earlier download left them on this machine."""
    if not room.here or form.repository is None:
        return None
    try:
        if card.gguf is not None and form.repository == card.gguf.repository:
            return find_local(card, form="gguf", quantization=form.quantization)
        source = Card(id=card.id, repository=form.repository, revision=card.revision)
        return find_local(source, form="safetensors")
    except WorkbenchError:
        return None
