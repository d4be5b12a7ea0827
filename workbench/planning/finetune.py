"""The plan of a fine-tuning: method, batch, length, checkpointing and sharding by what fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from workbench.catalog import Card, ModelFiles, catalog
from workbench.errors import InputError, UnsupportedError, WorkbenchError, did_you_mean
from workbench.memory import Estimate
from workbench.memory.training import estimate_training
from workbench.memory.training_setting import Method, Sharding
from workbench.planning.changes import SOLD_GPU, SOLD_RAM
from workbench.planning.form import has_bf16
from workbench.planning.planned import Need, Plan, gib
from workbench.planning.policy import GIB, Rules, rules
from workbench.planning.room import Room

AUTO = "auto"
_METHODS: dict[str, Method] = {"none": "lora", "int8": "qlora", "nf4": "qlora"}
_MOST_TRIED = 6


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way to train.

    Attributes:
        quantization: Of the frozen base: ``none``, ``int8`` or ``nf4``.
        length: Tokens of a row.
        batch: Rows per device and pass.
        checkpointing: Whether activations are recomputed.
        optimizer: ``adamw`` or ``paged_adamw_8bit``.
        devices: GPUs.
        sharding: File of ``configs/accelerate``, for several GPUs.
        offload: What lies in RAM.
    """

    quantization: str
    length: int
    batch: int
    checkpointing: bool
    optimizer: str
    devices: int = 1
    sharding: Sharding = "ddp"
    offload: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = "1 row" if self.batch == 1 else f"{self.batch} rows"
        said = f"{_METHODS[self.quantization]} on a {self.base} base, {rows} of "
        said += f"{self.length} tokens"
        said += ", checkpointed" if self.checkpointing else ""
        if self.devices > 1:
            said += f", {self.devices} GPUs with {self.sharding}"
        if self.optimizer != "adamw":
            said += f", {self.optimizer}"
        return said + (f", {' and '.join(self.offload)} in RAM" if self.offload else "")

    @property
    def base(self) -> str:
        """The base in words."""
        return "plain" if self.quantization == "none" else self.quantization


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Tried:
    setting: Setting
    estimate: Estimate
    needs: tuple[Need, ...]

    @property
    def short_bytes(self) -> int:
        return sum(need.short_bytes for need in self.needs)


def plan_finetune(
    card: Card,
    *,
    files: ModelFiles | None,
    room: Room,
    length: int | None = None,
    batch: int | None = None,
    quantization: str = AUTO,
    policy: str = "fit",
) -> Plan:
    """Choose how to fine-tune a LoRA of a card: the base as exact, the rows as long as fit.

    Args:
        card: The model.
        files: Its local files, or None.
        room: The machine.
        length: Tokens of a row; None tries the rules'.
        batch: Rows per device and pass; None tries the rules'.
        quantization: Of the base: ``none``, ``int8``, ``nf4`` or ``auto``.
        policy: ``fit`` or ``by-size``.

    Raises:
        UnsupportedError: The weights are packed or of a form that is not trained.
        InputError: An impossible length or quantization.
    """
    _check(card, files, length, quantization)
    tried: list[_Tried] = []
    found: _Tried | None = None
    trouble = ""
    settings = _settings(card, room, rules(), length, batch, quantization, policy)
    for setting in settings:
        try:
            attempt = _attempt(card, setting, room)
        except WorkbenchError as error:
            trouble = trouble or str(error)
            continue
        tried.append(attempt)
        if not attempt.short_bytes:
            found = attempt
            break
    if not tried:
        raise InputError(f"The training memory of {card.id} is not known.", hint=trouble or None)
    taken = found or min(tried, key=lambda attempt: attempt.short_bytes)
    return _made(card, files, room, taken, tried, policy)


def _check(card: Card, files: ModelFiles | None, length: int | None, quantization: str) -> None:
    if quantization not in (AUTO, *_METHODS):
        raise InputError(
            f"A base is not trained in {quantization!r}.",
            hint=did_you_mean(quantization, _METHODS),
        )
    if length is not None and (isinstance(length, bool) or length < 8):
        raise InputError(f"context must be 8 or more tokens of a row, not {length}.")
    if length is not None and card.context_length and length > card.context_length:
        raise InputError(
            f"context={length} is more than {card.id} was made for ({card.context_length})."
        )
    if card.stored is not None or (files is not None and files.kind != "safetensors"):
        stored = card.stored.method if card.stored else "GGUF"
        raise UnsupportedError(
            f"The {stored} weights of {card.id} are not fine-tuned.",
            hint="Take the card of the same model with plain safetensors.",
        )
    if files is None and card.repository is None:
        raise UnsupportedError(f"The card {card.id} names no safetensors to train.")


def _settings(
    card: Card,
    room: Room,
    found: Rules,
    length: int | None,
    batch: int | None,
    quantization: str,
    policy: str,
) -> Iterator[Setting]:
    """Yield the ways to train, the best first: an exact base, long rows, few recomputations."""
    most = card.context_length or found.finetune.lengths[0]
    lengths = (
        [length]
        if length
        else list(dict.fromkeys(min(each, most) for each in found.finetune.lengths))
    )
    bases = _bases(card, room, found, quantization, policy)
    count = max(1, len(room.device_bytes))
    for tokens in lengths:
        for base in bases:
            offload = _by_size_offload(card, base, found) if policy == "by-size" else ()
            for sharding, devices in _sharings(base, count, found):
                for optimizer in found.finetune.optimizers[: 2 if room.device == "cuda" else 1]:
                    for checkpointing, rows in _batches(batch, found):
                        yield Setting(
                            quantization=base,
                            length=tokens,
                            batch=rows,
                            checkpointing=checkpointing,
                            optimizer=optimizer,
                            devices=devices,
                            sharding=sharding,
                            offload=offload,
                        )


def _bases(card: Card, room: Room, found: Rules, quantization: str, policy: str) -> list[str]:
    if quantization != AUTO:
        return [quantization]
    if policy == "by-size":
        form = found.size_rule(card.architecture.parameters or 0).forms[-1]
        return [form if form in _METHODS else "none"]
    if room.device == "cpu":
        return ["none", "nf4"]
    return sorted(_METHODS, key=found.rank)


def _by_size_offload(card: Card, base: str, found: Rules) -> tuple[str, ...]:
    size = {"none": 2.0, "int8": 1.0, "nf4": 0.56}[base]
    return found.size_offload(int((card.architecture.parameters or 0) * size))


def _sharings(base: str, count: int, found: Rules) -> list[tuple[Sharding, int]]:
    """Return how the GPUs share: copies where the base fits on one, else a base that is cut."""
    if count == 1:
        return [("ddp", 1)]
    able = [name for name in found.finetune.sharding if name == "ddp" or base == "none"]
    return [(name, count) for name in able]


def _batches(batch: int | None, found: Rules) -> list[tuple[bool, int]]:
    if batch is not None:
        return [(False, batch), (True, batch)]
    sizes = found.finetune.batches
    return [*((False, rows) for rows in sizes[:2]), *((True, rows) for rows in sizes)]


def _attempt(card: Card, setting: Setting, room: Room) -> _Tried:
    estimate = estimate_training(
        card,
        method=_METHODS[setting.quantization],
        quantization=setting.quantization,
        rank=rules().finetune.rank,
        batch=setting.batch,
        sequence=setting.length,
        gradient_checkpointing=setting.checkpointing,
        optimizer=setting.optimizer.replace("_", "-"),
        devices=setting.devices,
        sharding=setting.sharding if setting.devices > 1 else "none",
        offload=setting.offload,
        dtype=_dtype(room),
        device=room.device,
    )
    needs = room.needs(estimate, 1)
    return _Tried(setting=setting, estimate=estimate, needs=needs)


def _dtype(room: Room) -> str:
    if room.device != "cuda":
        return "fp32"
    return "bf16" if has_bf16(room, rules()) else "fp16"


def _made(
    card: Card,
    files: ModelFiles | None,
    room: Room,
    taken: _Tried,
    tried: Sequence[_Tried],
    policy: str,
) -> Plan:
    setting, fits = taken.setting, not taken.short_bytes
    before = [attempt for attempt in tried if attempt is not taken]
    return Plan(
        card=card,
        engine="transformers",
        files=files,
        repository=card.repository if files is None else None,
        quantization=setting.quantization,
        dtype=_dtype(room),
        context=setting.length,
        batch=setting.batch,
        device=room.device,
        gpu_layers=0 if room.device == "cpu" else -1,
        tensor_parallel=setting.devices,
        task="finetune",
        training=_recipe(setting),
        offload=setting.offload,
        policy=policy,
        machine=room.name,
        fits=fits,
        needs=taken.needs,
        estimate=taken.estimate,
        reasons=tuple(_reasons(card, taken, room, fits=fits, policy=policy)),
        considered=tuple(_considered(before)),
        changes=() if fits else _changes(card, taken, room),
    )


def _recipe(setting: Setting) -> dict[str, Any]:
    """Return the settings of ``wb.finetune`` that make it so."""
    rows = max(1, rules().finetune.rows // (setting.batch * setting.devices))
    return {
        "method": _METHODS[setting.quantization],
        "quantization": setting.quantization,
        "rank": rules().finetune.rank,
        "batch_size": setting.batch,
        "gradient_accumulation": rows,
        "max_length": setting.length,
        "gradient_checkpointing": setting.checkpointing,
        "optimizer": setting.optimizer,
        "processes": setting.devices,
        "parallel": setting.sharding,
    }


def _reasons(card: Card, taken: _Tried, room: Room, *, fits: bool, policy: str) -> list[str]:
    setting = taken.setting
    said = [room.sentence()]
    needs = " and ".join(str(need) for need in taken.needs)
    verdict = "is the first that fits" if fits else "misses least"
    said.append(f"{setting} {verdict}: {needs}.")
    if policy == "by-size":
        billions = (card.architecture.parameters or 0) / 1e9
        said.append(f"A {setting.base} base, because it has {billions:.1f} billion parameters.")
    elif setting.quantization != "none":
        said.append(f"A base in {setting.quantization}, because a plain one does not fit.")
    if setting.checkpointing:
        said.append("Activations are recomputed: less memory, about a quarter more time.")
    if setting.devices > 1:
        how = "each holds a copy" if setting.sharding == "ddp" else "the base is cut over them"
        said.append(f"{setting.devices} GPUs by configs/accelerate/{setting.sharding}.yaml: {how}.")
    if setting.offload:
        said.append(
            f"{', '.join(setting.offload).capitalize()} in RAM, by the size of the model: set the "
            "offload lines of configs/accelerate/zero3.yaml."
        )
    return said


def _considered(tried: Sequence[_Tried]) -> list[str]:
    """Return what does not fit: the closest of each base, sharding and length."""
    closest: dict[tuple[Any, ...], _Tried] = {}
    for attempt in tried:
        key = (attempt.setting.quantization, attempt.setting.sharding, attempt.setting.length)
        if key not in closest or attempt.short_bytes < closest[key].short_bytes:
            closest[key] = attempt
    said = [
        f"{attempt.setting} needs {gib(attempt.short_bytes)} GiB more than there is."
        for attempt in closest.values()
    ]
    return said[:_MOST_TRIED]


def _changes(card: Card, taken: _Tried, room: Room) -> tuple[str, ...]:
    """Return at most three changes that make it fit: length, base, another card, larger GPUs."""
    found: list[str] = []
    setting = taken.setting

    def fits(other: Card, changed: Setting, where: Room) -> bool:
        try:
            return not _attempt(other, changed, where).short_bytes
        except WorkbenchError:
            return False

    length = setting.length // 2
    while length >= 64:
        if fits(card, dataclasses.replace(setting, length=length), room):
            found.append(f"context={length} tokens of a row instead of {setting.length}.")
            break
        length //= 2
    if setting.quantization != "nf4":
        smaller = dataclasses.replace(setting, quantization="nf4", devices=1, sharding="ddp")
        if fits(card, smaller, room):
            found.append("quantization='nf4': a base in 4 bit.")
    small = dataclasses.replace(setting, quantization="nf4", devices=1, sharding="ddp")
    size = card.architecture.parameters or 0
    others = sorted(
        (each for each in catalog() if each.family == card.family and each.stored is None),
        key=lambda each: -(each.architecture.parameters or 0),
    )
    for other in others:
        if 0 < (other.architecture.parameters or 0) < size and fits(other, small, room):
            found.append(f"{other.id} instead, by qlora in nf4.")
            break
    found += _larger(card, small, room, fits)
    found += _more_gpus(card, setting, room, fits)
    return tuple(found[:3])


def _more_gpus(card: Card, setting: Setting, room: Room, fits: Any) -> list[str]:
    """Return how many GPUs like these hold a plain base that is cut over them."""
    if room.device != "cuda":
        return []
    for count in (2, 4, 8, 16):
        cut = dataclasses.replace(
            setting, quantization="none", devices=count, sharding="fsdp", checkpointing=True
        )
        if count > setting.devices and fits(card, cut, room):
            return [f"{count} GPUs like this: {cut}."]
    return []


def _larger(card: Card, setting: Setting, room: Room, fits: Any) -> list[str]:
    """Return the least memory that is sold and holds the smallest way to train."""
    keep = 1 - rules().margin
    for size in SOLD_GPU if room.device == "cuda" else SOLD_RAM:
        usable = int(size * GIB * keep)
        if room.device == "cuda":
            larger = dataclasses.replace(room, device_bytes=(usable,))
            grown, named = usable > max(room.device_bytes), f"a GPU of {size} GB"
        else:
            share = tuple(int(usable * 0.75) for _ in room.device_bytes)
            larger = dataclasses.replace(room, host_bytes=usable, device_bytes=share)
            grown, named = usable > room.host_bytes, f"{size} GB of memory"
        if grown and fits(card, setting, larger):
            return [f"{named}: {setting}."]
    return []
