"""The engine for any OpenAI-compatible URL: Ollama, LM Studio, vLLM, a remote service.

``wb.load("llama3.2:1b", engine="openai", url="http://127.0.0.1:11434/v1")``
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from workbench.engines.http import Key, Waits
from workbench.engines.openai_probe import flavour_named
from workbench.engines.openai_session import CONCURRENT, OpenAISession
from workbench.errors import InputError, did_you_mean
from workbench.planning import Plan
from workbench.planning.remote import checked_url

_OPTIONS = (
    "url",
    "served_model",
    "flavour",
    "key_variable",
    "connect",
    "first",
    "silence",
    "retries",
    "concurrent",
    "extra",
)


class OpenAIEngine:
    """Opens a URL instead of files.

    Options of ``wb.load``:
        url: Base URL, up to and without ``/chat/completions``.
        served_model: The server's name of the model, where it is not the one that is loaded.
        flavour: Kind of server (``vllm``, ``llama-server``, ``ollama`` ...); else it is found out.
        key_variable: Environment variable that holds the key. Without it the card's is used, or
            OPENAI_API_KEY for OpenAI's own hosts; no other host gets a key by itself.
        connect: Seconds to connect, 10 by default.
        first: Seconds to the first token, 600 by default.
        silence: Seconds of silence within a reply, 120 by default.
        retries: Times to ask again where a request was not accepted, 2 by default.
        concurrent: Most requests at a time in ``ask_many``, 16 by default.
        extra: Further keys for the body of every request, as the server documents them.

    A setting of ``Sampling`` that the kind of server would ignore raises UnsupportedError, unless
    it is at its neutral value; ``extra`` passes what only this server knows.
    """

    name = "openai"

    def open(self, plan: Plan) -> OpenAISession:
        """Look at the server and return a session.

        Raises:
            InputError: An option is unknown or wrong, or the key's variable is not set.
            NotFoundError: The server has no such model.
            EngineError: It is not reached, or does not accept the key.
        """
        options = _checked(plan.options)
        card = plan.card
        names = [card.id, card.repository, *([card.gguf.repository] if card.gguf else [])]
        session = OpenAISession(
            checked_url(options.get("url", "")),
            str(options.get("served_model") or card.id),
            key=key_from(options.get("key_variable")),
            flavour=options.get("flavour"),
            names=[name for name in names if name],
            waits=_waits(options),
            concurrent=_number(options, "concurrent", CONCURRENT, least=1),
            extra=options.get("extra"),
        )
        session.add_powers(card.tasks)
        return session


def key_from(variable: str | None) -> Key | None:
    """Return the key that an environment variable holds, None where none is named.

    Raises:
        InputError: It is not set.
    """
    if variable is None:
        return None
    value = (os.environ.get(variable) or "").strip()
    if not value:
        raise InputError(
            f"The environment variable {variable} holds no key.",
            hint=f"Set {variable} before Python is started, or by os.environ.",
        )
    return Key(value, variable=variable)


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    for name in options:
        if name not in _OPTIONS:
            raise InputError(
                f"The engine openai has no option {name!r}.", hint=did_you_mean(name, _OPTIONS)
            )
    extra = options.get("extra")
    if extra is not None and not isinstance(extra, Mapping):
        raise InputError(f"extra is a mapping of names to values, not {type(extra).__name__}.")
    if options.get("flavour") is not None:
        flavour_named(str(options["flavour"]))
    return dict(options)


def _waits(options: Mapping[str, Any]) -> Waits:
    usual = Waits()
    return Waits(
        connect=_number(options, "connect", usual.connect),
        first=_number(options, "first", usual.first),
        silence=_number(options, "silence", usual.silence),
        retries=_number(options, "retries", usual.retries, least=0),
    )


def _number(options: Mapping[str, Any], name: str, usual: Any, *, least: int | None = None) -> Any:
    """Return a number: a count of at least ``least``, or seconds above 0 where that is None."""
    value = options.get(name)
    if value is None:
        return usual
    kinds = (int,) if least is not None else (int, float)
    holds = isinstance(value, kinds) and not isinstance(value, bool)
    if not holds or (value < least if least is not None else value <= 0):
        rule = f"a whole number, {least} or more" if least is not None else "seconds, above 0"
        raise InputError(f"{name} must be {rule}, not {value!r}.")
    return value
