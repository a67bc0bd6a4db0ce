"""Asks a running router, or anything else that speaks HTTP, one request after the other.

It is for commands, the demo and what benches ask beside their load. httpcore does the work, as it does for
Patroni, so that the installed package has one HTTP client.

Invariant: neither a slow nor an endless answer holds the caller for much longer than the time it gave, and
a key goes to the host that it was meant for and to no other: redirections are answers like any other.
"""

from __future__ import annotations

import ipaddress
import re
import time
from urllib.parse import unquote, urlsplit

import httpcore
import msgspec

__all__ = ["Client", "ClientError", "redacted"]

_MAX_BYTES = 256 << 20
_HEADER_TEXT = re.compile(r"[!-~]+")
_LOGIN = re.compile(r"(^[a-z]*:?//|^).*@", re.DOTALL)


class ClientError(Exception):
    """The router could not be asked, or refused; the message is for the user."""


class _Place(msgspec.Struct):
    path: str = ""
    message: str = ""


class _Problem(msgspec.Struct):
    """What we need of RFC 9457's problem, whoever sent it."""

    title: str = ""
    detail: str = ""
    errors: list[_Place] = []


class Client:
    """One router; every call is a connection of its own, so that there is nothing to close."""

    def __init__(self, url: str, key: str | None = None, timeout: float = 30.0) -> None:
        """
        Raises:
            ClientError: `url` is not an http or https address, or `key` can stand in no header.
        """
        try:
            parts = urlsplit(url)
            host, known = parts.hostname, parts.scheme in ("http", "https") and parts.port != 0
        except ValueError:
            host, known = None, False
        if not (host and known and url.isascii()):
            raise ClientError(f"{redacted(url)!r} is not an address like http://127.0.0.1:8080")
        self._url = url.rstrip("/")
        self._name = redacted(self._url)
        self._timeout = timeout
        self._headers = [("Accept", "application/json"), ("Content-Type", "application/json")]
        if key:
            if not _HEADER_TEXT.fullmatch(key):
                # Not shown: it is a secret nevertheless.
                raise ClientError("the API key is none: one is printable ASCII without spaces")
            self._headers.append(("Authorization", f"Bearer {key}"))
        try:
            proxy = _proxy(parts.scheme, host)
        except ValueError as exc:
            raise ClientError(f"the environment's proxy for {self._name} is no address: {exc}") from exc
        self._pool = httpcore.ConnectionPool(max_keepalive_connections=0, proxy=proxy)

    def __repr__(self) -> str:
        return f"<Client {self._name}>"

    def call(self, method: str, path: str, body: object = None) -> bytes:
        """The body of the answer.

        Raises:
            ClientError: no answer in time, or one that says no.
        """
        data = None if body is None else msgspec.json.encode(body)
        end = time.monotonic() + self._timeout
        timeouts = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), self._timeout)}
        try:
            with self._pool.stream(
                method, self._url + path, headers=self._headers, content=data, extensions=timeouts
            ) as response:
                answer = _read(response, end)
        except (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.ProxyError) as exc:
            raise ClientError(f"cannot reach {self._name}: {exc or 'it took too long'}") from exc
        except (TimeoutError, httpcore.TimeoutException) as exc:
            raise ClientError(f"{self._name} did not answer within {self._timeout:g} s") from exc
        except (httpcore.NetworkError, httpcore.ProtocolError) as exc:
            raise ClientError(f"{self._name} broke off: {exc or type(exc).__name__}") from exc
        except (httpcore.UnsupportedProtocol, ImportError, UnicodeError) as exc:
            # A proxy of a kind that needs more packages, or a host that no name server could know.
            raise ClientError(f"cannot reach {self._name}: {exc}") from exc
        if not 200 <= response.status < 300:
            reason = response.extensions.get("reason_phrase", b"").decode(errors="replace")
            raise ClientError(_refusal(response.status, reason, answer))
        return answer


def redacted(url: str) -> str:
    """Without what may be a password: all up to the last @, as it may hold delimiters."""
    return _LOGIN.sub(r"\1***@", url)


def _proxy(scheme: str, host: str) -> httpcore.Proxy | None:
    """The environment's for this host; none for this machine's own loopback, which it could not reach."""
    if _is_loopback(host):
        return None
    from urllib.request import getproxies, proxy_bypass  # takes as long to import as all the rest

    named = getproxies().get(scheme)
    if not named or proxy_bypass(host):
        return None
    parts = urlsplit(named if "://" in named else f"http://{named}")
    login = None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))
    return httpcore.Proxy(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", auth=login)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(response: httpcore.Response, end: float) -> bytes:
    """The whole body: the socket's timeout bounds each part, and this the sum of them."""
    parts: list[bytes] = []
    size = 0
    for part in response.iter_stream():
        parts.append(part)
        size += len(part)
        if size > _MAX_BYTES:
            raise ClientError(f"the answer is larger than {_MAX_BYTES} bytes")
        if time.monotonic() > end:
            raise TimeoutError
    return b"".join(parts)


def _refusal(status: int, reason: str, body: bytes) -> str:
    """What a problem says, line by line; the bare status if somebody else answered."""
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = _Problem()
    said = problem.detail or problem.title or reason or "no reason given"
    places = [
        f"  {place.path}: {place.message}"
        for place in problem.errors
        if place.message and f"{place.path}: {place.message}" != said
    ]
    return "\n".join([f"{status}: {said}", *places])
