"""Speak HTTP with a model server: keys stay here, waits are bounded, connections serve again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import selectors
import threading
import time
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

from workbench.engines.http_exchange import Exchange
from workbench.engines.http_route import Route
from workbench.errors import EngineError, InputError

_IDLE_SECONDS = 3.0  # servers close idle connections after 5 and more


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """How long a server may take.

    Attributes:
        connect: Seconds to connect.
        first: Seconds to the first token: a server may queue, load and read a long prompt.
        silence: Seconds of silence within a reply; a server's pings count as signs of life.
        retries: Times to ask again where a server did not accept the request: it was not reached,
            or said 429 or 503.
    """

    connect: float = 10.0
    first: float = 600.0
    silence: float = 120.0
    retries: int = 2


class Key:
    """A key for a service; its value shows nowhere.

    Attributes:
        variable: Environment variable it comes from.
    """

    __slots__ = ("_value", "variable")

    def __init__(self, value: str, *, variable: str | None = None) -> None:
        if not value.isascii() or not value.isprintable() or " " in value:
            named = f"The key in {variable}" if variable else "The key"
            raise InputError(f"{named} holds a character that no key has.", hint="Set it again.")
        self._value, self.variable = value, variable

    def header(self) -> str:
        """Return the value of the ``Authorization`` header."""
        return f"Bearer {self._value}"

    def hidden_in(self, text: str) -> str:
        """Return the text without the key: servers repeat what they refuse."""
        return text.replace(self._value, "<key>")

    def __repr__(self) -> str:
        return f"<Key from {self.variable}>" if self.variable else "<Key>"

    def __reduce__(self) -> Any:
        raise TypeError("A key is neither pickled nor copied.")


class Http:
    """Asks one server; safe for several threads.

    Args:
        url: Base URL, as ``http://127.0.0.1:8000/v1``.
        key: Sent to this host only, never to one it redirects to.
        waits: How long it may take.
    """

    def __init__(self, url: str, *, key: Key | None = None, waits: Waits | None = None) -> None:
        self.url, self.key, self.waits = url.rstrip("/"), key, waits or Waits()
        split = urlsplit(self.url)
        self.root = f"{split.scheme}://{split.netloc}"
        if split.path not in ("", "/v1"):
            self.root += split.path.removesuffix("/v1")
        self._idle: list[tuple[float, Route, HTTPConnection]] = []
        self._lock = threading.Lock()

    def exchange(
        self, method: str, path: str, body: Any = None, *, at_root: bool = False
    ) -> Exchange:
        """Return a request that is not sent yet; ``Exchange.start`` sends it.

        Args:
            method: ``GET`` or ``POST``.
            path: Below the base URL, as ``/models``.
            body: Sent as JSON, or None.
            at_root: Below the server's root instead, as ``/version``.
        """
        return Exchange(self, method, (self.root if at_root else self.url) + path, body)

    def json(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        at_root: bool = False,
        seconds: float | None = None,
    ) -> Any:
        """Return the JSON of an answer.

        Args:
            method: As ``exchange``.
            path: As ``exchange``.
            body: As ``exchange``.
            at_root: As ``exchange``.
            seconds: Most seconds without an answer; default is ``waits.first``.

        Raises:
            WorkbenchError: The server refused, is not reached, or answered no JSON.
        """
        with contextlib.closing(self.exchange(method, path, body, at_root=at_root)) as exchange:
            exchange.start(seconds=seconds)
            text = exchange.text()
        try:
            return json.loads(text)
        except ValueError:
            raise EngineError(
                f"{exchange.url} answered no JSON but {exchange.kind or 'something else'}.",
                hint="Is the URL right? Most end in /v1.",
            ) from None

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, _, connection in idle:
            connection.close()

    def take(self, route: Route) -> HTTPConnection | None:
        """Return an idle connection that is still alive, or None."""
        with self._lock:
            idle, self._idle = self._idle, []
            found = None
            for since, there, connection in idle:
                usable = time.monotonic() - since < _IDLE_SECONDS and _is_quiet(connection)
                if usable and found is None and there == route:
                    found = connection
                elif usable:
                    self._idle.append((since, there, connection))
                else:
                    connection.close()
        return found

    def give(self, route: Route, connection: HTTPConnection) -> None:
        """Keep a connection whose answer was read to its end."""
        with self._lock:
            self._idle.append((time.monotonic(), route, connection))

    def __repr__(self) -> str:
        return f"<Http {self.url}>"


def _is_quiet(connection: HTTPConnection) -> bool:
    """Whether an idle connection is open and nothing came on it."""
    if connection.sock is None:
        return False
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(connection.sock, selectors.EVENT_READ)
            return not selector.select(0)
    except (OSError, ValueError):
        return False
