"""Estimate the memory of a fine-tuning: states, what autograd keeps, the loss, who shares it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from workbench.catalog.architecture import Architecture
from workbench.catalog.card import Card
from workbench.catalog.header_view import Header
from workbench.errors import InputError, UnsupportedError
from workbench.memory.estimate import Estimate, Part, Place
from workbench.memory.layers import heads
from workbench.memory.overhead import cuda_parts, process_part, rounding_part, slack_part
from workbench.memory.request import (
    Subject,
    float_width,
    parts_of_weights,
    subject,
    weigh_subject,
)
from workbench.memory.saved import Adapted, Saved, roles_of, saved_bytes
from workbench.memory.training_setting import OPTIMIZERS, Method, Setting, Sharding, checked
from workbench.memory.weights import Weights

_TILE_TOKENS, _TILE_ROWS = 4096, 32768  # trl's fused head: one tile of logits
_SLACK = 0.07
_NOT_ADAPTED = ("ffn_gate_inp", "ffn_gate_inp_shexp")


def estimate_training(
    model: Card | Header | Architecture | str | Path,
    *,
    method: Method = "lora",
    quantization: str | None = None,
    rank: int = 16,
    targets: str | tuple[str, ...] = "all-linear",
    dropout: float = 0.0,
    batch: int = 4,
    sequence: int = 1024,
    gradient_checkpointing: bool = False,
    optimizer: str = "adamw",
    dtype: str | None = None,
    adapter_dtype: str | None = None,
    autocast: bool | None = None,
    loss: Literal["plain", "fused"] = "fused",
    prepare_for_kbit: bool = False,
    attention: Literal["sdpa", "eager", "flash"] = "sdpa",
    devices: int = 1,
    sharding: Sharding = "none",
    offload: Collection[str] = (),
    accumulation: int = 1,
    master_weights: bool = False,
    device: str = "cuda",
) -> Estimate:
    """Return the memory of one device at the peak of a training step; defaults are the recipe's.

    Args:
        model: A card, its id, a header of its files, or an architecture.
        method: ``lora``, ``qlora`` (quantized base) or ``full``.
        quantization: Form of the base; default is nf4 for qlora, else as stored.
        rank: LoRA rank.
        targets: ``all-linear``, ``attention``, or names of linear layers (``q_proj``).
        dropout: LoRA dropout; above 0 each adapter keeps a dropped copy of its input.
        batch: Rows of a forward pass on one device.
        sequence: Tokens of a row, padding included.
        gradient_checkpointing: Keep only the input of each layer, and compute the rest again.
        optimizer: ``adamw``, ``adamw-8bit``, ``paged-adamw-8bit``, ``sgd`` and so on.
        dtype: Of base weights and activations; default is bf16, on a CPU fp32.
        adapter_dtype: Of LoRA weights; default is fp32 for lora (PEFT), bf16 for qlora (TRL).
        autocast: Whether the forward pass runs under autocast; default is as the Trainer does: on
            a GPU with 16 bit.
        loss: ``fused`` computes the loss in tiles, as TRL does; ``plain`` keeps all logits.
        prepare_for_kbit: Whether PEFT's function cast embeddings, head and norms to fp32.
        attention: ``eager`` keeps all scores.
        devices: Devices that train together.
        sharding: How they share: ``ddp``, ``zero1``, ``zero2``, ``zero3`` or ``fsdp``.
        offload: What lies in RAM: ``optimizer``, ``gradients``, ``layers``.
        accumulation: Forward passes of a step; above 1 gradients are there during all of them.
        master_weights: Whether an fp32 copy of trained 16-bit weights is kept.
        device: ``cuda``, ``mps`` or ``cpu``.

    Raises:
        NotFoundError: No such card.
        InputError: A value that does not fit; the message names it.
        UnsupportedError: Too little is known of the model.
    """
    setting = checked(
        method=method, quantization=quantization, rank=rank, targets=targets, dropout=dropout,
        batch=batch, sequence=sequence, checkpointing=gradient_checkpointing, optimizer=optimizer,
        dtype=dtype, adapter_dtype=adapter_dtype, autocast=autocast, loss=loss,
        prepared=prepare_for_kbit, attention=attention, devices=devices, sharding=sharding,
        offload=offload, accumulation=accumulation, master=master_weights, device=device,
    )  # fmt: skip
    found = subject(model)
    if found.context and sequence > found.context:
        raise InputError(
            f"sequence={sequence} is more than {found.name} was made for ({found.context}).",
            hint=f"Take at most {found.context}.",
        )
    if found.facts.layers is None or found.facts.hidden_size is None:
        raise UnsupportedError(
            f"A training of {found.name} needs its layers and hidden_size, which are not known.",
            hint="Add them to the card's architecture, or estimate from the model's files.",
        )
    weights, _ = weigh_subject(found, setting.quantization, setting.dtype, "transformers")
    if weights is None:
        raise UnsupportedError(f"A training of {found.name} needs its tensors: {found.doubts[0]}")
    return _made(found, weights, setting)


def _made(found: Subject, weights: Weights, setting: Setting) -> Estimate:
    adapted = _adapted(weights, setting)
    trained = (
        sum(held.shape.count for held in weights.tensors)
        if adapted is None
        else sum(each.parameters for each in adapted)
    )
    one = max(adapted, key=lambda each: each.parameters) if adapted else None
    eager = setting.sequence if setting.attention == "eager" else 0
    saved = saved_bytes(found.facts, width=setting.width, adapted=one, eager_tokens=eager)
    states = [*_base(found, weights, setting, trained), *_states(setting, trained)]
    moments = _moments(found, weights, setting, saved, trained)
    when, extra = max(moments.items(), key=lambda item: sum(part.bytes for part in item[1]))
    parts = [*states, *extra, process_part("transformers")]
    if setting.device == "cuda":
        parts += [rounding_part(weights), *cuda_parts(torch=True)]
        used = sum(p.bytes for p in parts if p.counter == "allocated" and p.place == "device")
        parts.append(slack_part(used, share=_SLACK))
    doubts = list(found.doubts)
    if not saved.certain:
        doubts.append(f"what autograd keeps of a {found.facts.model_type} layer was not counted")
    described = {
        **{field.name: getattr(setting, field.name) for field in dataclasses.fields(setting)},
        "offload": sorted(setting.offload),
        "targets": setting.targets if isinstance(setting.targets, str) else list(setting.targets),
        "trained_parameters": trained,
    }
    return Estimate(
        label=f"{found.name} · {setting.method} · {setting.batch} x {setting.sequence} tokens",
        parts=tuple(part for part in parts if part.bytes),
        conditions=described,
        notes=(f"{trained / 1e6:,.2f} M weights are trained; the peak is at the {when}.",),
        uncertain="; ".join(doubts) or None,
    )


def _adapted(weights: Weights, setting: Setting) -> list[Adapted] | None:
    """Return the LoRA layers of each decoder layer, or None for a full training."""
    if setting.method == "full":
        return None
    known: dict[int, dict[str, tuple[int, int]]] = {}
    for held in weights.tensors:
        shape = held.shape
        if shape.layer is None or shape.part != "text" or shape.role in _NOT_ADAPTED:
            continue
        if shape.kind == "linear" and len(shape.shape) == 2:
            known.setdefault(shape.layer, {})[shape.role] = shape.shape[0], shape.shape[1]
    every = {role: size for layer in known.values() for role, size in layer.items()}
    chosen = roles_of(setting.targets, every)
    return [
        Adapted(
            roles={role: layer[role] for role in chosen if role in layer},
            rank=setting.rank,
            cast=setting.cast,
            dropout=setting.dropout > 0,
            fused_mask=setting.device == "cuda",
        )
        for layer in known.values()
    ]


def _base(found: Subject, weights: Weights, setting: Setting, trained: int) -> list[Part]:
    """Return the weights of the base, cut or copied over the devices, and what casts them."""
    split = setting.devices if setting.sharding in ("zero3", "fsdp") else 1
    place: Place = "host" if "layers" in setting.offload else setting.place
    _, form = weigh_subject(found, setting.quantization, setting.dtype, "transformers")
    whole = parts_of_weights(
        found, weights, form, quantization=setting.quantization, place=place, gpu_layers=None,
        unified=False,
    )  # fmt: skip
    parts = [_cut(part, split) for part in whole]
    if split > 1 or place != setting.place:
        layer = max(weights.layers, default=0)
        rule = "two layers whole, while one is computed and the next is fetched"
        parts.append(_part("gathered layers", 2 * layer, rule, "weights", setting.place))
    if setting.prepared:
        plain = sum(held.bytes for held in weights.tensors if held.label in ("bf16", "fp16"))
        rule = (
            "fp32 instead of 16 bit for all that is not quantized (prepare_model_for_kbit_training)"
        )
        parts.append(_part("fp32 cast", plain, rule, "weights", setting.place))
    if setting.method == "qlora":
        rule = f"{weights.largest_matrix:,} weights of the largest matrix, unpacked to 16 bit"
        parts.append(
            _part("unpacked matrix", 2 * weights.largest_matrix, rule, "compute", setting.place)
        )
    return parts


def _states(setting: Setting, trained: int) -> list[Part]:
    """Return trained weights, gradients and optimizer states of one device."""
    full, place = setting.method == "full", setting.place
    width = float_width(setting.dtype if full else setting.adapter_dtype)
    cut = setting.devices
    parts = []
    if not full:
        own = cut if setting.sharding in ("zero3", "fsdp") else 1
        rule = f"{trained:,} weights x {width} B"
        parts.append(_part("LoRA weights", trained * width // own, rule, "weights", place))
        if setting.cast == "autocast":
            rule = f"{trained:,} weights cast to 16 bit by autocast"
            parts.append(_part("LoRA weights in 16 bit", 2 * trained, rule, "compute", place))
    elif setting.master and width < 4:
        own = cut if setting.sharding not in ("none", "ddp") else 1
        rule = f"{trained:,} weights x 4 B"
        parts.append(_part("fp32 master weights", 4 * trained // own, rule, "optimizer", place))
    copies = OPTIMIZERS[setting.optimizer]
    each = -copies if copies < 0 else copies * (4 if setting.master else width)
    own = cut if setting.sharding not in ("none", "ddp") else 1
    where: Place = "host" if "optimizer" in setting.offload else place
    rule = f"{trained:,} weights x {each:g} B of {setting.optimizer}"
    if setting.optimizer.startswith("paged"):
        rule += "; moved to RAM while memory is short"
    parts.append(_part("optimizer states", int(trained * each) // own, rule, "optimizer", where))
    if setting.sharding == "ddp":
        rule = "buckets in which gradients are summed over the devices"
        parts.append(_part("DDP buckets", trained * width, rule, "gradients", place))
    return parts


def _gradients(setting: Setting, trained: int, *, share: float = 1.0) -> Part:
    full = setting.method == "full"
    width = float_width(setting.dtype if full else setting.adapter_dtype)
    cut = setting.devices if setting.sharding in ("zero2", "zero3", "fsdp") else 1
    place: Place = "host" if "gradients" in setting.offload else setting.place
    size = int(trained * width * share) // cut
    return _part("gradients", size, f"{trained:,} weights x {width} B", "gradients", place)


def _moments(
    found: Subject, weights: Weights, setting: Setting, saved: Saved, trained: int
) -> dict[str, list[Part]]:
    """Return what is there besides the states at the loss, in the backward pass, at the update."""
    facts, tokens, place = found.facts, setting.tokens, setting.place
    layers, hidden, w = facts.layers or 0, facts.hidden_size or 0, setting.width
    fixed = 4 * hidden + 2 * w * heads(facts).head + 12
    if setting.checkpointing:
        kept = float(layers * w * hidden + fixed)
        rule = f"{tokens} tokens x ({layers} layers x {w} B x {hidden} + {fixed} B)"
    else:
        kept = layers * saved.kept + fixed - 4 * hidden
        rule = f"{tokens} tokens x {layers} layers x {saved.kept:,.0f} B"
    held = _part("saved activations", int(tokens * kept), rule, "activations", place)
    early = [_gradients(setting, trained)] if setting.accumulation > 1 else []
    loss = [held, *_loss(facts, setting), *early]
    again = saved.kept + saved.moment if setting.checkpointing else 20.0 * hidden
    rule = (
        f"{tokens} tokens x {again:,.0f} B: one layer computed again and gone backward"
        if setting.checkpointing
        else f"{tokens} tokens x {again:,.0f} B: gradients on their way through a layer"
    )
    first = 1 / max(1, layers)
    backward = [
        held,
        _part("layer in the backward pass", int(tokens * again), rule, "activations", place),
        _gradients(setting, trained, share=1.0 if early else first),
    ]
    update = [_gradients(setting, trained)]
    if setting.method == "full" and not weights.tied and place == "device":
        rule = "gradient of the input embedding, made whole"
        update.append(_part("embedding gradient", weights.embedding, rule, "gradients", place))
    return {"loss": loss, "backward pass": backward, "update": update}


def _loss(facts: Architecture, setting: Setting) -> list[Part]:
    """Return the logits and what cross-entropy makes of them."""
    rows, tokens, place = facts.vocab_size or 0, setting.tokens, setting.place
    hidden = facts.hidden_size or 0
    if setting.loss == "plain":
        rule = f"{tokens} tokens x {rows} x 12 B: log-softmax, its gradient and that of the logits"
        return [_part("loss", 12 * tokens * rows, rule, "logits", place)]
    width = float_width(setting.dtype)
    tile = min(tokens, _TILE_TOKENS) * min(rows, _TILE_ROWS) * width
    rule = f"one tile of {min(tokens, _TILE_TOKENS)} x {min(rows, _TILE_ROWS)} logits x {width} B"
    rule += f", and {tokens} x {hidden} x 4 B of gradient"
    size = tile + 4 * tokens * hidden
    if setting.method == "full":
        size += 4 * rows * hidden
        rule += f", and {rows} x {hidden} x 4 B for the head"
    return [_part("loss", size, rule, "logits", place)]


def _part(name: str, size: int, rule: str, group: str, place: Place) -> Part:
    return Part(name=name, bytes=size, rule=rule, group=group, place=place)  # type: ignore[arg-type]


def _cut(part: Part, devices: int) -> Part:
    if devices == 1:
        return part
    rule = f"{part.rule}; a {devices}th of it on each device"
    return dataclasses.replace(part, bytes=-(-part.bytes // devices), rule=rule)
