"""A form of a model: the engine, quantization, dtype and adapter that one cell measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.catalog.capabilities import EngineFacts, engine_facts
from workbench.errors import InputError, did_you_mean
from workbench.planning import AUTO

FORMS = (
    "transformers:fp32",
    "transformers:bf16",
    "transformers:int8",
    "transformers:nf4",
    "llama.cpp:F16",
    "llama.cpp:Q8_0",
    "llama.cpp:Q4_K_M",
)
"""The forms compared when none are named; the first is the reference."""
_KEYS = (
    "label",
    "engine",
    "quantization",
    "dtype",
    "adapter",
    "model",
    "context",
    "device",
    "gpu_layers",
    "threads",
    "options",
)
_SHAPE = "Write engine:form, for example transformers:bf16 or llama.cpp:Q4_K_M."


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One form of a model.

    Attributes:
        label: Its name in tables.
        engine: Name of the engine.
        quantization: ``none``, ``auto`` or a name the engine knows.
        dtype: ``auto`` or a dtype the engine knows.
        adapter: Folder of a LoRA adapter, or None.
        model: Path or card id where this form lies in files of its own, or None.
        settings: Further arguments of ``load``: context, device, gpu_layers, threads, options.
    """

    label: str
    engine: str
    quantization: str = AUTO
    dtype: str = AUTO
    adapter: str | None = None
    model: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def load_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of ``plan`` and ``load``."""
        options = self.settings.get("options", {})
        return {
            "engine": self.engine,
            "quantization": self.quantization,
            "dtype": self.dtype,
            **({"adapter": self.adapter} if self.adapter else {}),
            **{name: value for name, value in self.settings.items() if name != "options"},
            **options,
        }

    def with_threads(self, threads: int | None) -> Form:
        """Return the form with so many CPU threads, unless it names some itself."""
        if threads is None or "threads" in self.settings:
            return self
        return dataclasses.replace(self, settings={**self.settings, "threads": threads})


def read_forms(forms: Sequence[str | Mapping[str, Any] | Form] | None) -> list[Form]:
    """Return the forms that a user wrote; None gives the seven of ``FORMS``.

    Raises:
        InputError: A form is not known (with the nearest one), there is none, or two bear a label.
    """
    if isinstance(forms, str | Mapping | Form):
        forms = [forms]
    found = [_read(form) for form in (FORMS if forms is None else forms)]
    if not found:
        raise InputError("There is no form to compare.", hint=_SHAPE)
    labels = [form.label for form in found]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(
                f"Two forms are called {label!r}.", hint="Give each mapping a label of its own."
            )
    return found


def _read(form: str | Mapping[str, Any] | Form) -> Form:
    if isinstance(form, Form):
        return form
    if isinstance(form, str):
        return _of_text(form)
    if isinstance(form, Mapping):
        return _of_mapping(form)
    raise InputError(f"A form is a string or a mapping, not {form!r}.", hint=_SHAPE)


def _of_text(text: str) -> Form:
    engine, *parts = (part.strip() for part in text.split(":"))
    facts = _facts(engine, text)
    chosen: dict[str, str] = {}
    for part in parts:
        kind, name = _kind(part, facts, text)
        if kind in chosen:
            raise InputError(f"The form {text!r} names two: {chosen[kind]} and {name}.")
        chosen[kind] = name
    return Form(
        label=text,
        engine=facts.name,
        quantization=chosen.get("quantization", "none" if "dtype" in chosen else AUTO),
        dtype=chosen.get("dtype", AUTO),
    )


def _facts(engine: str, text: str) -> EngineFacts:
    known = engine_facts()
    if engine not in known:
        raise InputError(
            f"The form {text!r} names no engine that is known.",
            hint=f"{did_you_mean(engine, known)} {_SHAPE}",
        )
    return known[engine]


def _kind(part: str, facts: EngineFacts, text: str) -> tuple[str, str]:
    """Return ``dtype`` or ``quantization`` and the name as its engine writes it.

    A name that only other engines know is kept: the cell then fails with that reason, and stays.
    """
    others = [other for other in engine_facts().values() if other.name != facts.name]
    for each in (facts, *others):
        for kind, names in (("dtype", each.dtypes), ("quantization", each.quantizations)):
            for name in names:
                if name.lower() == part.lower():
                    return kind, name
    known = [*facts.dtypes, *facts.quantizations]
    raise InputError(
        f"The form {text!r} names no dtype or quantization that is known: {part!r}.",
        hint=did_you_mean(part, known),
    )


def _of_mapping(values: Mapping[str, Any]) -> Form:
    for name in values:
        if name not in _KEYS:
            raise InputError(f"A form has no key {name!r}.", hint=did_you_mean(str(name), _KEYS))
    if not isinstance(values.get("engine"), str):
        raise InputError(f"The form {dict(values)!r} names no engine.", hint=_SHAPE)
    parts = [values["engine"], *(str(values[k]) for k in ("quantization", "dtype") if k in values)]
    text = ":".join(part for part in parts if part not in (AUTO, "none"))
    form = _of_text(text)
    adapter, model = values.get("adapter"), values.get("model")
    settings = {
        name: values[name]
        for name in ("context", "device", "gpu_layers", "threads", "options")
        if values.get(name) is not None
    }
    label = values.get("label") or text + (f" + {Path(adapter).name}" if adapter else "")
    return dataclasses.replace(
        form,
        label=str(label),
        quantization="none" if values.get("quantization") == "none" else form.quantization,
        adapter=str(Path(adapter).expanduser().resolve()) if adapter else None,
        model=str(model) if model is not None else None,
        settings=settings,
    )
