"""Plans: which engine, quantization, dtype and context a card gets on this machine, and why."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.catalog import Card, ModelFiles, catalog, locate, resolve
from workbench.catalog.capabilities import EngineFacts, engine_facts
from workbench.errors import InputError, MissingPackageError, UnsupportedError, did_you_mean
from workbench.figures import Table
from workbench.machine import default_device

AUTO = "auto"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to load one card on this machine.

    Attributes:
        card: What the model is.
        engine: Name of the engine, for example ``transformers`` or ``llama.cpp``.
        files: The model's files on disk, or None for an engine without files (scripted, remote).
        quantization: ``none``, or a name from the engine's facts (``nf4``, ``Q4_K_M``).
        dtype: Compute dtype, ``fp32``, ``bf16`` or ``fp16``; None where the file decides.
        context: Tokens of context to allocate.
        device: ``cpu``, ``cuda`` or ``mps``.
        gpu_layers: Layers on the GPU for llama.cpp: -1 all, 0 none.
        threads: CPU threads, or None for the engine's default.
        adapter: Folder of a PEFT LoRA adapter to load on top, or None.
        options: Further arguments, passed to the engine by name.
        reasons: Why each choice was made, in sentences.
    """

    card: Card
    engine: str
    files: ModelFiles | None = None
    quantization: str = "none"
    dtype: str | None = None
    context: int
    device: str = "cpu"
    gpu_layers: int = 0
    threads: int | None = None
    adapter: Path | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reasons: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Short name for tables: card, engine and form."""
        form = self.quantization if self.quantization != "none" else (self.dtype or "as stored")
        adapted = f" + {self.adapter.name}" if self.adapter else ""
        return f"{self.card.id} · {self.engine} · {form}{adapted}"

    def table(self) -> Table:
        """Return the plan as a table of names and values, the reasons last."""
        facts = {name: value for name, value in self.describe().items() if value is not None}
        reasons = facts.pop("reasons")
        rows = [{"plan": name, "value": str(value)} for name, value in facts.items()]
        rows += [{"plan": "because", "value": reason} for reason in reasons]
        return Table(rows, caption=self.label)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.table()._repr_mimebundle_()

    def describe(self) -> dict[str, Any]:
        """Return the plan as plain data for receipts and run files."""
        return {
            "card": self.card.id,
            "engine": self.engine,
            "quantization": self.quantization,
            "dtype": self.dtype,
            "context": self.context,
            "device": self.device,
            "gpu_layers": self.gpu_layers,
            "threads": self.threads,
            "adapter": str(self.adapter) if self.adapter else None,
            "files": str(self.files.path) if self.files else None,
            "reasons": list(self.reasons),
        }


def plan(
    model: str | Path | Card,
    *,
    engine: str = AUTO,
    quantization: str = AUTO,
    dtype: str = AUTO,
    context: int | None = None,
    device: str = AUTO,
    gpu_layers: int | None = None,
    threads: int | None = None,
    adapter: str | Path | None = None,
    **options: Any,
) -> Plan:
    """Choose how to load a model here; whatever is given is kept, the rest is chosen.

    Args:
        model: A card id, a folder of safetensors, a GGUF file, or a card.
        engine: Engine name or ``auto``.
        quantization: ``none``, a name the engine knows, or ``auto`` (as the files are).
        dtype: ``fp32``, ``bf16``, ``fp16`` or ``auto``.
        context: Tokens to allocate; default is the card's context, at most 8192.
        device: ``cpu``, ``cuda``, ``mps`` or ``auto``.
        gpu_layers: llama.cpp layers on the GPU, -1 for all.
        threads: CPU threads.
        adapter: Folder of a LoRA adapter.
        options: Passed on to the engine.

    Raises:
        NotFoundError: No such card, folder or file.
        InputError: An unknown engine, quantization, dtype or an impossible context.
        UnsupportedError: The engine cannot do this quantization or this file format.
        MissingPackageError: The engine's package is not installed.
    """
    reasons: list[str] = []
    card, files = _find(model, engine)
    facts = _choose_engine(engine, files, reasons)
    _check_installed(facts)
    _check_format(facts, card, files)
    chosen_quantization = _choose_quantization(quantization, facts, files, card.dtype, reasons)
    chosen_device = _choose_device(device, facts)
    chosen_dtype = _choose_dtype(dtype, facts, chosen_quantization, chosen_device, reasons)
    return Plan(
        card=card,
        engine=facts.name,
        files=files,
        quantization=chosen_quantization,
        dtype=chosen_dtype,
        context=_choose_context(context, card, reasons),
        device=chosen_device,
        gpu_layers=_choose_gpu_layers(gpu_layers, card, chosen_device),
        threads=threads,
        adapter=_check_adapter(adapter),
        options=options,
        reasons=tuple(reasons),
    )


def _find(model: str | Path | Card, engine: str) -> tuple[Card, ModelFiles | None]:
    """Return card and files; an engine without files needs no more than a name."""
    facts = engine_facts().get(engine)
    if facts is None or facts.formats:
        card = resolve(model)
        return card, locate(card) if card.source_is_local else None
    if isinstance(model, Card):
        return model, None
    shelf = catalog()
    name = Path(model).name
    return shelf[name] if name in shelf else Card(id=name), None


def _choose_engine(engine: str, files: ModelFiles | None, reasons: list[str]) -> EngineFacts:
    known = engine_facts()
    if engine != AUTO:
        if engine not in known:
            raise InputError(
                f"There is no engine named {engine!r}.", hint=did_you_mean(engine, known)
            )
        return known[engine]
    kind = files.kind if files else "none"
    for facts in known.values():
        if kind in facts.formats and kind != "none":
            reasons.append(f"{facts.name}, because the files are {kind}.")
            return facts
    raise InputError(
        "No engine was named, and this card has no local files to choose one by.",
        hint="Give engine=...",
    )


def _check_installed(facts: EngineFacts) -> None:
    missing = [name for name in facts.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"The engine {facts.name} needs {', '.join(missing)}, which is not installed.",
            hint=f"pip install 'llm-workbench[{facts.extra}]'",
        )


def _check_format(facts: EngineFacts, card: Card, files: ModelFiles | None) -> None:
    if not facts.formats:
        return
    if files is None:
        raise InputError(
            f"The card {card.id} names no files on this machine, and {facts.name} needs some.",
            hint="Download the model and name its folder.",
        )
    if files.kind not in (*facts.formats, *facts.converts):
        able = [other.name for other in engine_facts().values() if files.kind in other.formats]
        raise UnsupportedError(
            f"The engine {facts.name} does not load {files.kind} files.",
            hint=f"{', '.join(able)} does." if able else None,
        )


def _choose_device(device: str, facts: EngineFacts) -> str:
    if device == AUTO:  # an engine that knows only the CPU need not ask for others
        chosen = "cpu" if facts.devices == ("cpu",) else default_device()
        return chosen if chosen in facts.devices else "cpu"
    if device not in facts.devices:
        raise UnsupportedError(
            f"The engine {facts.name} does not run on {device!r}.",
            hint=f"It runs on {', '.join(facts.devices)}.",
        )
    return device


def _choose_quantization(
    quantization: str,
    facts: EngineFacts,
    files: ModelFiles | None,
    stored_dtype: str | None,
    reasons: list[str],
) -> str:
    if quantization in (AUTO, "none"):
        if facts.name == "llama.cpp" and files is not None and files.kind == "safetensors":
            return _gguf_as_stored(stored_dtype, reasons)
        return "none"
    exact = {name.lower(): name for name in facts.quantizations}.get(quantization.lower())
    if exact is None:
        others = [f.name for f in engine_facts().values() if quantization in f.quantizations]
        if others:
            raise UnsupportedError(
                f"The engine {facts.name} cannot do the quantization {quantization!r}.",
                hint=f"{', '.join(others)} can; {facts.name} has {', '.join(facts.quantizations)}.",
            )
        raise InputError(
            f"There is no quantization named {quantization!r}.",
            hint=did_you_mean(quantization, facts.quantizations),
        )
    if files is not None and files.kind == "gguf":
        raise UnsupportedError(
            f"{files.path.name} is already a GGUF file; it is loaded as it is, not as {exact}.",
            hint="Leave quantization out, or start from the safetensors.",
        )
    return exact


def _gguf_as_stored(stored_dtype: str | None, reasons: list[str]) -> str:
    """Return the GGUF type of 16 bits that keeps most of what is stored."""
    if stored_dtype == "bf16":
        reasons.append("BF16, because the files are bf16, whose range F16 does not have.")
        return "BF16"
    reasons.append("F16, because a GGUF of 16 bits loses nothing that fp16 files hold.")
    return "F16"


def _choose_dtype(
    dtype: str, facts: EngineFacts, quantization: str, device: str, reasons: list[str]
) -> str | None:
    if not facts.dtypes:
        return None
    if dtype == AUTO:
        if quantization != "none" or device != "cpu":
            chosen = "bf16" if "bf16" in facts.dtypes else facts.dtypes[0]
        else:
            chosen = "fp32"
            reasons.append("fp32, because on a CPU it is exact and rarely slower than bf16.")
        return chosen
    if dtype not in facts.dtypes:
        raise InputError(
            f"The engine {facts.name} has no dtype {dtype!r}.",
            hint=did_you_mean(dtype, facts.dtypes),
        )
    return dtype


def _choose_context(context: int | None, card: Card, reasons: list[str]) -> int:
    if context is None:
        limit = card.context_length or 4096
        chosen = min(limit, 8192)
        if chosen < limit:
            reasons.append(f"Context 8192 of the card's {limit}, to keep the KV cache small.")
        return chosen
    if context < 1:
        raise InputError(f"context must be 1 or more, not {context}.")
    if card.context_length and context > card.context_length:
        raise InputError(
            f"context={context} is more than {card.id} was made for ({card.context_length})."
        )
    return context


def _choose_gpu_layers(gpu_layers: int | None, card: Card, device: str) -> int:
    if gpu_layers is not None:
        return gpu_layers
    return 0 if device == "cpu" else card.n_gpu_layers


def _check_adapter(adapter: str | Path | None) -> Path | None:
    if adapter is None:
        return None
    folder = Path(adapter).expanduser().resolve()
    if not (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{folder} is not a LoRA adapter: it has no adapter_config.json.",
            hint="Give the folder that the fine-tuning left.",
        )
    return folder
