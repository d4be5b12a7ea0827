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
    re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,})"),
    re.compile(r"\b(?:gsk_|nvapi-|r8_|xox[abeprs]-)[A-Za-z0-9_-]{20,}"),
    re.compile(r"\bey[A-Za-z0-9_-]{10,2000}\.ey[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+"),  # JWT
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"\bAIza[0-9A-Za-z_-]{30,}"),
    re.compile(r"(?<=\bBearer )\s*[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE),
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL),
)
_ASSIGNED = re.compile(  # api_key=..., "hf-token": ..., aws_secret_access_key: ...
    r"(?P<name>(?:key|token|secret|password|passwd)[\"']?\s*[=:]\s*[\"']?)"
    r"(?=[^\s\"',;]{0,99}\d)(?=[^\s\"',;]{0,99}[A-Za-z])[A-Za-z0-9/+_=.~-]{12,}",
    re.IGNORECASE,
)
_EMAIL = re.compile(  # bounded, as in RFC 5321: a long text must not take quadratic time
    r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"
)
_OWN_HOST = re.compile(  # in an address: a name without a dot, of a home network, a private number
    r"(?:(?<=http://)|(?<=https://)|(?<=tcp://))(?!localhost\b)(?:[a-z0-9-]+(?:\.(?:local|lan|home|internal|corp))?(?![\w.-])"
    r"|(?:[a-z0-9-]+\.)+(?:local|lan|home|internal|corp)\b"
    r"|(?:10\.|192\.168\.|172\.(?:1[6-9]|2\d|3[01])\.)[0-9.]+)",
    re.IGNORECASE,
)
_LONG_WORD = re.compile(r"(?<![A-Za-z0-9/+])[A-Za-z0-9/+]{28,}={0,2}(?![A-Za-z0-9/+])")
_SHORTEST_SECRET = 6  # a variable holding "1" or "true" is no secret, and would eat the text
_NO_PERSON = {"", "root", "user", "nobody", "jovyan", "ubuntu", "runner", "admin"}
_HOMES = re.compile(r"(?<![\w.~-])(/home|/Users)/[^/\s:\"']+")


def redacted(value: Any, *, public: bool = False) -> Any:
    """Return ``value`` with everything private replaced; the input is not changed.

    Walks mappings, lists, tuples and sets (the last three become lists); paths become strings;
    other values pass as they are. The home folder becomes ``~``, the host name ``<host>``, the user
    name in a path ``user``, and keys, tokens and passwords ``<redacted>``: values of environment
    variables whose name ends in _KEY, _TOKEN, _SECRET or PASSWORD, values under keys such as
    ``api_key``, and text that has the shape of a known kind of key.

    Args:
        value: Plain data.
        public: For what may be published, as receipts are: also e-mail addresses (``<e-mail>``),
            private hosts in addresses (``<host>``) and values assigned to a secret's name. Code
            and a model's own words keep theirs.
    """
    if isinstance(value, (str, PurePath)):
        return _text(str(value), public=public)
    if isinstance(value, Mapping):
        return {
            redacted(name, public=public) if isinstance(name, str) else name: _named(
                name, item, public=public
            )
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redacted(item, public=public) for item in value]
    return value


def _named(name: Any, item: Any, *, public: bool) -> Any:
    secret = isinstance(name, str) and isinstance(item, str) and _SECRET_FIELD.search(name)
    return HIDDEN if secret and item else redacted(item, public=public)


def _text(text: str, *, public: bool) -> str:
    for secret in _environment_secrets():
        text = text.replace(secret, HIDDEN)
    for shape in _SECRET_SHAPES:
        text = shape.sub(HIDDEN, text)
    if public:
        text = _ASSIGNED.sub(rf"\g<name>{HIDDEN}", text)
        text = _OWN_HOST.sub("<host>", _EMAIL.sub("<e-mail>", text))
    return _host(_user(_home(text)))


def suspicions(value: Any, *, where: str = "") -> list[str]:
    """Return where plain data still looks private, and as what; the text itself is not told.

    Stricter than ``redacted``: also long words in which letters and digits mix as they do in keys.
    A false alarm costs a look, a miss costs a key.
    """
    if isinstance(value, Mapping):
        found = []
        for name, item in value.items():
            inner = f"{where}.{name}" if where else str(name)
            hidden = item in (None, "", HIDDEN) or isinstance(item, bool)
            if isinstance(name, str) and _SECRET_FIELD.search(name) and not hidden:
                found.append(f"{inner}: a field for a secret")
            found += suspicions(str(name), where=f"the name {where}.*")
            found += suspicions(item, where=inner)
        return found
    if isinstance(value, (list, tuple, set, frozenset)):
        return [s for n, item in enumerate(value) for s in suspicions(item, where=f"{where}[{n}]")]
    if not isinstance(value, str):
        return []
    kinds = []
    if _text(value, public=True) != value:
        kinds.append("a key, a home path, a host, a user or an address")
    if any(_is_random(word) for word in _LONG_WORD.findall(value)):
        kinds.append("a long random word")
    return [f"{where or 'the text'}: {kind}" for kind in kinds]


def _is_random(word: str) -> bool:
    """Return whether letters of both cases and digits mix, as in a key; a hex digest has one."""
    digits = sum(character.isdigit() for character in word)
    return digits >= 3 and word.lower() != word and word.upper() != word and word.count("/") < 4


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
