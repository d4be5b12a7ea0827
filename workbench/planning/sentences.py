"""Why a plan is as it is, in sentences: what was tried, what was taken, what to know of it."""

from __future__ import annotations

from workbench.catalog import Card
from workbench.planning.form import Form, has_bf16
from workbench.planning.offload import Attempt
from workbench.planning.planned import gib
from workbench.planning.policy import Rules, rules
from workbench.planning.room import Room
from workbench.planning.search import Found, Wanted

_MOST_TRIED = 8


def considered(found: Found, wanted: Wanted) -> tuple[str, ...]:
    """Return what was tried and does not fit, and by how much, each form in a place once."""
    said = list(dict.fromkeys(_short(attempt, wanted) for attempt in found.tried))
    if len(said) > _MOST_TRIED:
        left = len(said) - _MOST_TRIED
        said = [*said[:_MOST_TRIED], f"and {left} more that do not fit either."]
    return tuple(said)


def _short(attempt: Attempt, wanted: Wanted) -> str:
    worst = max(attempt.needs, key=lambda need: need.short_bytes)
    context = attempt.placement.context
    at = "" if context == wanted.context else f" at context {context}"
    return (
        f"{described(attempt)}{at} needs {gib(worst.needed_bytes)} GiB of {worst.place}, "
        f"{gib(worst.short_bytes)} GiB too much."
    )


def described(attempt: Attempt) -> str:
    """Return form and place, for example ``llama.cpp Q4_K_M, 30 layers on cuda``."""
    placement = attempt.placement
    said = attempt.form.name
    if placement.cache_type != "f16":
        said += f" with a {placement.cache_type} cache"
    if placement.mapped:
        return f"{said}, its last layers in RAM"
    if placement.experts_on_cpu:
        return f"{said}, the experts of {placement.experts_on_cpu} layers in RAM"
    if placement.gpu_layers > 0:
        return f"{said}, {placement.gpu_layers} layers on {attempt.device}"
    if placement.devices > 1:
        said += f" over {placement.devices} devices"
    return said


def of_slots(count: int) -> str:
    """Return how many requests a server takes at a time, each with a context of its own."""
    many = "1 request" if count == 1 else f"{count} requests"
    own = "has" if count == 1 else "each have"
    return f"Its server takes {many} at a time, which {own} a whole context (parallel={count})."


def chosen(
    found: Found, card: Card, room: Room, wanted: Wanted, rules: Rules, *, policy: str
) -> list[str]:
    """Return why the form, its place and its dtype were taken."""
    attempt = found.attempt
    if attempt is None:
        form = found.unknown
        return [] if form is None else [*form.notes, *_of_dtype(form, room.device, room)]
    said = [room.sentence(), _verdict(attempt, card, policy, rules)]
    if policy == "fit":
        said += _of_ceiling(attempt, card, wanted, rules)
    said += _of_place(attempt, card)
    said += attempt.form.notes
    said += _of_dtype(attempt.form, attempt.device, room)
    if wanted.context > attempt.placement.context:
        said.append(
            f"Context {attempt.placement.context}: {wanted.context} does not fit with this form."
        )
    return said


def _verdict(attempt: Attempt, card: Card, policy: str, rules: Rules) -> str:
    name = described(attempt)
    if not attempt.fits:
        return f"{name} misses least: {gib(attempt.short_bytes)} GiB too much. It does not fit."
    needs = " and ".join(str(need) for need in attempt.needs)
    if policy == "by-size":
        billions = (card.architecture.parameters or 0) / 1e9
        return f"{name}, because the model has {billions:.1f} billion parameters: {needs}."
    return f"{name} is the best form that fits: {needs}."


def _of_ceiling(attempt: Attempt, card: Card, wanted: Wanted, rules: Rules) -> list[str]:
    active = card.architecture.active_parameters or card.architecture.parameters or 0
    ceiling = rules.ceiling(attempt.device, active)
    if wanted.form_given or not ceiling or attempt.form.rank != ceiling:
        return []
    return [
        f"Nothing better is considered on {attempt.device}: every token reads all of "
        f"{active / 1e9:.1f} billion active parameters, and more bits make it slower."
    ]


def _of_place(attempt: Attempt, card: Card) -> list[str]:
    placement, layers = attempt.placement, card.architecture.layers
    if placement.mapped:
        return ["Transformers fills the GPU and computes the layers in RAM in turn: slow."]
    if placement.experts_on_cpu:
        return [
            f"The experts of {placement.experts_on_cpu} of {layers} layers stay in RAM: a token "
            "passes few of them, so that costs less than whole layers would."
        ]
    if placement.gpu_layers > 0:
        return [
            f"{placement.gpu_layers} of {layers} layers lie on {attempt.device}, the others are "
            "computed from RAM: the more of them, the slower."
        ]
    if placement.devices > 1:
        shared = "the layers" if attempt.form.facts.server is None else "every tensor"
        return [f"{placement.devices} devices share {shared}."]
    return []


def _of_dtype(form: Form, device: str, room: Room) -> list[str]:
    if form.quantization in ("F16", "BF16"):
        return [_sixteen_bits(form.quantization)]
    if form.packed in ("awq", "gptq") and form.dtype == "fp16":
        return [f"fp16, in which every engine and GPU that loads {form.packed.upper()} computes."]
    if form.packed == "mxfp4" and form.dtype == "bf16":
        return ["bf16, because MXFP4 computes in nothing else."]
    if device == "cpu" and form.dtype == "fp32":
        return ["fp32, because on a CPU it is exact and rarely slower than bf16."]
    if device == "cuda" and form.dtype == "fp16" and not has_bf16(room, rules()):
        return [f"fp16, because compute capability {room.capability:.1f} has no bf16."]
    return []


def _sixteen_bits(name: str) -> str:
    if name == "BF16":
        return "BF16, because the files are bf16, whose range F16 does not have."
    return "F16, because a GGUF of 16 bits loses nothing that fp16 files hold."
