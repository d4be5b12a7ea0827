"""The way to a host: directly, or through the proxy that the system names for it."""

from __future__ import annotations

import base64
import dataclasses
import functools
import http.client
import importlib.util
import ipaddress
import ssl
import urllib.request
from urllib.parse import SplitResult, unquote, urlsplit

from workbench.errors import EngineError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a connection leads.

    Attributes:
        scheme: ``http`` or ``https``.
        host: Name or number of the server.
        port: Its port.
        proxy: Host and port to go through, or None.
        login: ``Proxy-Authorization`` for it, never shown.
    """

    scheme: str
    host: str
    port: int
    proxy: tuple[str, int] | None = None
    login: str | None = dataclasses.field(default=None, repr=False)

    @property
    def proxy_header(self) -> str | None:
        """What each request tells a proxy that forwards it; a tunnel is told once."""
        return self.login if self.proxy is not None and self.scheme == "http" else None

    def connection(self, *, timeout: float) -> http.client.HTTPConnection:
        """Return a connection that is not open yet."""
        host, port = self.proxy or (self.host, self.port)
        if self.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=timeout)
        secure = http.client.HTTPSConnection(host, port, timeout=timeout, context=_trust())
        if self.proxy is not None:
            headers = {"Proxy-Authorization": self.login} if self.login else {}
            secure.set_tunnel(self.host, self.port, headers)
        return secure

    def target(self, url: str) -> str:
        """Return what the request line says: the path, or the whole address for a proxy."""
        if self.proxy is not None and self.scheme == "http":
            return url
        split = urlsplit(url)
        return (split.path or "/") + (f"?{split.query}" if split.query else "")


def route_to(url: str) -> Route:
    """Return the way to an address.

    Proxies come from the environment (``HTTPS_PROXY``, ``NO_PROXY`` ...) or from the system; this
    machine itself is never reached through one.

    Raises:
        EngineError: The proxy is of a kind that is not spoken here.
    """
    split = urlsplit(url)
    host, port = split.hostname or "", split.port or _port(split.scheme)
    proxy = None if is_this_machine(host) else _proxy(split)
    if proxy is None:
        return Route(scheme=split.scheme, host=host, port=port)
    login = None
    if proxy.username:
        pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        login = f"Basic {base64.b64encode(pair.encode()).decode('ascii')}"
    there = (proxy.hostname or "", proxy.port or 80)
    return Route(scheme=split.scheme, host=host, port=port, proxy=there, login=login)


def is_this_machine(host: str) -> bool:
    """Return whether a host name or number means this machine."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        number = ipaddress.ip_address(name)
    except ValueError:
        return False
    return number.is_loopback or number.is_unspecified


def _proxy(split: SplitResult) -> SplitResult | None:
    host = split.hostname or ""
    named = urllib.request.getproxies()
    given = named.get(split.scheme) or named.get("all")
    if not given or urllib.request.proxy_bypass(f"{host}:{split.port}" if split.port else host):
        return None
    proxy = urlsplit(given if "://" in given else f"http://{given}")
    if proxy.scheme != "http":
        raise EngineError(
            f"The proxy for {host} is of the kind {proxy.scheme}://, which is not spoken here.",
            hint=f"Name an http:// proxy, or put {host} into NO_PROXY.",
        )
    return proxy


def _port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


@functools.cache
def _trust() -> ssl.SSLContext:
    """Return what certificates are checked against: the system's, else certifi's."""
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"] and importlib.util.find_spec("certifi"):
        import certifi

        context.load_verify_locations(certifi.where())
    return context
