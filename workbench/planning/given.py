"""What a user gives to a plan, checked: names, files, context, and the form that is meant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.catalog import Card, ModelFiles, catalog, locate, resolve
from workbench.catalog.capabilities import (
    EngineFacts,
    ServerFacts,
    automatic_engines,
    engine_facts,
)
from workbench.catalog.server_place import missing_of
from workbench.errors import InputError, MissingPackageError, UnsupportedError, did_you_mean
from workbench.planning.forms import ready_name
from workbench.planning.gguf_forms import ready_names, sixteen_bit_gguf
from workbench.planning.policy import POLICIES, TASKS, Rules

AUTO = "auto"
_CACHES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


def check_names(*, policy: str, task: str, cache_type: str, batch: int) -> None:
    """Refuse a policy, task or cache type that does not exist, and a batch below 1."""
    for what, given, known in (
        ("policy", policy, POLICIES),
        ("task", task, TASKS),
        ("cache type", cache_type, (AUTO, *_CACHES)),
    ):
        if given not in known:
            raise InputError(f"There is no {what} {given!r}.", hint=did_you_mean(given, known))
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise InputError(f"batch must be 1 or more, not {batch!r}.")


def find(model: str | Path | Card, engine: str) -> tuple[Card, ModelFiles | None]:
    """Return card and files; an engine without files needs no more than a name."""
    facts = engine_facts().get(engine)
    if facts is None or facts.formats:
        card = resolve(model)
        return card, locate(card) if card.source_is_local else None
    if isinstance(model, Card):
        return model, None
    shelf = catalog()
    name = Path(model).name
    return shelf[name] if name in shelf else Card(id=name), None


def named_engine(engine: str) -> EngineFacts | None:
    """Return the engine that was named, None for ``auto``.

    Raises:
        InputError: There is no such engine.
    """
    if engine == AUTO:
        return None
    known = engine_facts()
    if engine not in known:
        raise InputError(f"There is no engine named {engine!r}.", hint=did_you_mean(engine, known))
    return known[engine]


def check_installed(facts: EngineFacts) -> None:
    """Refuse an engine whose packages are not on this machine."""
    if facts.server is not None:
        return  # its own engine looks for it, where an option of the load may name it
    missing = missing_of(facts)
    if missing:
        raise MissingPackageError(
            f"The engine {facts.name} needs {', '.join(missing)}, which is not installed.",
            hint=f"pip install 'llm-workbench[{facts.extra}]'",
        )


def check_format(facts: EngineFacts, card: Card, files: ModelFiles | None) -> None:
    """Refuse files that an engine neither loads nor converts."""
    if files is None:
        if not (card.repository or card.gguf or card.unverified_repository):
            raise InputError(
                f"The card {card.id} names no files on this machine, and {facts.name} needs some.",
                hint="Download the model and name its folder.",
            )
        return
    if files.kind not in (*facts.formats, *facts.converts, *facts.only_when_named):
        able = [other.name for other in engine_facts().values() if files.kind in other.formats]
        raise UnsupportedError(
            f"The engine {facts.name} does not load {files.kind} files.",
            hint=f"{', '.join(able)} does." if able else None,
        )


def device_for(device: str, facts: EngineFacts | None) -> str:
    """Return the device to ask a machine for; one that the engine does not run on is refused."""
    if facts is not None and device != AUTO and device not in facts.devices:
        raise UnsupportedError(
            f"The engine {facts.name} does not run on {device!r}.",
            hint=f"It runs on {', '.join(facts.devices)}.",
        )
    if facts is not None and facts.devices == ("cpu",):
        return "cpu"  # an engine that knows only the CPU need not ask for others
    return device


def contexts_of(context: int | None, card: Card, found: Rules) -> tuple[int, ...]:
    """Return the contexts to try: the one given, else the rules', each within the card's."""
    limit = card.context_length
    if context is None:
        highest = limit or found.contexts[-2 if len(found.contexts) > 1 else 0]
        tried = dict.fromkeys(min(each, highest) for each in found.contexts)
        return tuple(tried)
    if isinstance(context, bool) or not isinstance(context, int) or context < 1:
        raise InputError(f"context must be 1 or more, not {context}.")
    if limit and context > limit:
        raise InputError(
            f"context={context} is more than {card.id} was made for ({limit}).",
            hint=f"Give at most {limit}.",
        )
    return (context,)


def has_slots(facts: EngineFacts) -> bool:
    """Return whether a server gives each request at a time a whole context of its own."""
    server = facts.server
    return server is not None and any("{whole_context}" in word for word in server.command)


def sequences_of(facts: EngineFacts | None, batch: int, options: Mapping[str, Any]) -> int:
    """Return how many contexts an engine holds: the batch, or all slots of a server that has some.

    Raises:
        InputError: ``parallel`` is no number of slots.
    """
    if facts is None or facts.server is None or not has_slots(facts):
        return batch
    return requests_at_a_time(facts.server, batch, options)


def requests_at_a_time(server: ServerFacts, batch: int, options: Mapping[str, Any]) -> int:
    """Return how many requests a server answers at a time.

    Raises:
        InputError: ``parallel`` is no number of requests.
    """
    asked = options.get("parallel")
    if asked is None:
        return max(batch, server.slots)
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise InputError(f"parallel must be 1 or more, not {asked!r}.")
    return asked


def card_layers(card: Card) -> int | None:
    """Return the layers on the GPU that the card asks for, None where it leaves them open."""
    return None if card.n_gpu_layers == -1 else card.n_gpu_layers


def check_adapter(adapter: str | Path | None) -> Path | None:
    """Return the folder of a LoRA adapter, or the GGUF file that llama.cpp loads.

    Raises:
        InputError: It is none.
    """
    if adapter is None:
        return None
    folder = Path(adapter).expanduser().resolve()
    if folder.suffix == ".gguf" and folder.is_file():
        return folder
    if not (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{folder} is not a LoRA adapter: it has no adapter_config.json.",
            hint="Give the folder that the fine-tuning left.",
        )
    return folder


def asked_form(
    quantization: str,
    card: Card,
    files: ModelFiles | None,
    facts: EngineFacts | None,
    found: Rules,
) -> str | None:
    """Return the name of the form that is asked for as it is written, None for ``auto``.

    Raises:
        UnsupportedError: The engine cannot do it, or the file is of another form already.
        InputError: There is no such form.
    """
    if quantization == AUTO:
        return None
    if quantization == "none":
        if facts is not None and "gguf" in facts.formats and _is_plain(card, files):
            return sixteen_bit_gguf(card.dtype)
        return "none"
    every = engine_facts()
    engines = [facts] if facts is not None else [every[name] for name in automatic_engines()]
    names = {name.lower(): name for each in engines for name in known_forms(each, card, found)}
    if facts is not None and "gguf" in facts.only_when_named:
        names |= {name.lower(): name for name in gguf_names(card, found)}
    exact = names.get(quantization.lower())
    if exact is None:
        raise _unknown_form(quantization, card, facts, found, [*names.values()])
    if files is not None and files.kind == "gguf":
        raise UnsupportedError(
            f"{files.path.name} is already a GGUF file; it is loaded as it is, not as {exact}.",
            hint="Leave quantization out, or start from the safetensors.",
        )
    return exact


def _is_plain(card: Card, files: ModelFiles | None) -> bool:
    """Whether 16-bit files are to be converted: a ready GGUF is named by its own form."""
    if files is not None:
        return files.kind == "safetensors"
    return card.gguf is None and card.stored is None


def _unknown_form(
    quantization: str, card: Card, facts: EngineFacts | None, found: Rules, known: list[str]
) -> InputError | UnsupportedError:
    others = [
        each
        for each in (engine_facts()[name] for name in automatic_engines())
        if quantization.lower() in {name.lower() for name in known_forms(each, card, found)}
    ]
    if others and facts is not None:
        able = ", ".join(each.name for each in others)
        return UnsupportedError(
            f"The engine {facts.name} cannot do the quantization {quantization!r}.",
            hint=f"{able} can; {facts.name} has {', '.join(facts.quantizations)}.",
        )
    return InputError(
        f"There is no quantization named {quantization!r}.", hint=did_you_mean(quantization, known)
    )


def known_forms(facts: EngineFacts, card: Card, found: Rules) -> list[str]:
    """Return the names of the forms in which an engine could load a card."""
    names = list(facts.quantizations)
    if "safetensors" in facts.formats:
        names += [
            ready_name(each)
            for each in card.forms
            if each.kind in found.packed
            and facts.name in (found.packed[each.kind].engines or (facts.name,))
        ]
    if "gguf" in facts.formats:
        names += gguf_names(card, found)
    return list(dict.fromkeys(names))


def gguf_names(card: Card, found: Rules) -> list[str]:
    """Return the names of the ready GGUF files that a card has, or may well have."""
    if card.gguf is None or card.path is not None:
        return []
    in_quality = [name for line in found.quality for name in line if name[:2] in ("Q2", "Q3")]
    in_quality += [name for line in found.quality for name in line if name.startswith("IQ")]
    return [*ready_names(card, found), *in_quality]
