"""Whether a plan fits into what is free at this moment, asked before anything is loaded."""

from __future__ import annotations

from workbench.errors import MemoryShortError, WorkbenchError
from workbench.memory import Estimate
from workbench.planning.choose import plan as make_plan
from workbench.planning.given import AUTO
from workbench.planning.planned import Need, Plan, gib
from workbench.planning.policy import rules
from workbench.planning.room import Room, room_of


def require_memory(plan: Plan) -> None:
    """Raise MemoryShortError where a plan cannot fit into this machine's free memory.

    No margin is asked for, and what the runtime itself takes is not counted: only what surely
    fails is refused. Of an uncertain estimate a tenth is forgiven.
    """
    if plan.estimate is None:
        return
    try:
        room = room_of(None, rules=rules(), device=plan.device, margin=0.0)
    except WorkbenchError:
        return  # no such device here: the engine says so better
    short = [need for need in _needs(plan, plan.estimate, room) if need.short_bytes]
    if not short:
        return
    worst = max(short, key=lambda need: need.short_bytes)
    changes = _changes(plan)
    advice = " ".join(f"({number}) {said}" for number, said in enumerate(changes, 1))
    raise MemoryShortError(
        f"{plan.label} needs about {gib(worst.needed_bytes)} GiB of {worst.place}, "
        f"but {gib(worst.usable_bytes)} GiB are free; nothing was loaded.",
        hint=f"What would fit: {advice or 'nothing that is known here.'} "
        "force=True loads it all the same.",
        needed=worst.needed_bytes,
        free=worst.usable_bytes,
        changes=changes,
    )


def _needs(plan: Plan, estimate: Estimate, room: Room) -> tuple[Need, ...]:
    sure = 0.9 if estimate.uncertain else 1.0
    on_device = int(estimate.total("device", what="reserved") * sure)
    on_host = int(estimate.total("host", what="reserved") * sure)
    if room.device == "cpu" or not room.device_bytes:
        on_device, on_host = 0, on_device + on_host
    usable = sum(sorted(room.device_bytes, reverse=True)[: plan.tensor_parallel])
    if plan.max_memory.get("cpu"):  # layers go where there is room
        over = max(0, on_device - usable)
        on_device, on_host = on_device - over, on_host + over
    if room.unified:
        on_host += on_device
    return (
        Need(place=plan.device, needed_bytes=on_device, usable_bytes=usable),
        Need(place="RAM", needed_bytes=on_host, usable_bytes=room.host_bytes),
    )


def _changes(plan: Plan) -> tuple[str, ...]:
    """Return what would make it fit now: asked anew, for other programs came and went."""
    try:
        again = make_plan(
            plan.card,
            engine=plan.engine,
            quantization=plan.quantization,
            context=plan.context,
            batch=plan.batch,
            device=plan.device,
            gpu_layers=plan.gpu_layers if plan.device != "cpu" else None,
            experts_on_cpu=plan.experts_on_cpu or None,
            margin=0.0,
            dtype=plan.dtype or AUTO,
            **plan.options,
        )
    except WorkbenchError:
        return plan.changes
    return again.changes or plan.changes
