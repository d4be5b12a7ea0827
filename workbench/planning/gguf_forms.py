"""The forms of a card as GGUF: as files hold it, made here, or unpacked while loading."""

from __future__ import annotations

from collections.abc import Iterator

from workbench.catalog import Card, ModelFiles
from workbench.catalog.capabilities import EngineFacts
from workbench.catalog.wanted import quantization_of
from workbench.memory.gguf_mix import FILE_TYPES
from workbench.planning.form import Form, dtypes_of
from workbench.planning.planned import gib
from workbench.planning.policy import Rules
from workbench.planning.room import Room


def gguf_forms(
    facts: EngineFacts, card: Card, files: ModelFiles | None, rules: Rules, asked: str | None
) -> Iterator[Form]:
    """Yield the forms of an engine that computes with GGUF as it is, or converts to it."""
    if files is not None and files.kind == "gguf":
        yield Form(facts=facts, quantization="none", dtype=None, rank=0)
        return
    if card.stored is not None and _is_gguf(card) and files is None:
        name = card.stored.quantization or "none"
        home = card.repository or card.unverified_repository
        yield Form(facts=facts, quantization=name, dtype=None, rank=0, repository=home)
        return
    if files is None and card.gguf is not None:
        for name in _with_asked(ready_names(card, rules), asked):
            yield Form(
                facts=facts,
                quantization=name,
                dtype=None,
                rank=0 if name.startswith("MXFP4") else rules.rank(name),
                repository=card.gguf.repository,
            )
        return
    if "safetensors" not in facts.converts or (files is None and card.repository is None):
        return
    if card.stored is not None and card.stored.method not in ("fp8",):
        return  # the converter unpacks what it knows; quantizing 4 bit again is no form to plan
    each = 1 if card.stored else 4 if card.dtype == "fp32" else 2
    size = (card.architecture.parameters or 0) * each
    whence = f"{gib(size)} GiB of safetensors" if size else "the safetensors"
    said = f"No GGUF of it is known: it is made here once, from {whence}."
    made = made_names(facts, card, rules)
    for name in _with_asked(made, asked if asked in facts.quantizations else None):
        yield Form(
            facts=facts,
            quantization=name,
            dtype=None,
            rank=rules.rank(name),
            repository=card.repository if files is None else None,
            converts=True,
            notes=(said,) if files is None else (),
        )


def unpacked_forms(
    facts: EngineFacts,
    card: Card,
    files: ModelFiles | None,
    room: Room,
    rules: Rules,
    asked: str | None,
) -> Iterator[Form]:
    """Yield the forms of an engine that unpacks GGUF to a dtype while it loads.

    They take the memory of that dtype: of a card with safetensors only the one that is asked for
    is among them.
    """
    if files is not None and files.kind != "gguf":
        return
    ready = [""] if files is not None else _ready_gguf(card, rules, asked)
    if files is None and card.repository and not _is_gguf(card) and asked not in ready:
        return
    home = card.gguf.repository if card.gguf else card.repository or card.unverified_repository
    for name in ready:
        for dtype in dtypes_of(facts, room, rules):
            where = ", in RAM before it goes to the device" if room.device != "cpu" else ""
            yield Form(
                facts=facts,
                quantization=name or "none",
                dtype=dtype,
                rank=rules.rank(name) if name else 0,
                repository=home if files is None else None,
                packed="gguf",
                unpacked=True,
                notes=(
                    f"GGUF weights are unpacked while loading{where}: they take the memory of "
                    "their dtype, whatever the size of the file.",
                ),
            )


def _is_gguf(card: Card) -> bool:
    """Whether the card's own repository holds GGUF."""
    return card.stored is not None and card.stored.method == "gguf"


def _ready_gguf(card: Card, rules: Rules, asked: str | None) -> list[str]:
    if card.gguf is not None:
        return _with_asked(ready_names(card, rules), asked)
    if _is_gguf(card) and card.stored is not None:
        return [card.stored.quantization or "none"]
    return []


def _with_asked(names: list[str], asked: str | None) -> list[str]:
    return [*names, str(asked)] if asked in FILE_TYPES and asked not in names else names


def ready_names(card: Card, rules: Rules) -> list[str]:
    """Return the quantizations that the card's GGUF repository has or is likely to have."""
    if card.gguf is None:
        return []
    if "{quantization}" in card.gguf.pattern:
        return list(dict.fromkeys([*card.gguf.files, *rules.ready_gguf]))
    stated = quantization_of(card.gguf.pattern)
    return list(dict.fromkeys([*card.gguf.files, *([stated] if stated else [])]))


def made_names(facts: EngineFacts, card: Card, rules: Rules) -> list[str]:
    """Return one quantization of each quality that the engine makes from safetensors."""
    kept = sixteen_bit_gguf(card.dtype)
    found = [kept]
    for line in rules.quality[1:]:
        name = next((each for each in line if each in facts.quantizations), None)
        if name is not None:
            found.append(name)
    return found


def sixteen_bit_gguf(stored_dtype: str | None) -> str:
    """Return the GGUF type of 16 bits that keeps most of what is stored."""
    return "BF16" if stored_dtype == "bf16" else "F16"
