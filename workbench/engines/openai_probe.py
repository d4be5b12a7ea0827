"""Find out what an OpenAI-compatible server is, which models it has, and what they can do."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from workbench.catalog.capabilities import engine_facts
from workbench.catalog.flavour import Flavour
from workbench.engines.base import Power
from workbench.engines.http import Http
from workbench.errors import (
    InputError,
    NotFoundError,
    UnsupportedError,
    WorkbenchError,
    did_you_mean,
)

ANY = "compatible"
_PROBE_SECONDS = 10.0
_EMBEDS = re.compile(r"embed|(?:^|[/-])(?:bge|gte|e5)-", re.IGNORECASE)
_RERANKS = re.compile(r"rerank", re.IGNORECASE)
_CHAT = {Power.SCHEMA, Power.GRAMMAR, Power.TOOLS, Power.THINKING, Power.LOGPROBS, Power.COMPLETE}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a server told of itself.

    Attributes:
        flavour: What kind of server it is.
        model: The name it knows the model by.
        context: Tokens that prompt and reply may take together, or None where it does not say.
        powers: What the model can do there.
        version: Of the server, "" where it does not say.
        chats: Whether it answers messages: False where it says that it has no path for them.
    """

    flavour: str
    model: str
    context: int | None
    powers: frozenset[Power]
    version: str = ""
    chats: bool = True


def flavours() -> dict[str, Flavour]:
    """Return the kinds of servers that are known, by name."""
    return engine_facts()["openai"].flavours


def flavour_named(name: str) -> Flavour:
    """Return a kind of server.

    Raises:
        InputError: There is no such kind.
    """
    known = flavours()
    if name not in known:
        raise InputError(f"There is no kind of server {name!r}.", hint=did_you_mean(name, known))
    return known[name]


def listed_models(http: Http) -> list[dict[str, Any]] | None:
    """Return the server's models as it lists them, or None where it has no list.

    Raises:
        WorkbenchError: The server is not reached, or wants another key.
    """
    try:
        found = http.json("GET", "/models", seconds=_PROBE_SECONDS)
    except (NotFoundError, InputError, UnsupportedError):
        return None
    rows = found.get("data", found.get("models")) if isinstance(found, Mapping) else found
    if not isinstance(rows, list):
        return None
    return [row for row in rows if isinstance(row, dict) and name_in(row)]


def name_in(row: Mapping[str, Any]) -> str:
    """Return the name of a listed model."""
    return str(row.get("id") or row.get("name") or row.get("model") or "")


def flavour_of(rows: Collection[Mapping[str, Any]] | None, url: str) -> str:
    """Return what kind of server it is, by the owner of its models or by its address."""
    owners = {str(row.get("owned_by") or "") for row in rows or ()}
    host = urlsplit(url).hostname or ""
    for name, facts in flavours().items():
        if facts.url and facts.url.startswith("https") and urlsplit(facts.url).hostname == host:
            return name
    for name, facts in flavours().items():
        if owners & set(facts.owners) and name != "openai":
            return name
    return ANY


def served_name(
    wanted: Collection[str], rows: Collection[Mapping[str, Any]] | None, url: str
) -> str:
    """Return the name by which a server knows a model.

    Args:
        wanted: What the model is called here, the likeliest name first.
        rows: Its models, None where it has no list.
        url: Its address.

    Raises:
        NotFoundError: It has no such model; the error names those it has.
    """
    first = next(iter(wanted))
    if rows is None:
        return first
    there = [name_in(row) for row in rows]
    for name in wanted:
        if name in there:
            return name
    for name in wanted:
        short = _short(name)
        same = [each for each in there if _short(each) == short]
        if len(same) == 1:
            return same[0]
    raise no_such_model(first, there, url)


def no_such_model(name: str, there: Collection[str], url: str) -> NotFoundError:
    """Return the error of a model that a server does not have."""
    shown = sorted(there)
    more = f" and {len(shown) - 20} more" if len(shown) > 20 else ""
    known = f"It has: {', '.join(shown[:20])}{more}." if shown else "It lists none."
    return NotFoundError(
        f"{url} has no model {name!r}. {known}",
        hint="Give one of these names; served_model= where the card has another.",
    )


def _short(name: str) -> str:
    """Return the end of a path without the ending of a file: what ``models/x.gguf`` is known by."""
    return name.rsplit("/", 1)[-1].lower().removesuffix(".gguf").removesuffix(":latest")


def look(http: Http, flavour: str, model: str, row: Mapping[str, Any] | None) -> Found:
    """Return what a server tells of a model, asked by the paths that its kind has.

    What it does not tell is taken from its kind; nothing is generated to find out.
    """
    powers = {Power(name) for name in flavour_named(flavour).powers}
    told, chats = row or {}, True
    context = _number(told, "max_model_len", "context_length", "context_window")
    version = ""
    if flavour == "vllm":
        version, powers, chats = _look_at_vllm(http, powers)
    elif flavour == "llama-server":
        version, context, powers = _look_at_llama_server(http, told, powers)
    elif flavour == "ollama":
        powers = _look_at_ollama(http, model, powers)
    elif flavour == "lmstudio":
        context, powers = _look_at_lmstudio(http, model, powers)
    else:
        powers |= _by_name(model)
    if Power.RERANK in powers and flavour != "vllm":
        powers -= _CHAT
    return Found(
        flavour=flavour,
        model=model,
        context=context,
        powers=frozenset(powers),
        version=version,
        chats=chats,
    )


def _asked(http: Http, method: str, path: str, body: Any = None) -> Mapping[str, Any]:
    """Return what a server's own path answers, empty where it has none."""
    try:
        found = http.json(method, path, body, at_root=True, seconds=_PROBE_SECONDS)
    except WorkbenchError:
        return {}
    return found if isinstance(found, Mapping) else {}


def _look_at_vllm(http: Http, powers: set[Power]) -> tuple[str, set[Power], bool]:
    """Read version and paths: a vLLM server has only the paths that its model can serve."""
    version = str(_asked(http, "GET", "/version").get("version") or "")
    paths = _asked(http, "GET", "/openapi.json").get("paths")
    if not isinstance(paths, Mapping):  # --disable-fastapi-docs
        return version, powers, True
    chats = "/v1/chat/completions" in paths
    if not chats and "/v1/completions" not in paths:
        powers = powers - _CHAT - {Power.SCORE, Power.RENDER, Power.BATCH}
    if "/v1/completions" not in paths:
        powers = powers - {Power.COMPLETE, Power.SCORE}
    if "/tokenize" not in paths:
        powers = powers - {Power.TOKENIZE, Power.RENDER}
    if "/v1/embeddings" in paths:
        powers = powers | {Power.EMBED}
    if "/v1/rerank" in paths or "/rerank" in paths:
        powers = powers | {Power.RERANK}
    return version, powers, chats


def _look_at_llama_server(
    http: Http, row: Mapping[str, Any], powers: set[Power]
) -> tuple[str, int | None, set[Power]]:
    props = _asked(http, "GET", "/props")
    settings = props.get("default_generation_settings")
    context = _number(settings, "n_ctx") if isinstance(settings, Mapping) else None
    modalities = props.get("modalities")
    if isinstance(modalities, Mapping) and modalities.get("vision"):
        powers = powers | {Power.IMAGES}
    return str(props.get("build_info") or ""), context, powers


def _look_at_ollama(http: Http, model: str, powers: set[Power]) -> set[Power]:
    able = _asked(http, "POST", "/api/show", {"model": model}).get("capabilities")
    if not isinstance(able, list):
        return powers | _by_name(model)
    if "completion" not in able:
        powers = powers - _CHAT
    for name, power in (("tools", Power.TOOLS), ("thinking", Power.THINKING)):
        if name not in able:
            powers = powers - {power}
    for name, power in (("vision", Power.IMAGES), ("embedding", Power.EMBED)):
        if name in able:
            powers = powers | {power}
    return powers


def _look_at_lmstudio(http: Http, model: str, powers: set[Power]) -> tuple[int | None, set[Power]]:
    row = _asked(http, "GET", f"/api/v0/models/{model}")
    kind = row.get("type")
    if kind == "embeddings":
        powers = powers - _CHAT | {Power.EMBED}
    elif kind == "vlm":
        powers = powers | {Power.IMAGES}
    elif kind is None:
        powers = powers | _by_name(model)
    return _number(row, "loaded_context_length", "max_context_length"), powers


def _by_name(model: str) -> set[Power]:
    """Return what a model's name says it is for, where the server does not tell."""
    if _RERANKS.search(model):
        return {Power.RERANK}
    return {Power.EMBED} if _EMBEDS.search(model) else set()


def _number(found: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = found.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
