"""Where the layers of a form go: whole on the devices, partly in RAM, or all on the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from workbench.catalog import Card, ModelFiles
from workbench.catalog.header import Header, read_header
from workbench.errors import WorkbenchError
from workbench.memory import Estimate
from workbench.planning.form import Form
from workbench.planning.planned import Need
from workbench.planning.room import Room

_LAYERED = ("transformers", "llama.cpp")
"""Engines that give each GPU whole layers; others cut every tensor."""
_BYTES_OF = {"MXFP4": "MXFP4_MOE"}
"""Names of published files to llama.cpp's name of the mix."""
_MAP_OVERHEAD = 1.02  # accelerate rounds to whole layers and keeps room for the largest one


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a form lies, and how much of the context it holds.

    Attributes:
        context: Tokens of context.
        cache_type: Type of the KV cache.
        gpu_layers: Layers on the devices, -1 all.
        experts_on_cpu: First layers whose experts stay in RAM.
        devices: Devices that share the model.
        mapped: Whether transformers places layers itself, by ``max_memory``.
    """

    context: int
    cache_type: str = "f16"
    gpu_layers: int = -1
    experts_on_cpu: int = 0
    devices: int = 1
    mapped: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A form in a place, with what it needs there.

    Attributes:
        form: The form.
        placement: Where it lies.
        device: The device it was estimated for.
        estimate: Its memory in parts.
        needs: What it needs of each memory, beside what there is.
    """

    form: Form
    placement: Placement
    device: str
    estimate: Estimate
    needs: tuple[Need, ...]

    @property
    def fits(self) -> bool:
        """Whether no memory is short."""
        return self.short_bytes == 0

    @property
    def short_bytes(self) -> int:
        """Bytes that are missing, all memories together."""
        return sum(need.short_bytes for need in self.needs)


class Placer:
    """Tries forms of one card in places of one machine; each estimate is made once.

    Args:
        card: The model.
        files: Its local files, or None.
        room: The machine.
        batch: Sequences at a time.
        full_window: Whether llama.cpp's sliding layers hold the whole context, as
            llama-cpp-python has it unless ``swa_full`` is given.
    """

    def __init__(
        self,
        card: Card,
        files: ModelFiles | None,
        room: Room,
        *,
        batch: int,
        full_window: bool = True,
    ) -> None:
        self.card, self.files, self.room, self.batch = card, files, room, batch
        self.full_window = full_window
        self._model = _subject(card, files)
        self._known: dict[tuple[object, Placement], Attempt | None] = {}
        self.trouble = ""

    def attempt(self, form: Form, placement: Placement) -> Attempt | None:
        """Return the form in this place, or None where its memory cannot be estimated."""
        key = (form.key, placement)
        if key not in self._known:
            try:
                self._known[key] = self._estimated(form, placement)
            except WorkbenchError as error:
                self.trouble = self.trouble or str(error)
                self._known[key] = None
        return self._known[key]

    def _estimated(self, form: Form, placement: Placement) -> Attempt:
        from workbench.memory.inference import estimate

        room = self.room if placement.gpu_layers else self.room.on_cpu()
        layered = form.facts.name in _LAYERED
        model = self._model
        quantization = _BYTES_OF.get(form.quantization, form.quantization)
        if form.unpacked and isinstance(model, Card):
            model = model.model_copy(update={"stored": None})
        unpacks = form.unpacked and form.packed == "gguf"
        if unpacks and form.dtype:
            quantization = form.dtype
        found = estimate(
            model,
            engine=form.facts.estimated_as or form.facts.name,
            quantization=quantization,
            dtype=form.dtype,
            context=placement.context,
            batch=self.batch,
            cache_type=placement.cache_type,
            gpu_layers=placement.gpu_layers,
            experts_on_cpu=placement.experts_on_cpu,
            flash_attention=bool(flash_attention(form, placement, room.device)),
            swa_full=self.full_window,
            device=room.device,
            tensor_parallel=1 if layered else placement.devices,
            unpacks=unpacks,
        )
        needs = room.needs(found, placement.devices)
        if placement.mapped:
            needs = _mapped(found, room, placement.devices)
        elif placement.devices > 1:
            needs = _shared(needs, found, placement.devices, self.card, layered=layered)
        return Attempt(
            form=form, placement=placement, device=room.device, estimate=found, needs=needs
        )

    def whole(self, form: Form, context: int, *, cache_type: str = "f16") -> Attempt | None:
        """Return the form whole on the fewest devices that hold it, else on all of them."""
        count = max(1, len(self.room.device_bytes))
        found: Attempt | None = None
        for devices in range(1, count + 1):
            layers = -1 if self.room.device != "cpu" else 0
            placement = Placement(
                context=context, cache_type=cache_type, devices=devices, gpu_layers=layers
            )
            found = self.attempt(form, placement)
            if found is None or found.fits:
                return found
        return found

    def partial(self, form: Form, context: int, *, cache_type: str = "f16") -> Attempt | None:
        """Return the form with as little as possible in RAM, or None where it cannot be split.

        Where it does not fit even so, the split that misses least is returned.
        """
        if self.room.device == "cpu":
            return None
        devices = max(1, len(self.room.device_bytes))
        base = Placement(context=context, cache_type=cache_type, devices=devices)
        if form.facts.name == "llama.cpp":
            experts = self._experts(form, base)
            if experts is not None and experts.fits:
                return experts
            return cheapest(iter((experts, self._layers(form, base))))
        if (
            form.facts.name == "transformers"
            and self.room.device == "cuda"
            and form.quantization == "none"
            and form.packed is None
        ):
            return self.attempt(form, dataclasses.replace(base, mapped=True))
        return None

    def _experts(self, form: Form, base: Placement) -> Attempt | None:
        """Keep the experts of the fewest layers in RAM, the rest on the devices."""
        layers = self.card.architecture.layers
        if self.card.architecture.experts is None or not layers or self.room.unified:
            return None  # in unified memory the RAM is no other place

        def placed(count: int) -> Attempt | None:
            return self.attempt(form, dataclasses.replace(base, experts_on_cpu=count))

        return _least(placed, 1, layers)

    def _layers(self, form: Form, base: Placement) -> Attempt | None:
        """Put the most layers on the devices that they hold, and the rest in RAM."""
        layers = self.card.architecture.layers
        if not layers:
            return None

        def placed(left_out: int) -> Attempt | None:
            return self.attempt(form, dataclasses.replace(base, gpu_layers=layers - left_out))

        return _least(placed, 0, layers)


def _least(placed: Callable[[int], Attempt | None], low: int, high: int) -> Attempt | None:
    """Return the attempt of the least number that fits the devices, by halving.

    The need of the devices falls with the number, that of the RAM rises: a larger number would fit
    the RAM no better.
    """
    while low < high:
        middle = (low + high) // 2
        found = placed(middle)
        if found is None:
            return None
        if _fits_devices(found):
            high = middle
        else:
            low = middle + 1
    return placed(low)


def _fits_devices(attempt: Attempt) -> bool:
    return not any(need.short_bytes for need in attempt.needs if need.place != "RAM")


def _shared(
    needs: tuple[Need, ...], found: Estimate, devices: int, card: Card, *, layered: bool
) -> tuple[Need, ...]:
    """Add what several devices need more than one: runtime and buffers each, and whole layers."""
    if not layered:  # the estimate is of one device of them
        return tuple(
            dataclasses.replace(need, needed_bytes=need.needed_bytes * devices)
            if need.place != "RAM"
            else need
            for need in needs
        )
    each = sum(found.total("device", group=group) for group in ("overhead", "compute"))
    layer = found.weights // (card.architecture.layers or 1)
    more = (devices - 1) * (each + layer)
    return tuple(
        dataclasses.replace(need, needed_bytes=need.needed_bytes + more)
        if need.place != "RAM"
        else need
        for need in needs
    )


def _mapped(found: Estimate, room: Room, devices: int) -> tuple[Need, ...]:
    """Return the needs when transformers fills the devices and puts the other layers in RAM."""
    usable = sum(sorted(room.device_bytes, reverse=True)[:devices])
    beside = found.total("device") - found.total("device", group="weights")
    weights = int(found.total("device", group="weights") * _MAP_OVERHEAD)
    on_device = min(weights, max(0, usable - beside))
    place = room.device if devices == 1 else f"{devices} x {room.device}"
    in_ram = found.total("host") + weights - on_device
    return (
        Need(place=place, needed_bytes=on_device + beside, usable_bytes=usable),
        Need(place="RAM", needed_bytes=in_ram, usable_bytes=room.host_bytes),
    )


def flash_attention(form: Form, placement: Placement, device: str) -> bool | None:
    """Return whether llama.cpp is told to use flash attention; None leaves an engine's default.

    A quantized cache needs it. On a CPU the plain path is kept, so that logits stay what they were
    in earlier measurements.
    """
    if form.facts.name != "llama.cpp":
        return None
    return True if device != "cpu" or placement.cache_type != "f16" else None


def max_memory(attempt: Attempt, room: Room) -> dict[str, int]:
    """Return what transformers may place on each device, in bytes; empty where all is on one."""
    placement = attempt.placement
    if attempt.form.facts.name != "transformers" or attempt.device != "cuda":
        return {}
    if not placement.mapped and placement.devices == 1:
        return {}
    beside = attempt.estimate.total("device") - attempt.estimate.total("device", group="weights")
    found = {
        str(index): max(0, size - beside)
        for index, size in enumerate(room.device_bytes[: placement.devices])
    }
    return {**found, "cpu": room.host_bytes} if placement.mapped else found


def _subject(card: Card, files: ModelFiles | None) -> Card | Header:
    """Return what is estimated: a GGUF file's own tensors, else what the card says."""
    if files is None or (files.kind == "safetensors" and card.architecture.parameters):
        return card
    try:
        return read_header(files.path)
    except WorkbenchError:
        return card


def cheapest(attempts: Iterator[Attempt | None]) -> Attempt | None:
    """Return the attempt that misses fewest bytes, or None where none could be estimated."""
    known = [attempt for attempt in attempts if attempt is not None]
    return min(known, key=lambda attempt: attempt.short_bytes, default=None)
