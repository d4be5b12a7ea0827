"""The forms a card could be loaded in: engine, quantization, dtype, and whence the files come."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

from workbench.catalog import Card, ModelFiles
from workbench.catalog.capabilities import EngineFacts, automatic_engines, engine_facts
from workbench.catalog.card import ReadyForm
from workbench.catalog.server_place import missing_of
from workbench.planning.form import Form, dtypes_of, has_bf16, is_installed, sixteen_bits
from workbench.planning.gguf_forms import gguf_forms, unpacked_forms
from workbench.planning.policy import Rules
from workbench.planning.room import Room

_AS_TRAINED = ("mxfp4", "fp8")


def automatic(room: Room) -> list[str]:
    """Return the engines that may be chosen on a room's devices where none is named."""
    every = engine_facts()
    return [
        name
        for name in automatic_engines()
        if not every[name].automatic_on or room.device in every[name].automatic_on
    ]


def installed(facts: EngineFacts) -> bool:
    """Return whether all packages of an engine are here."""
    return not missing_of(facts)


def forms_of(
    card: Card,
    files: ModelFiles | None,
    *,
    room: Room,
    rules: Rules,
    engines: Iterable[str],
    asked: str | None = None,
    named: bool = False,
) -> list[Form]:
    """Return the forms of a card on a machine, best first: quality, no conversion, preference.

    Args:
        card: The model.
        files: Its local files, or None where they are still to be fetched.
        room: Where it is to run; on this machine only what is installed counts.
        rules: The order of quality and the preferences.
        engines: Names of the engines that may be used.
        asked: A form that the user named; it is among the forms where an engine can do it.
        named: Whether the user named the engine; it then loads also what it has to unpack.
    """
    known = engine_facts()
    found: list[Form] = []
    for name in engines:
        facts = known.get(name)
        if facts is None or not facts.formats:
            continue
        if room.here and facts.server is None and not installed(facts):
            continue
        if room.device not in facts.devices:
            continue
        if "safetensors" in facts.formats:
            found += _from_safetensors(facts, card, files, room, rules, asked)
        if "gguf" in facts.formats:
            found += gguf_forms(facts, card, files, rules, asked)
        elif named and "gguf" in facts.only_when_named:
            found += unpacked_forms(facts, card, files, room, rules, asked)
    return sorted(found, key=lambda form: _order(form, card, room, rules))


def _order(form: Form, card: Card, room: Room, rules: Rules) -> tuple[int, int, int, int]:
    parameters = card.architecture.parameters or 0
    exact = form.rank == 0
    preferred = (rules.engines if exact else rules.quantized_engines).get(room.device, ())
    if room.device == "cpu" and parameters <= rules.small:
        preferred = ("transformers", *preferred)
    name = form.facts.name
    place = preferred.index(name) if name in preferred else len(preferred)
    dtypes = ("fp32", "bf16", "fp16")
    width = dtypes.index(form.dtype) if form.dtype in dtypes else len(dtypes)
    return form.rank, int(form.converts and room.device == "cuda"), place, width


def _from_safetensors(
    facts: EngineFacts,
    card: Card,
    files: ModelFiles | None,
    room: Room,
    rules: Rules,
    asked: str | None,
) -> Iterator[Form]:
    if files is not None and files.kind != "safetensors":
        return
    if files is None and card.repository is None:
        return
    repository = card.repository if files is None else None
    if card.stored is not None:
        yield from _packed(facts, card, card.stored.method, repository, "none", room, rules)
    else:
        for dtype in dtypes_of(facts, room, rules):
            yield Form(facts=facts, quantization="none", dtype=dtype, rank=0, repository=repository)
        for name in facts.quantizations:
            by_wish = name in rules.packed or name in facts.only_when_asked
            if name not in facts.on_load or (by_wish and name != asked):
                continue  # what ready weights are named too is made here only where it is asked for
            if files is None and any(ready_name(each) == name for each in card.forms):
                continue
            if room.here and not all(map(is_installed, facts.modules_for(name))):
                continue
            yield Form(
                facts=facts,
                quantization=name,
                dtype=sixteen_bits(facts, room, rules),
                rank=rules.rank(name),
                repository=repository,
                converts=files is None and card.gguf is not None,
            )
    if files is None:
        for ready in card.forms:
            name = ready_name(ready)
            if ready.kind in rules.packed and (
                name == asked or _able(facts, ready.kind, room, rules)
            ):
                yield from _packed(facts, card, ready.kind, ready.repository, name, room, rules)


def ready_name(ready: ReadyForm) -> str:
    """Return the name of a ready quantized form: ``awq``, ``gptq-8``, MLX's ``4bit``."""
    if ready.kind == "mlx":
        return f"{ready.bits or 4}bit"
    return f"{ready.kind}-8" if ready.kind == "gptq" and ready.bits == 8 else ready.kind


def _able(facts: EngineFacts, method: str, room: Room, rules: Rules) -> bool:
    """Whether an engine can be expected to load a packed form that nobody asked for."""
    if method in facts.quantizations or facts.name in rules.packed[method].engines:
        return True
    return room.here and all(map(is_installed, rules.packed[method].needs.get(facts.name, ("?",))))


def _packed(
    facts: EngineFacts,
    card: Card,
    method: str,
    repository: str | None,
    name: str,
    room: Room,
    rules: Rules,
) -> Iterator[Form]:
    """Yield the form of packed weights, unpacked to 16 bit where the device has no kernels."""
    rule = rules.packed.get(method)
    if rule is None or (rule.engines and facts.name not in rule.engines):
        return
    quality = name if method == "mlx" and name != "none" else method
    rank = 0 if name == "none" and method in _AS_TRAINED else rules.rank(quality)
    needs = rule.needs.get(facts.name, ())
    missing = [module for module in needs if room.here and not is_installed(module)]
    weak = rule.capability is not None and (room.capability or 99) < rule.capability
    unpacked = room.device not in rule.devices or weak or bool(missing and method in _AS_TRAINED)
    if unpacked and (name != "none" or (method not in _AS_TRAINED and room.device != "mps")):
        return  # no kernels for it here, and no way or no reason to unpack it
    if missing and not unpacked:
        return
    dtype = packed_dtype(facts, method, room, rules)
    if dtype is None:
        return
    notes: list[str] = []
    if unpacked:
        reason = f"{', '.join(missing)} is not installed" if missing else f"{room.device} lacks it"
        notes.append(f"{method} weights are unpacked to 16 bit while loading: {reason}.")
    elif needs and not room.here:
        notes.append(f"{facts.name} needs {' and '.join(needs)} there for {method} weights.")
    yield Form(
        facts=facts,
        quantization=name,
        dtype=dtype,
        rank=rank,
        repository=repository,
        packed=method,
        unpacked=unpacked,
        notes=tuple(notes),
    )


def packed_dtype(facts: EngineFacts, method: str, room: Room, rules: Rules) -> str | None:
    """Return the compute dtype of packed weights, None where engine and GPU have none for it.

    AWQ and GPTQ compute in float16 where the engine's version or the GPU has no bfloat16; MXFP4
    only in bfloat16.
    """
    able = [each for each in rules.packed[method].dtypes if each in facts.dtypes]
    if method in rules.float16_only.get(facts.name, ()) or _is_older(facts, room, rules):
        able = [each for each in able if each == "fp16"]
    if not has_bf16(room, rules):
        able = [each for each in able if each != "bf16"]
    return able[0] if able else None


def _is_older(facts: EngineFacts, room: Room, rules: Rules) -> bool:
    least = rules.float16_before.get(facts.name)
    version = room.machine.versions.get(facts.name)
    return bool(least and version and _numbers(version) < _numbers(least))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())


def is_gpu_built() -> bool:
    """Return whether the installed llama-cpp-python was built for a GPU, by its libraries."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        return False
    libraries = Path(found.origin).parent / "lib"
    names = {path.name for path in libraries.glob("*ggml-*")}
    return any(word in name for name in names for word in ("cuda", "metal", "vulkan", "hip"))
