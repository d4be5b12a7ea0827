"""One way to load a card: engine, quantization, dtype, and whence the files come."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util

from workbench.catalog.capabilities import EngineFacts
from workbench.planning.policy import Rules
from workbench.planning.room import Room


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way to load a card.

    Attributes:
        facts: The engine.
        quantization: ``none`` (as the files are) or the form's name.
        dtype: Compute dtype, None where the file decides.
        rank: Place in the order of quality, 0 the best.
        repository: Hub repository to fetch, None for files that are here.
        packed: Method of packed weights, None for plain ones.
        converts: Whether files must be converted or quantized here first.
        unpacked: Whether packed weights become plain ones of the dtype while they load.
        notes: What to know of it, in sentences.
    """

    facts: EngineFacts
    quantization: str
    dtype: str | None
    rank: int
    repository: str | None = None
    packed: str | None = None
    converts: bool = False
    unpacked: bool = False
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str | None, ...]:
        """What its memory depends on."""
        return self.facts.name, self.quantization, self.dtype, self.packed, self.repository

    @property
    def name(self) -> str:
        """Engine and form, for sentences."""
        form = self.quantization
        if self.packed == "gguf":
            form = f"{'GGUF' if form == 'none' else form} as {self.dtype}"
        elif form == "none":
            form = self.packed if self.packed and not self.unpacked else (self.dtype or "as it is")
        return f"{self.facts.name} {form}"


@functools.cache
def is_installed(module: str) -> bool:
    """Return whether a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def has_bf16(room: Room, rules: Rules) -> bool:
    """Return whether the devices compute in bfloat16."""
    return room.device != "cuda" or (room.capability or 99) >= rules.bf16_capability


def sixteen_bits(facts: EngineFacts, room: Room, rules: Rules) -> str | None:
    """Return bf16 where engine and GPU have it, else fp16, else what the engine has."""
    for dtype in ("bf16", "fp16"):
        if dtype in facts.dtypes and (dtype == "fp16" or has_bf16(room, rules)):
            return dtype
    return facts.dtypes[0] if facts.dtypes else None


def dtypes_of(facts: EngineFacts, room: Room, rules: Rules) -> list[str | None]:
    """Return the dtypes of unquantized weights: exact first on a CPU, 16 bits on a GPU."""
    half = sixteen_bits(facts, room, rules)
    if room.device == "cpu" and "fp32" in facts.dtypes:
        return ["fp32", half]
    return [half]
