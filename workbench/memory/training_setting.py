"""The settings of a fine-tuning whose memory is asked for, checked and filled in."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Literal

from workbench.errors import InputError
from workbench.memory.estimate import Place
from workbench.memory.request import DEVICES, check_choice, check_count, float_width
from workbench.memory.saved import Cast

Method = Literal["lora", "qlora", "full"]
Sharding = Literal["none", "ddp", "zero1", "zero2", "zero3", "fsdp"]
METHODS = ("lora", "qlora", "full")
SHARDINGS = ("none", "ddp", "zero1", "zero2", "zero3", "fsdp")
OFFLOADS = ("optimizer", "gradients", "layers")
OPTIMIZERS = {
    "adamw": 2.0, "adam": 2.0, "adamw-8bit": -2.0, "paged-adamw": 2.0, "paged-adamw-8bit": -2.0,
    "sgd": 0.0, "sgd-momentum": 1.0, "lion": 1.0, "adafactor": 0.01,
}  # fmt: skip
"""States of an optimizer: copies of a trained weight in its dtype, or (below 0) bytes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A fine-tuning, checked."""

    method: Method
    quantization: str
    rank: int
    targets: str | tuple[str, ...]
    dropout: float
    batch: int
    sequence: int
    checkpointing: bool
    optimizer: str
    dtype: str
    adapter_dtype: str
    cast: Cast
    loss: str
    prepared: bool
    attention: str
    devices: int
    sharding: Sharding
    offload: frozenset[str]
    accumulation: int
    master: bool
    device: str

    @property
    def tokens(self) -> int:
        """Tokens of a forward pass."""
        return self.batch * self.sequence

    @property
    def width(self) -> int:
        """Bytes of an activation: fp32 where k-bit preparation has cast embeddings and norms."""
        return 4 if self.prepared else float_width(self.dtype)

    @property
    def place(self) -> Place:
        """Where everything is that is not offloaded."""
        return "host" if self.device == "cpu" else "device"


def checked(
    *,
    dtype: str | None,
    adapter_dtype: str | None,
    quantization: str | None,
    autocast: bool | None,
    prepared: bool,
    offload: Collection[str],
    method: Method,
    dropout: float,
    device: str,
    devices: int,
    sharding: Sharding,
    optimizer: str,
    loss: str,
    attention: str,
    rank: int,
    batch: int,
    sequence: int,
    accumulation: int,
    targets: str | tuple[str, ...],
    checkpointing: bool,
    master: bool,
) -> Setting:
    """Return the settings, checked; what was left open follows from the others.

    Raises:
        InputError: A value that does not fit; the message names it.
    """
    check_choice("method", method, METHODS)
    check_choice("sharding", sharding, SHARDINGS)
    check_choice("optimizer", optimizer, tuple(OPTIMIZERS))
    check_choice("loss", loss, ("plain", "fused"))
    check_choice("attention", attention, ("sdpa", "eager", "flash"))
    check_choice("device", device, DEVICES)
    counts = {"rank": rank, "batch": batch, "sequence": sequence, "devices": devices}
    for name, value in {**counts, "accumulation": accumulation}.items():
        check_count(name, value)
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must be 0 or more and below 1, not {dropout!r}.")
    away = frozenset([offload] if isinstance(offload, str) else offload)
    for name in away:
        check_choice("offload", name, OFFLOADS)
    if sharding == "none" and devices != 1:
        raise InputError(f"devices={devices} needs a sharding.", hint="Take ddp, zero3 or fsdp.")
    quantized = method == "qlora"
    kind = check_choice(
        "dtype", dtype or ("fp32" if device == "cpu" else "bf16"), ("fp32", "bf16", "fp16")
    )
    ready = prepared and quantized
    own = "bf16" if quantized and not ready else "fp32"
    adapter = check_choice("adapter_dtype", adapter_dtype or own, ("fp32", "bf16", "fp16"))
    runs = device != "cpu" and kind != "fp32" if autocast is None else autocast
    return Setting(
        method=method,
        quantization=quantization or ("nf4-double" if quantized else "none"),
        rank=rank,
        targets=targets,
        dropout=dropout,
        batch=batch,
        sequence=sequence,
        checkpointing=checkpointing,
        optimizer=optimizer,
        dtype=kind,
        adapter_dtype=adapter,
        cast=_cast(adapter, kind, prepared=ready, autocast=runs),
        loss=loss,
        prepared=ready,
        attention=attention,
        devices=devices,
        sharding=sharding,
        offload=away,
        accumulation=accumulation,
        master=master,
        device=device,
    )


def _cast(adapter: str, dtype: str, *, prepared: bool, autocast: bool) -> Cast:
    """Return how adapters read their input."""
    width = 4 if prepared else float_width(dtype)
    if float_width(adapter) == width and not (prepared and autocast):
        return "same"
    return "autocast" if autocast else "fp32"
