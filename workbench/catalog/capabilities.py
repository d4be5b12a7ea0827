"""What each engine can do, as data from ``configs/engines/*.yaml`` for the rooms below."""

from __future__ import annotations

import functools
import json

from pydantic import Field

from workbench.catalog.flavour import Flavour
from workbench.paths import shipped
from workbench.settings import Settings


class Needs(Settings):
    """Modules that some quantizations of an engine need."""

    quantizations: tuple[str, ...]
    """Names of the quantizations."""
    modules: tuple[str, ...]
    """Modules that must be importable."""


class Cause(Settings):
    """What a line in a server's log means."""

    pattern: str
    """Regular expression, searched in the log without regard to case; the first cause counts."""
    says: str
    """The cause in a sentence; ``{1}`` is the pattern's first group."""
    hint: str = ""
    """What to do next."""


class Words(Settings):
    """What a server gets on one device besides."""

    arguments: tuple[str, ...] = ()
    """Further words of the command."""
    environment: dict[str, str] = {}
    """Further environment variables."""


class Shows(Settings):
    """By what a chat template is known."""

    has: tuple[str, ...]
    """What stands in it, all of it."""
    has_not: tuple[str, ...] = ()
    """What does not, none of it."""


class ServerFacts(Settings):
    """How a server is started, asked whether it is ready, and understood when it dies.

    Words may hold ``{program}`` (the interpreter, or the binary), ``{model}``, ``{name}``,
    ``{host}``, ``{port}``, ``{context}``, ``{whole_context}`` (of all slots together), ``{slots}``,
    ``{dtype}``, ``{threads}``, ``{gpu_layers}``, ``{cache_type}``, ``{device}``, ``{cache_gib}``
    and ``{script}``.
    """

    module: str | None = None
    """Python module that the server is; its interpreter is this one or one that is named."""
    program: str | None = None
    """Name of the binary that the server is."""
    named_by: str
    """``WORKBENCH_<...>`` that names the interpreter or the binary."""
    environments: tuple[str, ...] = ()
    """Folders of virtual environments in the checkout that are looked at, ``.venv-vllm``."""
    command: tuple[str, ...]
    """Words of the command."""
    instead: str | None = None
    """Module that carries the server where the binary is not found."""
    instead_command: tuple[str, ...] = ()
    """Words of the command then; ``{script}`` is the workbench's own starter."""
    environment: dict[str, str] = {}
    """Environment variables."""
    devices: dict[str, Words] = {}
    """Words and variables by device."""
    options: dict[str, tuple[str, ...]] = {}
    """Words by option of ``load``; ``{value}`` is what was given, true takes them as they are."""
    options_off: dict[str, tuple[str, ...]] = {}
    """Words by option that is given as false."""
    options_environment: dict[str, dict[str, str]] = {}
    """Environment variables by option that is given and not false."""
    tool_parsers: dict[str, Shows] = {}
    """Its parsers of tool calls, by the templates that each is taken for where ``tool_parser`` is
    not given."""
    dtypes: dict[str, str] = {}
    """Our name of a dtype and the server's."""
    key_environment: str | None = None
    """Environment variable that takes the key; None where the server can only be told openly."""
    ready: str = "/health"
    """Path that answers 200 when the model is loaded."""
    flavour: str = "openai"
    """Dialect of its HTTP interface."""
    slots: int = 1
    """Requests at a time, where none are named by ``parallel=``."""
    patience: float = 600.0
    """Seconds that it may stay silent and idle while it loads."""
    grace: float = 10.0
    """Seconds it gets to end by itself."""
    causes: tuple[Cause, ...] = ()
    """What is known of its last words."""
    noise: str | None = None
    """Regular expression of lines that say nothing, left out of its last words."""


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
    only_when_named: tuple[str, ...] = ()
    """File kinds that it unpacks while loading, and so loads only where the user names it."""
    quantizations: tuple[str, ...] = ()
    """Quantizations it makes on load or through a converted file."""
    on_load: tuple[str, ...] = ("int8", "nf4")
    """Which of them it makes itself while it loads plain safetensors."""
    only_when_asked: tuple[str, ...] = ()
    """Quantizations that no plan takes by itself: another of the same engine is as good."""
    needs: tuple[Needs, ...] = ()
    """Modules that some quantizations need besides the engine's own."""
    dtypes: tuple[str, ...] = ()
    """Compute dtypes; empty where the file decides."""
    devices: tuple[str, ...] = ("cpu",)
    """Where it runs."""
    powers: tuple[str, ...] = ()
    """What its loaded models can do, where the model itself allows it."""
    lacks: dict[str, str] = Field(default_factory=dict)
    """Every other power, and in a sentence why none of its models has it."""
    server: ServerFacts | None = None
    """How it is started, where it is a server of its own."""
    estimated_as: str | None = None
    """Engine whose rules its memory follows, where they are not its own."""
    automatic: bool = True
    """Whether ``engine="auto"`` may choose it."""
    automatic_on: tuple[str, ...] = ()
    """Devices on which ``engine="auto"`` may choose it; empty for all."""
    flavours: dict[str, Flavour] = Field(default_factory=dict)
    """Kinds of servers that it speaks to, by name."""
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


@functools.cache
def shown_powers() -> dict[str, frozenset[str]]:
    """Return by engine the powers that the conformance suite exercised, from its results.

    They are in ``data/powers.json``, which ``benchmarks/powers.py`` writes from a run of the suite.
    """
    found = json.loads(shipped("data", "powers.json").read_text(encoding="utf-8"))
    return {engine: frozenset(powers) for engine, powers in found["shown"].items()}


def automatic_engines() -> list[str]:
    """Return the engines that ``engine="auto"`` may choose, in order of preference."""
    return [name for name, facts in engine_facts().items() if facts.automatic]
