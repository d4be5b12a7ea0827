"""Plans of models behind a URL: which service, under which name, and where each came from."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from workbench.catalog import Card, catalog
from workbench.catalog.capabilities import engine_facts
from workbench.errors import InputError, did_you_mean
from workbench.planning.given import AUTO, contexts_of
from workbench.planning.planned import Plan
from workbench.planning.policy import rules
from workbench.settings import environment

ENGINE = "openai"
URL_VARIABLE = "BACKEND_URL"
_SECRETS = ("key", "api_key", "token", "password", "authorization", "headers", "bearer")
_KEY_HOSTS = re.compile(r"(?:^|\.)api\.openai\.com$|\.openai\.azure\.com$")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Which engine is meant, and why.

    Attributes:
        engine: Its name, or ``auto``.
        flavour: Kind of server, where one is named.
        url: Address from the environment, where it counts.
        reason: Where the engine came from, "" where nothing chose it.
    """

    engine: str
    flavour: str | None = None
    url: str | None = None
    reason: str = ""


def backend_for(
    model: str | Path | Card, engine: str, options: Mapping[str, Any], *, here: bool = True
) -> Backend:
    """Return the engine that is meant: argument, then card, then environment, then ``auto``.

    A card is looked up only where the environment might be overruled by it; ``service_of`` is for
    the others.
    ``WORKBENCH_BACKEND`` names an engine or a kind of server, ``BACKEND_URL`` its address.

    Args:
        model: A card, a card's id, a file, or a service's own name of a model.
        engine: The engine that is given, or ``auto``.
        options: Options that are given; ``url`` means this engine.
        here: Whether the plan is for this machine; the environment says nothing of another.

    Raises:
        InputError: The environment names no back end that there is.
    """
    flavours = engine_facts()[ENGINE].flavours
    if engine in flavours and engine not in engine_facts():
        said = f"A server of the kind {engine}, as given (argument)."
        return Backend(engine=ENGINE, flavour=engine, reason=said)
    if engine != AUTO:
        said = "The engine openai, as given (argument)." if engine == ENGINE else ""
        return Backend(engine=engine, reason=said)
    if options.get("url"):
        return Backend(
            engine=ENGINE, reason="The engine openai, because a url is given (argument)."
        )
    named = environment("backend") or os.environ.get(URL_VARIABLE)
    if not named or not here:
        return Backend(engine=AUTO)
    card = _card(model)
    if card is not None and card.remote is not None:
        return service_of(card)
    if isinstance(model, Path) or (isinstance(model, str) and Path(model).expanduser().exists()):
        return Backend(engine=AUTO)  # files that were given are not looked for elsewhere
    return _from_environment(flavours)


def service_of(card: Card) -> Backend:
    """Return the engine of a card that names a service."""
    said = f"The engine openai, because the card {card.id} names a service (card)."
    return Backend(engine=ENGINE, reason=said)


def _from_environment(flavours: Mapping[str, Any]) -> Backend:
    name, url = environment("backend"), os.environ.get(URL_VARIABLE) or None
    if name is None and url is None:
        return Backend(engine=AUTO)
    if name is None:
        said = f"The engine openai, because {URL_VARIABLE} is set (environment)."
        return Backend(engine=ENGINE, url=url, reason=said)
    said = f"WORKBENCH_BACKEND={name} (environment)."
    if name == ENGINE or (name in flavours and (url or name not in engine_facts())):
        kind = name if name != ENGINE or url is None else None
        return Backend(engine=ENGINE, flavour=kind, url=url, reason=said)
    if name in engine_facts():
        return Backend(engine=name, reason=said)
    known = {*flavours, *engine_facts()}
    raise InputError(
        f"WORKBENCH_BACKEND names no back end: {name!r}.", hint=did_you_mean(name, known)
    )


def remote_plan(
    model: str | Path | Card, backend: Backend, *, context: int | None, options: Mapping[str, Any]
) -> Plan:
    """Return the plan of a model that a service holds.

    Args:
        model: A card, a card's id, or the service's own name of the model.
        backend: What ``backend_for`` found.
        context: Tokens that prompt and reply may take together; the server's own where left out.
        options: Options of the engine: ``url``, ``flavour``, ``served_model``, ``key_variable`` ...

    Raises:
        InputError: No URL is known, it is none, or an option is wrong.
    """
    _refuse_secrets(options)
    card, given = _card(model), dict(options)
    name = card.id if card is not None else str(model)
    remote = card.remote if card is not None else None
    url, why = _url(given, remote.url if remote else None, backend)
    own = remote is not None and url == checked_url(remote.url)
    given["url"] = url
    given.setdefault("served_model", remote.model if remote and own else name)
    if backend.flavour is not None:
        given.setdefault("flavour", backend.flavour)
    if "key_variable" not in given:
        variable = remote.key_variable if remote and own else _usual_key(url)
        if variable is not None:
            given["key_variable"] = variable
    card = card or Card(id=_as_id(name))
    return Plan(
        card=card,
        engine=ENGINE,
        context=contexts_of(context, card, rules())[0],
        options=given,
        reasons=tuple(said for said in (backend.reason, why, _note(given)) if said),
    )


def _url(given: Mapping[str, Any], of_card: str | None, backend: Backend) -> tuple[str, str]:
    """Return the address and where it came from."""
    if given.get("url"):
        url = checked_url(given["url"])
        return url, f"The URL {url} is as given (argument)."
    if of_card is not None:
        return checked_url(of_card), f"The URL {checked_url(of_card)} is the card's."
    told = backend.url or os.environ.get(URL_VARIABLE)
    if told:
        url = checked_url(told)
        return url, f"The URL {url} is from {URL_VARIABLE} (environment)."
    flavours = engine_facts()[ENGINE].flavours
    kind = given.get("flavour") or backend.flavour
    usual = flavours[kind].url if kind in flavours else None
    if usual is None:
        raise InputError(
            "The engine openai needs the address of a server.",
            hint=f"Give url='http://127.0.0.1:8000/v1', or set {URL_VARIABLE}.",
        )
    return usual, f"The URL {usual} is where {kind} listens (default)."


def _note(given: Mapping[str, Any]) -> str:
    """Return what differs at this kind of server, where it is known."""
    facts = engine_facts()[ENGINE].flavours.get(str(given.get("flavour")))
    return (facts.notes or "") if facts else ""


def _refuse_secrets(options: Mapping[str, Any]) -> None:
    """Refuse a key that is given openly: a plan is shown, kept and passed on."""
    extra = options.get("extra")
    for name in (*options, *(extra if isinstance(extra, Mapping) else ())):
        if str(name).lower().replace("-", "_") in _SECRETS:
            raise InputError(
                f"{name}= is not taken: plans and receipts are kept.",
                hint="Put the key into an environment variable and name that: key_variable='...'.",
            )


def checked_url(url: Any) -> str:
    """Return the base URL of a server; a bare host gets ``/v1``.

    Raises:
        InputError: It is no ``http`` address, or holds what belongs elsewhere, such as a key.
    """
    text = str(url).strip()
    try:
        split = urlsplit(text)
        host, _ = split.hostname, split.port
    except ValueError:
        raise InputError("The url is no address.", hint="As http://127.0.0.1:8000/v1.") from None
    if split.username or split.password or split.query or split.fragment:
        raise InputError(
            f"The url of {host} holds more than an address.",
            hint="Leave out user, password and query; a key is read from the environment variable "
            "that key_variable= names.",
        )
    if split.scheme not in ("http", "https") or not host or re.search(r"[\s\x00-\x1f]", text):
        raise InputError(f"{text[:80]!r} is no http address.", hint="As http://127.0.0.1:8000/v1.")
    return text.rstrip("/") if split.path.strip("/") else f"{text.rstrip('/')}/v1"


def _usual_key(url: str) -> str | None:
    """Return OpenAI's own variable for OpenAI's own hosts: its key goes nowhere else by itself."""
    split = urlsplit(url)
    usual = split.scheme == "https" and _KEY_HOSTS.search(split.hostname or "")
    return "OPENAI_API_KEY" if usual else None


def _card(model: str | Path | Card) -> Card | None:
    if isinstance(model, Card):
        return model
    shelf = catalog()
    return shelf[model] if isinstance(model, str) and model in shelf else None


def _as_id(name: str) -> str:
    """Return a card's id for a name of a service: ``org/model:tag`` becomes ``model-tag``."""
    short = re.sub(r"\.(gguf|safetensors|bin)$", "", name.rstrip("/").rsplit("/", 1)[-1])
    return re.sub(r"[^A-Za-z0-9._+-]", "-", short).lstrip("._+-")[:100] or "served"
