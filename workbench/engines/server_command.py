"""A plan and a server's facts become the command that starts it."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.catalog.capabilities import EngineFacts, ServerFacts, engine_facts
from workbench.catalog.server_place import program_of
from workbench.engines.server_process import Command, free_port
from workbench.engines.server_template import template_of, tool_parser_of
from workbench.errors import EngineError, InputError, did_you_mean
from workbench.planning import Plan
from workbench.planning.given import requests_at_a_time

_OWN = ("python", "program", "arguments", "environment", "parallel", "patience", "adapters", "lora")
"""Options that are no flag of the server itself."""
_LORA_RANK = 16  # room for adapters that come later; a larger one costs memory
_ADAPTERS = 8  # kept on the host
_GIB = 2**30
_SPARE = 1.05  # a cache is cut into blocks


def facts_of(engine: str) -> tuple[EngineFacts, ServerFacts]:
    """Return the facts of a server engine."""
    facts = engine_facts()[engine]
    if facts.server is None:
        raise EngineError(f"{engine} is no server.")
    return facts, facts.server


def command_for(plan: Plan) -> Command:
    """Return the command that serves a plan's model on a free port of 127.0.0.1.

    Raises:
        InputError: An option that the server does not know, or of the wrong kind.
        MissingPackageError: The server is not on this machine.
        EngineError: The plan names no files.
    """
    _, server = facts_of(plan.engine)
    options = dict(plan.options)
    _check_options(plan.engine, server, options)
    program, words = program_of(plan.engine, server, options)
    port, key = free_port(), secrets.token_urlsafe(24) if server.key_environment else ""
    values = _values(plan, server, program=program, port=port)
    device = server.devices.get(plan.device)
    asked = [*words, *(device.arguments if device else ())]
    asked += _flags(server, _with_own(plan, server, options))
    found = [each for word in asked if (each := _filled(word, values))]
    found += [str(word) for word in options.get("arguments", ())]
    if plan.adapter is not None or options.get("adapters") or options.get("lora"):
        found += _adapter_words(plan, options)
    return Command(
        engine=plan.engine,
        label=plan.card.id,
        words=found,
        environment=_environment(plan, server, options, values, key),
        port=port,
        key=key,
        ready=server.ready,
        causes=server.causes,
        noise=server.noise,
        patience=float(options.get("patience", server.patience)),
        grace=server.grace,
    )


def slots_of(plan: Plan) -> int:
    """Return how many requests the server answers at a time."""
    _, server = facts_of(plan.engine)
    return requests_at_a_time(server, plan.batch, plan.options)


def _check_options(engine: str, server: ServerFacts, options: Mapping[str, Any]) -> None:
    known = {*_OWN, *server.options, *server.options_off}
    for name, value in options.items():
        if name not in known:
            raise InputError(
                f"The engine {engine} has no option {name!r}.", hint=did_you_mean(name, known)
            )
        if name == "arguments" and (
            isinstance(value, str) or not all(isinstance(word, (str, int, float)) for word in value)
        ):
            raise InputError(
                f"arguments={value!r} is no list of words.", hint="arguments=['--flag', 'value']"
            )
        wants = any("{value}" in word for word in server.options.get(name, ()))
        if wants and (value is True or isinstance(value, (list, dict, tuple))):
            raise InputError(f"{name}={value!r}: the {engine} server wants one value.")


def _values(plan: Plan, server: ServerFacts, *, program: str, port: int) -> dict[str, str]:
    """Return what the placeholders stand for."""
    if plan.files is None:
        raise EngineError(
            f"The plan for {plan.card.id} names no files, and {plan.engine} needs some.",
            hint="Download the model and name its folder or file.",
        )
    weights = plan.files.weights
    single = plan.files.kind == "gguf" and plan.files.path.is_dir() and len(weights) > 0
    slots = slots_of(plan)
    return {
        "program": program,
        "model": str(weights[0] if single else plan.files.path),
        "name": plan.card.id,
        "host": "127.0.0.1",
        "port": str(port),
        "context": str(plan.context),
        "slots": str(slots),
        "whole_context": str(plan.context * slots),
        "dtype": server.dtypes.get(plan.dtype or "", "auto"),
        "threads": str(plan.threads or _threads()),
        "gpu_layers": str(999 if plan.gpu_layers < 0 else plan.gpu_layers),
        "cache_type": plan.cache_type,
        "device": plan.device,
        "cache_gib": str(max(1, math.ceil(cache_bytes(plan) / _GIB))),
        "script": str(Path(__file__).with_name("server_xllamacpp.py")),
        "folder": str(Path(program).parent),
    }


def _threads() -> int:
    count = getattr(os, "sched_getaffinity", None)
    return len(count(0)) if count else os.cpu_count() or 1


def cache_bytes(plan: Plan) -> int:
    """Return the bytes of the KV cache by the plan's estimate, 0 where it is not known."""
    if plan.estimate is None:
        return 0
    return sum(part.bytes for part in plan.estimate.parts if part.group == "cache")


def _filled(word: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        word = word.replace("{" + name + "}", value)
    return word


def _with_own(plan: Plan, server: ServerFacts, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with what the plan itself says."""
    found = dict(options)
    if "tool_parser" not in found and server.tool_parsers:
        found["tool_parser"] = tool_parser_of(template_of(plan), server.tool_parsers)
    if plan.tensor_parallel > 1 and "tensor_parallel" in server.options:
        found.setdefault("tensor_parallel", plan.tensor_parallel)
    if plan.device == "cuda" and "kv_cache_memory_bytes" in server.options:
        for name, value in _beside_others(plan).items():
            found.setdefault(name, value)
    return found


def _beside_others(plan: Plan) -> dict[str, Any]:
    """Return the options that let vLLM start where other programs hold the GPU's memory.

    It takes a share of the whole GPU and refuses to start where less is free; a cache of stated
    size, and a share that is below what is free, keep it out of the others' way.
    """
    from workbench.machine import machine

    devices = [each for each in machine().devices if each.kind == "cuda"]
    shares = [
        each.free_bytes / each.total_bytes
        for each in devices[: plan.tensor_parallel]
        if each.free_bytes and each.total_bytes
    ]
    size = cache_bytes(plan)
    if not shares or min(shares) > 0.95 or not size:
        return {}
    each = math.ceil(size * _SPARE)  # the estimate is of one device
    share = math.floor(min(shares) * 95) / 100
    return {"kv_cache_memory_bytes": each, "gpu_memory_utilization": share}


def _flags(server: ServerFacts, options: Mapping[str, Any]) -> list[str]:
    """Return the words of the options that are given."""
    found: list[str] = []
    for name, value in options.items():
        if value is None:
            continue
        words = server.options_off.get(name, ()) if value is False else server.options.get(name, ())
        found += [word.replace("{value}", str(value)) for word in words]
    return found


def adapters_of(plan: Plan) -> dict[str, Path]:
    """Return the adapters that are loaded with the server, by the name they are asked by."""
    given = plan.options.get("adapters") or {}
    if not isinstance(given, Mapping):
        raise InputError(
            f"adapters={given!r} is no mapping of names to folders.",
            hint="adapters={'name': 'folder'}",
        )
    found = {str(name): Path(folder).expanduser().resolve() for name, folder in given.items()}
    if plan.adapter is not None and plan.adapter not in found.values():
        found[plan.adapter.name] = plan.adapter
    return found


def _adapter_words(plan: Plan, options: Mapping[str, Any]) -> list[str]:
    named = adapters_of(plan)
    if plan.engine == "llama-server":
        return [word for path in named.values() for word in _scaled(path, plan)]
    asked = options.get("lora")
    least = asked if isinstance(asked, int) and not isinstance(asked, bool) else _LORA_RANK
    rank = max([_known_rank(least), *map(_rank, named.values())])
    words = ["--enable-lora", "--max-lora-rank", str(rank)]
    words += ["--max-loras", "1", "--max-cpu-loras", str(max(len(named), _ADAPTERS))]
    if not named:
        return words
    return [*words, "--lora-modules", *(f"{name}={path}" for name, path in named.items())]


def _scaled(adapter: Path, plan: Plan) -> tuple[str, str]:
    """Return the words that load an adapter into llama-server; a PEFT folder is converted once."""
    from workbench.engines.llama_cpp_adapter import lora_file

    return "--lora-scaled", f"{lora_file(adapter, plan.card)}:{int(adapter == plan.adapter)}"


def _rank(folder: Path) -> int:
    """Return the least rank that vLLM can be told and that holds an adapter's."""
    import json

    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        rank = max(map(int, [config["r"], *(config.get("rank_pattern") or {}).values()]))
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder} is not a LoRA adapter: its rank cannot be read.") from None
    return _known_rank(rank)


def _known_rank(rank: int) -> int:
    return next((each for each in (8, 16, 32, 64, 128, 256, 320, 512) if each >= rank), rank)


def _environment(
    plan: Plan,
    server: ServerFacts,
    options: Mapping[str, Any],
    values: Mapping[str, str],
    key: str,
) -> dict[str, str]:
    device = server.devices.get(plan.device)
    found = {**server.environment, **(device.environment if device else {})}
    found = {
        name: _filled(value, values)
        for name, value in found.items()
        if name not in os.environ or name in server.environment
    }
    for name, variables in server.options_environment.items():
        if options.get(name):
            found.update(variables)
    if plan.threads:
        found["OMP_NUM_THREADS"] = str(plan.threads)
    found.update({str(name): str(value) for name, value in options.get("environment", {}).items()})
    if server.key_environment:
        found[server.key_environment] = key
    return found
