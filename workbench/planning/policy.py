"""The rules of ``configs/quantization.yaml``: what counts as better, and what computes with it."""

from __future__ import annotations

import functools
from typing import Literal

from pydantic import Field, model_validator

from workbench.errors import InputError
from workbench.paths import shipped
from workbench.settings import Settings

PolicyName = Literal["fit", "by-size"]
POLICIES: tuple[PolicyName, ...] = ("fit", "by-size")
TASKS = ("chat", "finetune")
GIB = 2**30


class PackedRule(Settings):
    """What may compute with weights that come quantized."""

    dtypes: tuple[str, ...]
    """Compute dtypes, the preferred one first."""
    devices: tuple[str, ...]
    """Where they stay packed; elsewhere they are unpacked to 16 bit, or do not load."""
    capability: float | None = None
    """Least CUDA compute capability that has the kernels."""
    needs: dict[str, tuple[str, ...]] = {}
    """Engine to the modules it needs besides its own."""
    engines: tuple[str, ...] = ()
    """Engines that load them; empty for all."""


class SizeRule(Settings):
    """One line of the policy by size."""

    least: float = Field(alias="from", ge=0)
    """Billions of parameters from which the line holds."""
    forms: tuple[str, ...] = Field(min_length=1)
    """Forms, the first that exists is taken."""
    dtype: str | None = None
    """Compute dtype; None leaves it to the engine and the device."""


class OffloadRule(Settings):
    """What a training by size moves to the RAM."""

    above: float = Field(ge=0)
    """GB of weights, as loaded, above which the line holds."""
    what: tuple[Literal["layers", "optimizer", "gradients"], ...]
    """What is moved."""


class FinetuneRules(Settings):
    """What a plan of a fine-tuning tries, in order."""

    rows: int = Field(ge=1)
    """Rows per optimizer step: batch times accumulation times devices."""
    batches: tuple[int, ...] = Field(min_length=1)
    """Rows per device and pass, the largest first."""
    lengths: tuple[int, ...] = Field(min_length=1)
    """Tokens per row, the longest first."""
    rank: int = Field(ge=1)
    """LoRA rank that is estimated."""
    sharding: tuple[Literal["ddp", "fsdp", "zero2", "zero3"], ...] = Field(min_length=1)
    """How several GPUs share the work, the fastest first."""
    optimizers: tuple[str, ...] = Field(min_length=1)
    """Optimizers, the plain one first."""


class Rules(Settings):
    """The whole of ``configs/quantization.yaml``."""

    quality: tuple[tuple[str, ...], ...]
    """Forms, best first; those of one line count as equal."""
    floor: str
    """Form below which quality is given up only where nothing above it fits."""
    ready_gguf: tuple[str, ...]
    """Forms that a repository of GGUF files usually holds."""
    engines: dict[str, tuple[str, ...]]
    """Device to engines in order of preference."""
    quantized_engines: dict[str, tuple[str, ...]]
    """The same for quantized forms."""
    small: float = Field(gt=0)
    """Parameters up to which a CPU takes transformers first."""
    best: dict[str, dict[float, str]] = {}
    """Device to active parameters to the best form that is worth its bytes there."""
    margin: float = Field(ge=0, lt=1)
    """Share of each GPU's memory that stays free."""
    least_margin: float = Field(ge=0)
    """GiB that stay free at least."""
    cpu_margin: float = Field(ge=0, lt=1)
    """Share of the RAM that stays free."""
    contexts: tuple[int, ...] = Field(min_length=1)
    """Tokens of context tried in turn where none is named."""
    cache: str
    """Type of a smaller KV cache, tried before layers go to the CPU."""
    packed: dict[str, PackedRule]
    """Methods of packed weights to what may compute with them."""
    bf16_capability: float
    """Least CUDA compute capability with bf16."""
    float16_only: dict[str, tuple[str, ...]] = {}
    """Engine to packed methods that it computes in fp16 only."""
    float16_before: dict[str, str] = {}
    """Engine to the version before which AWQ and GPTQ compute in fp16 only."""
    by_size: tuple[SizeRule, ...] = Field(min_length=1)
    """The policy by size, the largest first."""
    gguf_counterpart: dict[str, str]
    """Forms by size to what stands for them in GGUF."""
    offload_by_size: tuple[OffloadRule, ...]
    """What a training by size moves to the RAM, the largest first."""
    finetune: FinetuneRules
    """What a plan of a fine-tuning tries."""

    @model_validator(mode="after")
    def _names_agree(self) -> Rules:
        known = {name for line in self.quality for name in line}
        ceilings = [form for forms in self.best.values() for form in forms.values()]
        named = [self.floor, *self.ready_gguf, *ceilings, *self.gguf_counterpart.values()]
        named += [form for rule in self.by_size for form in rule.forms]
        for name in named:
            if name not in known:
                raise InputError(f"The form {name!r} has no place in the order of quality.")
        return self

    def rank(self, form: str) -> int:
        """Return the place of a form in the order of quality, 0 the best; unknown ones are last."""
        for place, line in enumerate(self.quality):
            if form in line:
                return place
        return len(self.quality)

    def ceiling(self, device: str, active_parameters: float) -> int:
        """Return the best rank that is worth its bytes on a device, for so many parameters."""
        reached = [
            form for least, form in self.best.get(device, {}).items() if active_parameters >= least
        ]
        return max((self.rank(form) for form in reached), default=0)

    def size_rule(self, parameters: float) -> SizeRule:
        """Return the line of the policy by size for so many parameters."""
        ordered = sorted(self.by_size, key=lambda rule: -rule.least)
        return next(rule for rule in ordered if parameters >= rule.least * 1e9)

    def size_offload(self, weight_bytes: int) -> tuple[str, ...]:
        """Return what a training by size moves to the RAM for so many bytes of weights."""
        ordered = sorted(self.offload_by_size, key=lambda rule: -rule.above)
        return next((rule.what for rule in ordered if weight_bytes > rule.above * 1e9), ())


@functools.cache
def rules() -> Rules:
    """Return the rules that ship."""
    return Rules.read(shipped("configs", "quantization.yaml"))
