"""A plan: how a card is loaded on a machine, and why, as data that prints, travels and stays."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.catalog import Card, ModelFiles, catalog, locate, resolve
from workbench.errors import InputError, NotFoundError, WorkbenchError, did_you_mean
from workbench.figures import Table
from workbench.memory import Estimate
from workbench.paths import atomic_file
from workbench.planning.policy import GIB

SCHEMA = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a plan needs of one memory.

    Attributes:
        place: ``cuda``, ``2 x cuda``, ``mps`` or ``RAM``.
        needed_bytes: By the estimate.
        usable_bytes: What may be used, the margin taken off.
    """

    place: str
    needed_bytes: int
    usable_bytes: int

    @property
    def short_bytes(self) -> int:
        """Bytes too much, 0 where it fits."""
        return max(0, self.needed_bytes - self.usable_bytes)

    def __str__(self) -> str:
        said = f"{gib(self.needed_bytes)} of {gib(self.usable_bytes)} GiB of {self.place}"
        return f"{said}, {gib(self.short_bytes)} GiB too much" if self.short_bytes else said


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to load one card on one machine.

    Attributes:
        card: What the model is.
        engine: Name of the engine, for example ``transformers`` or ``llama.cpp``.
        files: The model's files on disk; None where they are still to be fetched, or for an engine
            without files (scripted, remote).
        repository: Hub repository that the files come from; None for local ones.
        quantization: ``none``, or a name from the engine's facts (``nf4``, ``Q4_K_M``).
        dtype: Compute dtype, ``fp32``, ``bf16`` or ``fp16``; None where the file decides.
        context: Tokens of context to allocate, or of a row when it is trained.
        batch: Sequences at a time.
        device: ``cpu``, ``cuda`` or ``mps``.
        gpu_layers: Layers on the GPU for llama.cpp: -1 all, 0 none.
        experts_on_cpu: First layers whose experts stay in RAM (llama.cpp, mixtures of experts).
        cache_type: Type of keys and values in the KV cache: ``f16``, ``q8_0``, ``q4_0``.
        flash_attention: For llama.cpp; None leaves the engine's default.
        tensor_parallel: GPUs that share the model: slices of each tensor in vLLM, whole layers in
            transformers and llama.cpp.
        max_memory: Most bytes of weights by device (``0``, ``1``, ``cpu``) for transformers' own
            placement of layers; empty puts all on ``device``.
        threads: CPU threads, or None for the engine's default.
        adapter: Folder of a PEFT LoRA adapter to load on top, or None.
        options: Further arguments, passed to the engine by name.
        task: ``chat`` or ``finetune``.
        training: Settings of ``wb.finetune`` when the task is that.
        offload: What a training keeps in RAM: ``layers``, ``optimizer``, ``gradients``.
        policy: The policy that chose.
        machine: The machine it is for, in words; "" for this one.
        fits: Whether it fits with its margin; None where its memory is not known.
        needs: What it needs of each memory.
        estimate: The memory in parts, or None where it is not known.
        reasons: Why each choice was made, in sentences.
        considered: What was considered before and does not fit, and by how much.
        changes: The smallest changes that would make it fit, where it does not.
    """

    card: Card
    engine: str
    files: ModelFiles | None = None
    repository: str | None = None
    quantization: str = "none"
    dtype: str | None = None
    context: int
    batch: int = 1
    device: str = "cpu"
    gpu_layers: int = 0
    experts_on_cpu: int = 0
    cache_type: str = "f16"
    flash_attention: bool | None = None
    tensor_parallel: int = 1
    max_memory: Mapping[str, int] = dataclasses.field(default_factory=dict)
    threads: int | None = None
    adapter: Path | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    task: str = "chat"
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    offload: tuple[str, ...] = ()
    policy: str = "fit"
    machine: str = ""
    fits: bool | None = None
    needs: tuple[Need, ...] = ()
    estimate: Estimate | None = None
    reasons: tuple[str, ...] = ()
    considered: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Short name for tables: card, engine and form."""
        form = self.quantization if self.quantization != "none" else (self.dtype or "as stored")
        adapted = f" + {self.adapter.name}" if self.adapter else ""
        return f"{self.card.id} · {self.engine} · {form}{adapted}"

    def table(self) -> Table:
        """Return the plan as a table of names and values: memory and reasons last."""
        rows = [{"plan": name, "value": value} for name, value in self._settings()]
        if self.needs:
            verdict = {True: "fits", False: "does not fit", None: "unknown"}[self.fits]
            rows.append({"plan": "memory", "value": verdict})
            rows += [{"plan": "needs", "value": str(need)} for need in self.needs]
        if self.estimate is not None:
            rows.append({"plan": "certainty", "value": self.estimate.certainty()})
        for name, sentences in (
            ("considered", self.considered),
            ("because", self.reasons),
            ("would fit", self.changes),
        ):
            rows += [{"plan": name, "value": sentence} for sentence in sentences]
        return Table(rows, caption=self.label)

    def _settings(self) -> list[tuple[str, str]]:
        """Return what is not at its default, as texts."""
        plain = self.describe()
        told = ("reasons", "considered", "changes", "needs", "estimate", "fits", "schema_version")
        defaults = {
            field.name: field.default
            for field in dataclasses.fields(self)
            if field.default is not dataclasses.MISSING and field.name != "quantization"
        }
        rows = []
        for name, value in plain.items():
            if name in told or value in (None, "", {}, []) or value == defaults.get(name, ...):
                continue
            if name == "max_memory":
                value = {place: f"{gib(size)} GiB" for place, size in value.items()}
            if isinstance(value, dict):
                value = ", ".join(f"{key}={item}" for key, item in value.items())
            rows.append((name.replace("_", " "), str(value)))
        return rows

    def __str__(self) -> str:
        return str(self.table())

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.table()._repr_mimebundle_()

    def describe(self) -> dict[str, Any]:
        """Return the plan as plain data for receipts and files; ``Plan.of`` reads it."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **plain,
            "card": self.card.id,
            "card_path": None if self.card.path is None else str(self.card.path),
            "files": str(self.files.path) if self.files else None,
            "adapter": str(self.adapter) if self.adapter else None,
            "max_memory": dict(self.max_memory),
            "options": dict(self.options),
            "training": dict(self.training),
            "offload": list(self.offload),
            "needs": [dataclasses.asdict(need) for need in self.needs],
            "estimate": self.estimate.describe() if self.estimate else None,
            "reasons": list(self.reasons),
            "considered": list(self.considered),
            "changes": list(self.changes),
        }

    @classmethod
    def of(cls, values: Mapping[str, Any], *, source: str = "arguments") -> Plan:
        """Return the plan that ``describe`` made plain.

        Args:
            values: Names and values; those not given have their defaults.
            source: Where they come from, named in errors.

        Raises:
            InputError: An unknown or missing key, or a value of another kind.
            NotFoundError: Its card, or its local files, are not here any more.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        given = {name: value for name, value in values.items() if name != "schema_version"}
        path = given.pop("card_path", None)
        for name in given:
            if name not in known:
                raise InputError(
                    f"{source}: a plan has no key {name!r}.", hint=did_you_mean(str(name), known)
                )
        for name in ("card", "engine", "context"):
            if name not in given:
                raise InputError(f"{source}: a plan needs the key {name!r}.")
        given["card"] = card = _card(given["card"], path)
        given["files"] = _files(given.get("files"), card)
        given["adapter"] = Path(given["adapter"]).expanduser() if given.get("adapter") else None
        try:
            given["needs"] = tuple(Need(**need) for need in given.get("needs") or ())
            found = given.get("estimate")
            given["estimate"] = Estimate.of(found) if found else None
            for name in ("reasons", "considered", "changes", "offload"):
                given[name] = tuple(map(str, given.get(name) or ()))
            for name in ("options", "training", "max_memory"):
                given[name] = dict(given.get(name) or {})
        except (TypeError, ValueError) as error:
            raise InputError(f"{source}: this is no plan: {error}.") from None
        return _checked(cls(**given), source)

    def save(self, path: str | Path) -> Path:
        """Write the plan as JSON, whole or not at all, and return the file."""
        final = Path(path).expanduser().absolute()
        with atomic_file(final) as partial:
            text = json.dumps({"schema_version": SCHEMA, **self.describe()}, indent=1)
            partial.write_text(text + "\n", encoding="utf-8")
        return final

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Read a plan that ``save`` wrote.

        Raises:
            NotFoundError: There is no such file.
            InputError: It is not JSON, or not a plan.
        """
        file = Path(path).expanduser()
        if not file.is_file():
            raise NotFoundError(f"There is no plan {file}.", hint="plan.save(path) writes one.")
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{file} is not valid JSON: {error}.") from None
        if not isinstance(values, dict):
            raise InputError(f"{file} holds a {type(values).__name__}, not a plan.")
        if values.get("schema_version", SCHEMA) != SCHEMA:
            raise InputError(
                f"{file} is a plan of schema {values['schema_version']!r}, this reads {SCHEMA}."
            )
        return cls.of(values, source=str(file))


def _checked(plan: Plan, source: str) -> Plan:
    """Refuse values of another kind: a plan file is written by hand as well."""
    for field in dataclasses.fields(plan):
        value = getattr(plan, field.name)
        default = field.default
        wanted: tuple[type, ...] = ()
        if field.name in ("engine",):
            wanted = (str,)
        elif field.name == "context" or (type(default) is int):
            wanted = (int,)
        elif type(default) is str:
            wanted = (str,)
        if wanted and (not isinstance(value, wanted) or isinstance(value, bool)):
            raise InputError(f"{source}: {field.name} is {wanted[0].__name__}, not {value!r}.")
    if plan.context < 1 or plan.batch < 1 or plan.tensor_parallel < 1:
        raise InputError(f"{source}: context, batch and tensor_parallel are 1 or more.")
    return plan


def _card(value: Any, path: Any) -> Card:
    if isinstance(value, Mapping):
        return Card.of(value)
    shelf = catalog()
    if value in shelf and (path is None or shelf[value].path == path):
        return shelf[str(value)]
    if path is not None:
        return resolve(Path(str(path)))
    try:
        return resolve(str(value))
    except NotFoundError:
        return Card(id=str(value))  # an engine without files needs no more than a name


def _files(value: Any, card: Card) -> ModelFiles | None:
    if value is None or isinstance(value, ModelFiles):
        return value
    if isinstance(value, Mapping):
        paths = {"path": Path(value["path"]), "weights": tuple(map(Path, value["weights"]))}
        return ModelFiles(**{**value, **paths})
    try:
        return locate(Card(id=card.id, path=str(Path(value).expanduser())))
    except WorkbenchError:
        if card.path is not None:
            return locate(card)
        if card.repository or card.gguf:
            return None  # they can be fetched again
        raise


def gib(size: float) -> str:
    """Return bytes as GiB with one or two digits behind the point."""
    value = size / GIB
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.2f}"
