"""Take keys, home paths, host and user names out of plain data before it is written or shown."""

from __future__ import annotations

import getpass
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

HIDDEN = "<redacted>"
_SECRET_VARIABLE = re.compile(r"(?:_KEY|_TOKEN|_SECRET|PASSWORD)$", re.IGNORECASE)
_SECRET_FIELD = re.compile(  # narrower: "eos_token" and "cache_key" are no secrets
    r"(?:api_?key|(?:access|auth|hf|refresh|github)_token|secret|password|^authorization)$",
    re.IGNORECASE,
)
_SECRET_SHAPES = (
    re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"),
    re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})"),
    re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    re.compile(r"\bAIza[0-9A-Za-z_-]{30,}"),
    re.compile(r"(?<=\bBearer )\s*[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE),
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL),
)
_SHORTEST_SECRET = 6  # a variable holding "1" or "true" is no secret, and would eat the text
_NO_PERSON = {"", "root", "user", "nobody", "jovyan", "ubuntu", "runner", "admin"}
_HOMES = re.compile(r"(?<![\w.~-])(/home|/Users)/[^/\s:\"']+")


def redacted(value: Any) -> Any:
    """Return ``value`` with everything private replaced; the input is not changed.

    Walks mappings, lists, tuples and sets (the last three become lists); paths become strings;
    other values pass as they are. The home folder becomes ``~``, the host name ``<host>``, the user
    name in a path ``user``, and keys, tokens and passwords ``<redacted>``: values of environment
    variables whose name ends in _KEY, _TOKEN, _SECRET or PASSWORD, values under keys such as
    ``api_key``, and text that has the shape of a known kind of key.
    """
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, PurePath):
        return _text(str(value))
    if isinstance(value, Mapping):
        return {_name(name): _named(name, item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redacted(item) for item in value]
    return value


def _name(name: Any) -> Any:
    return _text(name) if isinstance(name, str) else name


def _named(name: Any, item: Any) -> Any:
    secret = isinstance(name, str) and isinstance(item, str) and _SECRET_FIELD.search(name)
    return HIDDEN if secret and item else redacted(item)


def _text(text: str) -> str:
    for secret in _environment_secrets():
        text = text.replace(secret, HIDDEN)
    for shape in _SECRET_SHAPES:
        text = shape.sub(HIDDEN, text)
    return _host(_user(_home(text)))


def _environment_secrets() -> list[str]:
    found = {
        value
        for name, value in os.environ.items()
        if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST_SECRET
    }
    return sorted(found, key=len, reverse=True)  # a secret that contains another goes first


def _home(text: str) -> str:
    for home in {str(Path("~").expanduser()), os.path.realpath(Path("~").expanduser())}:
        if len(home) > 1:
            text = re.sub(rf"(?<![\w.~-]){re.escape(home)}(?![\w.-])", "~", text)
    return _HOMES.sub(r"\1/user", text)


def _user(text: str) -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no entry for this id in the password file
        return text
    if user in _NO_PERSON:
        return text
    return re.sub(rf"(?<=[/\\-]){re.escape(user)}(?=[/\\]|$)", "user", text)


def _host(text: str) -> str:
    host = platform.node()
    if len(host) < 4 or host.startswith("localhost"):
        return text
    bounded = rf"(?<![\w-]){re.escape(host)}(?![\w-])"
    if host.isalpha():  # a plain word such as "llama" is a host only where an address stands
        bounded = rf"(?:(?<=@)|(?<=//)){re.escape(host)}(?![\w-])|{bounded}(?=:\d)"
    return re.sub(bounded, "<host>", text, flags=re.IGNORECASE)
