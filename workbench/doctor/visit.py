"""Visit every engine and form: import it, load the embedded model with it, ask, and say why not."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.catalog.capabilities import EngineFacts, engine_facts
from workbench.catalog.server_place import program_of
from workbench.doctor import examine, remedies
from workbench.doctor.diagnosis import ALL, Check, Diagnosis
from workbench.doctor.remedies import Finding
from workbench.engines import child
from workbench.errors import (
    ChildDiedError,
    EngineError,
    InputError,
    MissingPackageError,
    UnsupportedError,
    did_you_mean,
)
from workbench.machine import Machine, machine
from workbench.progress import Bar, progress
from workbench.receipts import Receipt, write

QUESTIONS = {"What is 12 + 7?": "19", "How do you say cat in Japanese?": "猫"}
"""What is asked, and what the answer has to contain; the second needs more than ASCII."""
OPTIONS: dict[str, dict[str, Any]] = {"scripted": {"script": list(QUESTIONS.values())}}
"""What an engine needs beyond the model's files."""
_STORED = "safetensors"  # how the embedded model ships
_CONVERSION_SECONDS = 900.0
_NOT_IN_TIME = "did not finish within"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Visit:
    """What holds for all checks of one visit."""

    machine: Machine
    timeout: float
    threads: int | None
    quick: bool


def doctor(
    engines: str | Sequence[str] | None = None,
    quantizations: str | Sequence[str] | None = None,
    *,
    quick: bool = False,
    timeout: float = 180.0,
    threads: int | None = None,
) -> Diagnosis:
    """Check whether each engine and quantization runs here, by running the embedded model.

    Each step runs in a child process of its own, so nothing that an engine does can harm this one.
    The model is asked two questions whose answers are known. Every check leaves a receipt.

    Args:
        engines: Names of engines; default is all.
        quantizations: Names of quantizations (``none`` is the files as they are); default is all.
        quick: Only import the engines' packages.
        timeout: Most seconds for an import or for loading and answering; a first conversion to GGUF
            may take 15 minutes.
        threads: CPU threads; default is each engine's own choice.

    Raises:
        InputError: An unknown engine or quantization, or a time-out that is not above 0.
        UnsupportedError: None of the engines has one of the quantizations.
    """
    if not timeout > 0:
        raise InputError(f"timeout must be above 0 seconds, not {timeout!r}.")
    chosen = _chosen(_listed(engines), _listed(quantizations))
    visit = _Visit(machine=machine(), timeout=timeout, threads=threads, quick=quick)
    checks: list[Check] = []
    total = sum(1 if quick else len(forms) for _, forms in chosen)
    with progress("Doctor", total=total, unit="forms", even=False) as bar:
        for facts, forms in chosen:
            checks += _engine(facts, forms, visit, bar)
    return Diagnosis(tuple(checks), visit.machine)


def _listed(given: str | Sequence[str] | None) -> list[str] | None:
    return [given] if isinstance(given, str) else None if given is None else list(given)


def _chosen(
    engines: list[str] | None, quantizations: list[str] | None
) -> list[tuple[EngineFacts, list[str]]]:
    """Return the engines with their forms; what is asked for and nowhere to be had is an error."""
    known = engine_facts()
    for name in engines or ():
        if name not in known:
            raise InputError(f"There is no engine named {name!r}.", hint=did_you_mean(name, known))
    # A server takes a minute to start: it is examined when it is named.
    usual = [name for name, facts in known.items() if facts.server is None]
    chosen = [(known[name], _forms(known[name])) for name in engines or usual]
    if quantizations is None:
        return chosen
    everything = {form for facts in known.values() for form in _forms(facts)}
    exact = {form.lower(): form for form in everything}
    for name in quantizations:
        if name.lower() not in exact:
            raise InputError(
                f"There is no quantization named {name!r}.", hint=did_you_mean(name, everything)
            )
    wanted = [exact[name.lower()] for name in quantizations]
    for name in wanted:
        if not any(name in forms for _, forms in chosen):
            raise UnsupportedError(
                f"{', '.join(facts.name for facts, _ in chosen)} cannot do {name!r}.",
                hint="Leave the engine out to check all that can.",
            )
    kept = [(facts, [form for form in forms if form in wanted]) for facts, forms in chosen]
    return [(facts, forms) for facts, forms in kept if forms]


def _forms(facts: EngineFacts) -> list[str]:
    """Return the forms of the embedded model in an engine: as it is stored, and quantized."""
    as_stored = not facts.quantizations or not facts.formats or _STORED in facts.formats
    if facts.server is not None:
        return ["none"]  # it quantizes nothing itself
    return [*(["none"] if as_stored else []), *facts.quantizations]


def _engine(facts: EngineFacts, forms: list[str], visit: _Visit, bar: Bar) -> list[Check]:
    """Check one engine: its packages first, and where they import, each form."""
    bar.advance(0, note=f"{facts.name}: importing")
    found, absent = _import(facts, visit)
    if found.verdict != "imports" or visit.quick:
        bar.advance(1 if visit.quick else len(forms))
        return [_kept(Check(engine=facts.name, quantization=ALL, **_fields(found)), {}, visit)]
    remark = dataclasses.replace(found, verdict="runs")
    checks = []
    for form in forms:
        bar.advance(0, note=f"{facts.name} {form}")
        lacks = [name for name in facts.modules_for(form) if name in absent]
        if lacks:
            checks.append(_check(facts, form, remedies.missing(facts, lacks), {}, visit))
        else:
            checks.append(_form(facts, form, remark, visit))
        bar.advance()
    return checks


def _fields(found: Finding) -> dict[str, Any]:
    return {"verdict": found.verdict, "reason": found.reason, "mend": found.mend}


def _import(facts: EngineFacts, visit: _Visit) -> tuple[Finding, list[str]]:
    """Import an engine's packages in a child; return the finding and which optional ones lack."""
    if facts.server is not None:
        try:
            program_of(facts.name, facts.server)
        except MissingPackageError as error:
            return Finding(verdict="missing", reason=error.message, mend=error.hint or ""), []
    tried: list[str] = []
    packages = {
        "packages": list(facts.packages),
        "optional": sorted({name for each in facts.needs for name in each.modules}),
    }
    answer = _asked("imports", packages, visit.timeout, progress=tried.append)
    module = tried[-1] if tried else None
    if isinstance(answer, EngineError):
        doing = f"importing {module}" if module else "starting a child process"
        return _ended(answer, facts, doing, module, visit, visit.timeout), []
    if "missing" in answer:
        return remedies.missing(facts, answer["missing"]), []
    if "broken" in answer:
        broken, kind, message = answer["broken"], answer["type"], answer["message"]
        return remedies.unimportable(broken, kind, message, visit.machine), []
    remark = remedies.unused_device(facts, answer["builds"], visit.machine)
    return dataclasses.replace(remark, verdict="imports"), answer["absent"]


def _form(facts: EngineFacts, form: str, remark: Finding, visit: _Visit) -> Check:
    """Run one form; a form that is converted first gets the time that this takes."""
    settings = {
        "engine": facts.name,
        "quantization": form,
        "threads": visit.threads,
        **OPTIONS.get(facts.name, {}),
    }
    steps: list[tuple[str, dict[str, Any], float]] = [
        ("ask", {"settings": settings, "questions": list(QUESTIONS)}, visit.timeout)
    ]
    if facts.converts:
        longest = max(visit.timeout, _CONVERSION_SECONDS)
        steps.insert(0, ("make", {"settings": settings}, longest))
    told: dict[str, Any] = {}
    found = remark
    for step, arguments, seconds in steps:
        answer = _asked(step, arguments, seconds)
        if isinstance(answer, EngineError):
            doing = "making its file" if step == "make" else "running it"
            found = _ended(answer, facts, doing, None, visit, seconds)
            break
        told = answer
        if "error" in answer:
            found = remedies.raised(facts, form, answer, visit.machine)
            break
    else:
        found = _judged(told["answers"], remark)
    return _check(facts, form, found, told, visit)


def _judged(answers: Sequence[str], remark: Finding) -> Finding:
    for (question, expected), answer in zip(QUESTIONS.items(), answers, strict=True):
        if expected not in answer:
            return Finding(
                verdict="wrong",
                reason=f"asked {question!r}, it answered {answer[:80]!r} instead of {expected!r}",
                mend=remark.mend,
            )
    return remark


def _check(
    facts: EngineFacts, form: str, found: Finding, told: dict[str, Any], visit: _Visit
) -> Check:
    answers = tuple(told.get("answers", ()))
    seconds = told["load_seconds"] + told["answer_seconds"] if answers else None
    check = Check(
        engine=facts.name,
        quantization=form,
        device=told.get("device"),
        seconds=seconds,
        answers=answers,
        **_fields(found),
    )
    return _kept(check, told, visit)


def _asked(
    function: str, arguments: dict[str, Any], seconds: float, *, progress: Any = None
) -> Any:
    """Return what a function of ``examine`` answers in a child, or the error it ended with."""
    try:
        return child.call(
            f"{examine.__name__}:{function}", arguments, timeout=seconds, progress=progress
        )
    except EngineError as error:
        return error


def _ended(
    error: EngineError,
    facts: EngineFacts,
    doing: str,
    module: str | None,
    visit: _Visit,
    seconds: float,
) -> Finding:
    """Return the finding for a child that died, did not end in time, or failed in our own code."""
    if isinstance(error, ChildDiedError):
        at_fault = module or (facts.packages[0] if facts.packages else None)
        return remedies.died(doing, error.message, at_fault, visit.machine)
    if _NOT_IN_TIME in error.message:
        return remedies.too_slow(facts, doing, seconds)
    return Finding(verdict="fails", reason=error.message, mend=error.hint or "")


def _kept(check: Check, told: dict[str, Any], visit: _Visit) -> Check:
    """Write the check's receipt and return the check with it."""
    worked = check.verdict in ("runs", "imports")
    measured = ("answers", "load_seconds", "answer_seconds", "tokens")
    receipt = Receipt(
        what="doctor",
        model=examine.MODEL,
        plan={
            "engine": check.engine,
            "quantization": check.quantization,
            "device": check.device,
            "dtype": told.get("dtype"),
        },
        parameters={
            "quick": visit.quick,
            "timeout_seconds": visit.timeout,
            "threads": visit.threads,
            "questions": [] if visit.quick else list(QUESTIONS),
        },
        outcome="done" if worked else "failed",
        result={
            "verdict": check.verdict,
            "remark": check.reason if worked else "",
            "mend": check.mend,
            **{name: told[name] for name in measured if name in told},
        },
        reason=None if worked else check.reason,
    )
    path: Path | None = None
    with contextlib.suppress(OSError):
        path = write(receipt)
    return dataclasses.replace(check, receipt=path)
