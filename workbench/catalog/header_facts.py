"""Facts asked from untrusted mappings and tensor lists: the expected kind of value, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from workbench.catalog.architecture import Experts, LatentAttention
from workbench.catalog.header_count import Counted
from workbench.catalog.header_roles import AUDIO, ROUTED, VISION
from workbench.settings import Settings

_MOST = 1 << 50


class Facts:
    """A mapping from an untrusted file, asked for values of the expected kind."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def number(self, *names: str) -> int | None:
        """Return the first positive whole number among these names."""
        found = (self.values.get(name) for name in names)
        return next((n for n in found if type(n) is int and 0 < n < _MOST), None)

    def count(self, *names: str) -> int | None:
        """Return the first whole number, 0 included, among these names."""
        found = (self.values.get(name) for name in names)
        return next((n for n in found if type(n) is int and 0 <= n < _MOST), None)

    def words(self, *names: str) -> tuple[str, ...]:
        """Return the first list of texts among these names."""
        for name in names:
            value = self.values.get(name)
            if isinstance(value, list) and value and all(isinstance(w, str) for w in value):
                return tuple(value)
        return ()

    def flag(self, name: str) -> bool | None:
        """Return a truth value, None where there is none."""
        value = self.values.get(name)
        return value if isinstance(value, bool) else None

    def text(self, name: str) -> str | None:
        """Return a text, None where there is none."""
        value = self.values.get(name)
        return value[:80] if isinstance(value, str) else None

    def inner(self, *names: str) -> Facts:
        """Return the first mapping among these names, else an empty one."""
        found = (self.values.get(name) for name in names)
        return Facts(next((value for value in found if isinstance(value, Mapping)), {}))


class Shapes:
    """Widths that the stored tensors of the language part show."""

    def __init__(self, counted: Iterable[Counted]) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._packed: set[str] = set()
        for each in counted:
            name = each.tensor.name
            if VISION.search(name) or AUDIO.search(name):
                continue
            end = ".".join(name.split(".")[-2:])
            self._shapes.setdefault(end, each.tensor.shape)
            if each.method == "bnb" and each.bits == 4:
                self._packed.add(end)

    def rows(self, module: str) -> int | None:
        """Return the output width of a linear module, for example ``q_proj``."""
        for end in ("weight", "weight_packed"):
            shape = self._shapes.get(f"{module}.{end}")
            if shape and f"{module}.{end}" not in self._packed:
                return shape[0]
        shape = self._shapes.get(f"{module}.scales")
        return shape[-1] if shape and f"{module}.qweight" in self._shapes else None

    def width(self, name: str) -> int | None:
        """Return the length of a vector, for example ``q_norm.weight``."""
        shape = self._shapes.get(name)
        return shape[0] if shape and len(shape) == 1 else None

    def has(self, name: str) -> bool:
        """Return whether a tensor's name ends so."""
        return name in self._shapes


def cache_bytes(
    layers: int | None,
    kv_heads: int | None,
    key_width: int | None,
    value_width: int | None,
    latent: LatentAttention | None,
) -> int | None:
    """Return bytes of keys and values of one token at 16 bit; MLA keeps one latent (2 bytes each).

    Args:
        layers: Layers that keep keys and values.
        kv_heads: Heads of each.
        key_width: Width of a key head.
        value_width: Width of a value head.
        latent: Multi-head latent attention, which keeps ``kv_lora_rank + qk_rope_head_dim``.
    """
    if not layers:
        return layers
    if latent is not None:
        return 2 * layers * (latent.kv_lora_rank + latent.qk_rope_head_dim)
    if not kv_heads or not key_width or not value_width:
        return None
    return 2 * layers * kv_heads * (key_width + value_width)


def active(
    counted: Iterable[Counted], parameters: int | None, experts: Experts | None
) -> int | None:
    """Return the parameters that a token passes: all but the experts that are not picked."""
    if parameters is None or experts is None:
        return parameters
    routed = [each for each in counted if ROUTED.search(each.tensor.name)]
    total = sum(each.weights or 0 for each in routed)
    if not total:
        return None
    return parameters - total + total * experts.experts_per_token // experts.experts


def checked(make: Callable[..., Settings], **facts: Any) -> Any:
    """Return ``make(**facts)``, or None where a required fact is missing or out of range."""
    known = {name: value for name, value in facts.items() if value is not None}
    try:
        return make(**known)
    except ValueError:  # pydantic's ValidationError is one
        return None
