"""One request to a model server and its answer, which ends at once when it is closed."""

from __future__ import annotations

import contextlib
import email.utils
import json
import random
import socket
import threading
import time
from http.client import HTTPConnection, HTTPException, HTTPResponse, IncompleteRead
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from workbench.engines.http_errors import broken, not_connected, refusal
from workbench.engines.http_route import Route, route_to
from workbench.errors import EngineError

if TYPE_CHECKING:
    from workbench.engines.http import Http

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_MOST_WAIT_SECONDS = 30.0
_MOST_TEXT_BYTES = 256 * 1024 * 1024
_DRAIN_SECONDS = 0.05
_CHUNK_BYTES = 65536


class Exchange:
    """One request and its answer; ``close`` from any thread ends it at once.

    Attributes:
        url: Where it goes.
        status: HTTP status of the answer, 0 before it.
        kind: Content type of the answer.
    """

    def __init__(self, http: Http, method: str, url: str, body: Any) -> None:
        self._http, self._method, self.url = http, method, url
        self._body = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._connection: HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._response: HTTPResponse | None = None
        self._route: Route | None = None
        self.status, self.kind = 0, ""

    @property
    def ended(self) -> bool:
        """Whether ``close`` was called."""
        return self._ended.is_set()

    def start(self, *, seconds: float | None = None) -> None:
        """Send the request and wait for the head of the answer.

        Args:
            seconds: Most seconds without an answer; default is ``waits.first``.

        Raises:
            WorkbenchError: The server refused, is not reached, or hung up.
        """
        waits = self._http.waits
        for attempt in range(waits.retries + 1):
            last = attempt == waits.retries
            try:
                self._send_and_follow(waits.first if seconds is None else seconds)
            except _NotConnected as failure:
                if last or failure.final or self.ended:
                    raise failure.error from None
                self._ended.wait(_backoff(attempt))
                continue
            if self.status in (429, 503) and not last:
                delay = self._retry_after()
                delay = _backoff(attempt) if delay is None else delay
                if delay <= _MOST_WAIT_SECONDS and not self._ended.wait(delay):
                    self._drop()
                    continue
            break
        if self.status >= 400:
            self._refuse()

    def wait_at_most(self, seconds: float) -> None:
        """Let the next parts of the answer take this many seconds each."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.settimeout(seconds)

    def part(self) -> bytes:
        """Return the next bytes of the answer as they come, b"" at its end or after ``close``.

        Raises:
            EngineError: The server hung up in the middle, or was silent for too long.
        """
        response = self._response
        if response is None or self.ended:
            return b""
        try:
            data = response.read1(_CHUNK_BYTES)
        except (OSError, HTTPException, ValueError, AttributeError) as error:
            if self._ended.is_set():
                return b""
            waited = self._socket.gettimeout() if self._socket else None
            raise broken(error, self.url, waited) from None
        if self._ended.is_set():
            return b""
        if not data and response.length:
            raise broken(IncompleteRead(b"", response.length), self.url, None)
        return data

    def text(self) -> str:
        """Return the whole answer as text.

        Raises:
            EngineError: As ``part``, or it is far too long.
        """
        parts, size = [], 0
        while part := self.part():
            parts.append(part)
            size += len(part)
            if size > _MOST_TEXT_BYTES:
                raise EngineError(f"{self.url} answered more than {_MOST_TEXT_BYTES / 1e6:.0f} MB.")
        text = b"".join(parts).decode("utf-8", "replace")
        self._keep()
        return text

    def drain(self) -> None:
        """Read the end of an answer that has said all, so that the connection serves again."""
        if self._response is None or self.ended:
            return
        self.wait_at_most(_DRAIN_SECONDS)
        with contextlib.suppress(OSError, HTTPException, ValueError, AttributeError):
            if not self._response.read1(_CHUNK_BYTES):
                self._keep()

    def close(self) -> None:
        """End the exchange: the server sees the connection close; safe to call twice."""
        self._ended.set()
        self._drop()

    # Sending

    def _send_and_follow(self, seconds: float) -> None:
        url, method, body = self.url, self._method, self._body
        home = urlsplit(url)
        for _ in range(_MOST_REDIRECTS):
            there = urlsplit(url)
            own = (there.scheme, there.netloc) == (home.scheme, home.netloc)
            self._send(method, url, body, seconds, with_key=own)
            if self.status not in _REDIRECTS:
                return
            target = urljoin(url, self._header("Location") or "")
            if urlsplit(target).scheme not in ("http", "https") or target == url:
                raise EngineError(f"{url} redirects to no address.")
            if there.scheme == "https" and urlsplit(target).scheme == "http":
                raise EngineError(f"{url} redirects to {target}, which is not encrypted.")
            if method == "POST" and self.status in (301, 302, 303):
                raise EngineError(f"{url} has moved to {target}.", hint="Give that address.")
            self._drop()
            url = target
        raise EngineError(f"{self.url} redirects more than {_MOST_REDIRECTS} times.")

    def _send(
        self, method: str, url: str, body: bytes | None, seconds: float, *, with_key: bool
    ) -> None:
        waits, route = self._http.waits, route_to(url)
        connection = self._http.take(route)
        if connection is None:
            connection = route.connection(timeout=waits.connect)
            try:
                connection.connect()
            except (OSError, HTTPException, ValueError) as error:
                connection.close()
                raise _NotConnected(*not_connected(error, url, route, waits.connect)) from None
        with self._lock:
            self._connection, self._socket = connection, connection.sock
            self._route = route
        if self.ended:
            self._drop()
            raise EngineError(f"The request to {url} was ended.")
        self.wait_at_most(seconds)
        try:
            self._put(connection, method, route.target(url), body, with_key=with_key)
            self._response = connection.getresponse()
        except (OSError, HTTPException, ValueError, AttributeError) as error:
            self._drop()
            raise broken(error, url, seconds) from None
        self.status = self._response.status
        self.kind = (self._header("Content-Type") or "").partition(";")[0].strip().lower()

    def _put(
        self,
        connection: HTTPConnection,
        method: str,
        target: str,
        body: bytes | None,
        *,
        with_key: bool,
    ) -> None:
        connection.putrequest(method, target)
        connection.putheader("Accept", "application/json, text/event-stream")
        connection.putheader("User-Agent", "llm-workbench")
        if self._route is not None and self._route.proxy_header is not None:
            connection.putheader("Proxy-Authorization", self._route.proxy_header)
        if not _keeps(self._route):
            connection.putheader("Connection", "close")
        if with_key and self._http.key is not None:
            connection.putheader("Authorization", self._http.key.header())
        if body is not None:
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)

    # Answers

    def _refuse(self) -> None:
        text = ""
        with contextlib.suppress(EngineError):
            text = self.text()
        key = self._http.key
        if key is not None:
            text = key.hidden_in(text)
        self.close()
        raise refusal(
            self.status,
            text,
            url=self.url,
            key_variable=key.variable if key else None,
            has_key=key is not None,
            retry_after=self._retry_after(),
        )

    def _header(self, name: str) -> str | None:
        return self._response.getheader(name) if self._response is not None else None

    def _retry_after(self) -> float | None:
        """Return the seconds that the server asks to wait, given in seconds or as a date."""
        given = self._header("Retry-After")
        if given is None:
            return None
        try:
            return max(0.0, float(given))
        except ValueError:
            pass
        try:
            return max(0.0, email.utils.parsedate_to_datetime(given).timestamp() - time.time())
        except ValueError:
            return None

    def _keep(self) -> None:
        """Hand the connection back when its answer was read to the end."""
        with self._lock:
            connection, response = self._connection, self._response
            if connection is None or response is None or self._route is None or self.ended:
                return
            whole = response.isclosed() or response.length == 0
            if not whole or response.will_close or connection.sock is None:
                return
            if not _keeps(self._route):
                return
            self._connection = self._socket = None
            self._http.give(self._route, connection)

    def _drop(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
            sock, self._socket = self._socket, None
            response = self._response
        if sock is not None:
            with contextlib.suppress(OSError):  # wakes a thread that reads from it
                sock.shutdown(socket.SHUT_RDWR)
        if connection is not None:
            connection.close()
        if response is not None:
            with contextlib.suppress(OSError, ValueError):
                response.close()


class _NotConnected(Exception):
    """The server was not reached, so that asking again repeats nothing.

    Attributes:
        error: What to tell.
        final: Whether asking again is of no use.
    """

    def __init__(self, error: EngineError, final: bool) -> None:
        super().__init__(str(error))
        self.error, self.final = error, final


def _keeps(route: Route | None) -> bool:
    """Whether connections on this route serve again: they are dear where they are encrypted.

    Unencrypted ones are near, and not every local server keeps its word to keep them open.
    """
    return route is not None and route.scheme == "https"


def _backoff(attempt: int) -> float:
    """Return the seconds to wait before asking again, a little different for each asker."""
    return 0.5 * 2.0**attempt * random.uniform(0.75, 1.25)
