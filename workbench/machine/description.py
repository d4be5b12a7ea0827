"""Machines that one does not have: from a short text, a file, or what ``describe`` returned."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from workbench.errors import InputError, NotFoundError, did_you_mean
from workbench.machine.accelerators import WORKING_SET_RULE, by_rule
from workbench.machine.device import Device, bytes_of, gib
from workbench.machine.hardware import Machine
from workbench.settings import read_yaml

ARCHITECTURES = {
    "pascal": (6, 0),
    "volta": (7, 0),
    "turing": (7, 5),
    "ampere": (8, 0),
    "ada": (8, 9),
    "hopper": (9, 0),
    "blackwell": (10, 0),
}
"""Family -> least compute capability of it (NVIDIA's table "CUDA GPU Compute Capability")."""
FORMS = (
    "24GB-cuda, 24GB-cuda-turing, 24GB-cuda-sm75, 2x80GB-cuda, 1x24GB-cuda+64GB-ram, 16GB-mac, "
    "cpu-32GB, or a .yaml or .json file of a machine"
)
_DEFAULT_CAPABILITY = (8, 0)
_CORES = 8
_LEAST_RAM = 32 << 30
_MOST_DEVICES = 64
_KINDS: dict[str, Literal["cuda", "mac", "cpu", "ram"]] = {
    "cuda": "cuda",
    "nvidia": "cuda",
    "mac": "mac",
    "mps": "mac",
    "metal": "mac",
    "cpu": "cpu",
    "ram": "ram",
}
_SIZE = r"(?P<size>\d+(?:\.\d+)?[KMGT](?:I?B)?)"
_SIZE_FIRST = re.compile(
    rf"(?:(?P<count>\d+)x)?{_SIZE}-(?P<kind>[a-z]+)(?:-(?P<family>[a-z0-9]+))?", re.IGNORECASE
)
_KIND_FIRST = re.compile(rf"(?P<kind>[a-z]+)-{_SIZE}", re.IGNORECASE)
_SM = re.compile(r"(?:sm_?)?(\d{1,2})(\d)[af]?")
_FILES = (".yaml", ".yml", ".json")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    kind: Literal["cuda", "mac", "cpu", "ram"]
    count: int
    size: int
    capability: tuple[int, int] | None


def describe_machine(text: str | Path | Mapping[str, Any] | Machine) -> Machine:
    """Return the machine that is described; what is not said is assumed, and noted.

    Args:
        text: For example ``24GB-cuda``; a file; or plain data as ``Machine.describe()`` gives it.
            GB is read as 2**30 bytes, as memory is sold.

    Raises:
        InputError: The text, a key or a value cannot be read.
        NotFoundError: The file does not exist.
    """
    if isinstance(text, Machine):
        return text
    if isinstance(text, Mapping):
        return _of(text, name="given values")
    if isinstance(text, Path) or text.lower().endswith(_FILES):
        return _read(Path(text).expanduser())
    parts = [_part(part.strip(), text) for part in text.split("+")]
    cards = [part for part in parts if part.kind == "cuda"]
    memories = [part for part in parts if part.kind != "cuda"]
    if len(memories) > 1:
        raise _unreadable(text, "its memory is given twice")
    if memories and memories[0].kind == "mac":
        if cards:
            raise _unreadable(text, "a Mac has no CUDA devices")
        return _mac(text, memories[0].size)
    return _with_cards(text, cards, memories[0].size if memories else None)


def _read(path: Path) -> Machine:
    if path.suffix.lower() != ".json":
        return _of(read_yaml(path), name=path.name)
    if not path.is_file():
        raise NotFoundError(f"The file {path} does not exist.", hint="Check its name and folder.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no mapping of names to values.")
    return _of(values, name=path.name)


def _of(values: Mapping[str, Any], *, name: str) -> Machine:
    """Return the machine; its figures stay as they were written, so it counts as described."""
    found = Machine.of(values, source=name)
    return found if found.described else found.changed(described=name)


def _part(part: str, text: str) -> _Part:
    found = _SIZE_FIRST.fullmatch(part) or _KIND_FIRST.fullmatch(part)
    if found is None:
        raise _unreadable(text, f"{part!r} is no size with a kind")
    given = found.groupdict()
    kind = _KINDS.get(given["kind"].lower())
    if kind is None:
        raise _unreadable(text, f"{given['kind']!r} is no kind of memory")
    count, size = int(given.get("count") or 1), int(bytes_of(given["size"]))
    if not 1 <= count <= _MOST_DEVICES or (count > 1 and kind != "cuda"):
        raise _unreadable(text, f"{count} of them cannot be")
    if size < 1 << 20:
        raise _unreadable(text, f"{given['size']} is too little")
    family = given.get("family")
    if family is not None and kind != "cuda":
        raise _unreadable(text, f"{family!r} is said of CUDA devices only")
    return _Part(kind=kind, count=count, size=size, capability=_capability(family, text))


def _capability(family: str | None, text: str) -> tuple[int, int] | None:
    if family is None:
        return None
    name = family.lower()
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    found = _SM.fullmatch(name)
    if found is None:
        raise _unreadable(
            text, f"{family!r} is no architecture", hint=did_you_mean(name, ARCHITECTURES)
        )
    return int(found[1]), int(found[2])


def _unreadable(text: str, why: str, *, hint: str = "") -> InputError:
    forms = f"These are understood: {FORMS}."
    return InputError(
        f"The machine {text!r} cannot be read: {why}.", hint=f"{hint} {forms}" if hint else forms
    )


def _mac(text: str, size: int) -> Machine:
    limit = by_rule(size)
    device = Device(
        kind="mps",
        name="Apple GPU",
        total_bytes=size,
        free_bytes=limit,
        unified=True,
        working_set_bytes=limit,
    )
    return Machine(
        system="Darwin arm64",
        processor="Apple Silicon",
        cores=_CORES,
        instructions=("NEON",),
        ram_bytes=size,
        ram_available_bytes=size,
        devices=(device,),
        described=text,
        notes=(
            f"assumed: a recommended working set of {gib(limit)} GiB, {WORKING_SET_RULE}",
            f"assumed: {_CORES} cores, and nothing else in memory",
        ),
    )


def _with_cards(text: str, cards: list[_Part], ram: int | None) -> Machine:
    assumed = [f"assumed: {_CORES} cores with AVX2, and nothing else in memory"]
    if any(card.capability is None for card in cards):
        assumed.append(
            "assumed: compute capability {}.{} (Ampere), the least that computes in bf16; "
            "write 24GB-cuda-turing or 24GB-cuda-sm75 for another".format(*_DEFAULT_CAPABILITY)
        )
    if ram is None:
        ram = max(_LEAST_RAM, sum(card.count * card.size for card in cards))
        assumed.append(
            f"assumed: {gib(ram)} GiB of RAM, as much as the devices have and at least 32 GiB; "
            "write +64GB-ram for another"
        )
    devices = tuple(
        Device(
            kind="cuda",
            name=f"CUDA device of {card.size / (1 << 30):g} GB",
            total_bytes=card.size,
            free_bytes=card.size,
            compute_capability=card.capability or _DEFAULT_CAPABILITY,
        )
        for card in cards
        for _ in range(card.count)
    )
    return Machine(
        system="Linux x86_64",
        processor="x86-64",
        cores=_CORES,
        instructions=("AVX", "AVX2", "FMA", "F16C"),
        ram_bytes=ram,
        ram_available_bytes=ram,
        devices=devices,
        described=text,
        notes=tuple(assumed),
    )
