"""Say what went wrong with a server: not reached, hung up, silent, or what it refused and why."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from workbench.engines.http_route import Route
from workbench.errors import (
    ContextLengthError,
    EngineError,
    InputError,
    NotFoundError,
    UnsupportedError,
    WorkbenchError,
)
from workbench.redact import redacted

_SHOWN = 600  # characters of what a server says
_TOO_LONG = re.compile(
    r"context[ _]?(?:length|window|size)|maximum context|exceed_context|max_model_len"
    r"|maximum (?:model|input|prompt|sequence) length|(?:prompt|input) is too (?:long|large)"
    r"|too many (?:input )?tokens|input (?:token count|length) .{0,40}exceed",
    re.IGNORECASE,
)
_TOO_LONG_CODE = re.compile(r'"(?:code|type)":\s*"[a-z_]*(?:context_length|exceed_context)')


def not_connected(
    error: Exception, url: str, route: Route, seconds: float
) -> tuple[EngineError, bool]:
    """Return the error of a connection that never was, and whether asking again is of no use."""
    there = f"{route.proxy[0]}:{route.proxy[1]}" if route.proxy else _address(url)
    through = "proxy " if route.proxy else ""
    if isinstance(error, ConnectionRefusedError):
        said = f"No server answers at {through}{there}: the connection is refused."
        return EngineError(said, hint="Is the server running, and is the port right?"), True
    if isinstance(error, socket.gaierror):
        host = route.proxy[0] if route.proxy else route.host
        final = error.errno != socket.EAI_AGAIN
        said = f"The host {host} is not known ({error.strerror})."
        return EngineError(said, hint="Check the URL, and the network."), final
    if isinstance(error, ssl.SSLCertVerificationError):
        said = f"The certificate of {there} is not trusted: {error.verify_message}."
        return EngineError(
            said, hint="SSL_CERT_FILE names a file of further certificates to trust."
        ), True
    if isinstance(error, ssl.SSLError):
        said = f"{there} does not speak TLS ({error.reason or error})."
        return EngineError(said, hint="A local server is often http://, not https://."), True
    if isinstance(error, TimeoutError):
        said = f"{through}{there} did not answer within {seconds:g} seconds."
        return EngineError(said.capitalize() if through else said, hint="Is the host up?"), False
    reason = str(error) or type(error).__name__
    return EngineError(f"{through}{there} cannot be reached: {reason}."), False


def broken(error: Exception, url: str, waited: float | None) -> EngineError:
    """Return the error of an exchange that broke off after the request was sent."""
    there = _address(url)
    if isinstance(error, TimeoutError):
        said = f"{there} was silent for {waited:g} seconds." if waited else f"{there} was silent."
        return EngineError(said, hint="It may be overloaded; first= and silence= wait longer.")
    if isinstance(error, http.client.BadStatusLine) and not isinstance(
        error, http.client.RemoteDisconnected
    ):
        return EngineError(
            f"{there} does not speak HTTP: it said {str(error)[:80]}.",
            hint="Is the port right? A server with TLS needs https://.",
        )
    if isinstance(error, http.client.RemoteDisconnected):
        return EngineError(
            f"{there} hung up without an answer.", hint="Its log may say why: did it crash?"
        )
    reason = str(error) or type(error).__name__
    return EngineError(
        f"{there} hung up in the middle ({reason}).", hint="Its log may say why: did it crash?"
    )


def refusal(
    status: int,
    text: str,
    *,
    url: str,
    key_variable: str | None = None,
    has_key: bool = False,
    retry_after: float | None = None,
) -> WorkbenchError:
    """Return the error of an answer with a status of 400 and above.

    Args:
        status: HTTP status.
        text: What the server said; the key that was sent is taken out already.
        url: What was asked.
        key_variable: Environment variable of the key that was sent.
        has_key: Whether a key was sent.
        retry_after: Seconds after which the server wants to be asked again.
    """
    there, said = _address(url), said_by_server(text)
    because = f": {said}" if said else "."
    if status in (401, 403):
        return _no_entry(status, there, said, key_variable, has_key)
    if status in (400, 413, 422, 500) and (_TOO_LONG.search(said) or _TOO_LONG_CODE.search(text)):
        return ContextLengthError(
            f"The prompt does not fit: {said}", hint="Shorten it, or serve a larger context."
        )
    if status == 404:
        return NotFoundError(f"{url} is not there{because}", hint="Is the URL right?")
    if status in (405, 501):
        return UnsupportedError(f"{url} cannot do this (HTTP {status}){because}")
    if status == 413:
        return InputError(f"The request is too large for {there} (HTTP 413){because}")
    if status == 429:
        wait = f" It asks to wait {retry_after:.0f} seconds." if retry_after else ""
        return EngineError(
            f"{there} takes no more requests now (HTTP 429){because}{wait}",
            hint="Ask later, or fewer at a time.",
        )
    if status == 503:
        return EngineError(
            f"{there} is not ready (HTTP 503){because}", hint="It may still load: ask again."
        )
    if status < 500:
        return InputError(f"{there} refused the request (HTTP {status}){because}")
    return EngineError(f"{there} failed (HTTP {status}){because}", hint="Its log may say why.")


def _no_entry(
    status: int, there: str, said: str, variable: str | None, has_key: bool
) -> WorkbenchError:
    because = f": {said}" if said else "."
    if not has_key:
        return EngineError(
            f"{there} wants a key (HTTP {status}){because}",
            hint="Put it into an environment variable and name that: key_variable='...'.",
        )
    named = f"the key in {variable}" if variable else "the key"
    return EngineError(
        f"{there} does not accept {named} (HTTP {status}){because}",
        hint=f"Check {variable or 'it'}, and what the account may use.",
    )


def said_by_server(text: str) -> str:
    """Return in one line what a server said: the message of its JSON, without keys and markup."""
    try:
        found = _message(json.loads(text))
    except ValueError:
        found = re.sub(r"<[^>]{0,200}>", " ", text)
    line = " ".join(str(redacted(found)).split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."


def _message(value: Any) -> str:
    """Return the message in the error of OpenAI's, FastAPI's and others' forms."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):  # FastAPI's list of mistakes, Google's list of errors
        return " ".join(_message(each) for each in value[:3])
    if not isinstance(value, dict):
        return str(value)
    for name in ("error", "message", "msg", "detail", "reason"):
        if value.get(name):
            said = _message(value[name])
            where = value.get("loc")
            return f"{'.'.join(map(str, where))}: {said}" if isinstance(where, list) else said
    return json.dumps(value, ensure_ascii=False)


def _address(url: str) -> str:
    split = urlsplit(url)
    return f"{split.scheme}://{split.netloc}"
