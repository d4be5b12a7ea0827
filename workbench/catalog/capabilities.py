"""What each engine can do, as data from ``configs/engines/*.yaml`` for the rooms below."""

from __future__ import annotations

import functools

from workbench.paths import shipped
from workbench.settings import Settings


class Needs(Settings):
    """Modules that some quantizations of an engine need."""

    quantizations: tuple[str, ...]
    """Names of the quantizations."""
    modules: tuple[str, ...]
    """Modules that must be importable."""


class EngineFacts(Settings):
    """One engine's capabilities as data."""

    name: str
    """The name a user writes in ``engine=``."""
    packages: tuple[str, ...] = ()
    """Modules that must be importable."""
    extra: str = "all"
    """The pip extra that installs them."""
    formats: tuple[str, ...] = ()
    """File kinds it loads: safetensors, gguf. One it converts from is in ``converts``."""
    converts: tuple[str, ...] = ()
    """File kinds that are converted once, through formats/, before it loads them."""
    quantizations: tuple[str, ...] = ()
    """Quantizations it makes on load or through a converted file."""
    needs: tuple[Needs, ...] = ()
    """Modules that some quantizations need besides the engine's own."""
    dtypes: tuple[str, ...] = ()
    """Compute dtypes; empty where the file decides."""
    devices: tuple[str, ...] = ("cpu",)
    """Where it runs."""
    powers: tuple[str, ...] = ()
    """What its loaded models can do, where the model itself allows it."""
    order: int = 100
    """Preference when several could load the files; the least wins."""

    def modules_for(self, quantization: str) -> tuple[str, ...]:
        """Return the modules that a quantization needs besides ``packages``."""
        return tuple(
            name
            for each in self.needs
            if quantization in each.quantizations
            for name in each.modules
        )


@functools.cache
def engine_facts() -> dict[str, EngineFacts]:
    """Return the facts of every engine that ships, by name, in order of preference."""
    found = [
        EngineFacts.read(path) for path in sorted(shipped("configs", "engines").glob("*.yaml"))
    ]
    return {facts.name: facts for facts in sorted(found, key=lambda facts: facts.order)}
