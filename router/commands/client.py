"""JSON over HTTP for the commands that ask a running router, by the standard library alone.

Invariant: neither a slow nor an endless answer holds a command for much longer than the time it was
given, and a key goes to the host that it was meant for and to no other.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import msgspec

__all__ = ["Client", "ClientError"]

_MAX_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 16
_HEADER_TEXT = re.compile(r"[!-~]+")


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


class _AsTheyCome(urllib.request.HTTPErrorProcessor):
    """Hands out every answer, whatever its status.

    Redirections as well: to follow one would be to hand the key to whoever is named there.
    """

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


class Client:
    """One router; every call is a connection of its own."""

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
        if not (host and known):
            raise ClientError(f"{url!r} is not an address like http://127.0.0.1:8080")
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if key:
            if not _HEADER_TEXT.fullmatch(key):
                # Not shown: it is a secret nevertheless.
                raise ClientError("the API key is none: one is printable ASCII without spaces")
            self._headers["Authorization"] = f"Bearer {key}"
        # A proxy of the environment cannot reach this machine's own loopback.
        direct = [urllib.request.ProxyHandler({})] if _is_loopback(host) else []
        self._opener = urllib.request.build_opener(_AsTheyCome, *direct)

    def __repr__(self) -> str:
        return f"<Client {self._url}>"

    def call(self, method: str, path: str, body: object = None) -> bytes:
        """The body of the answer.

        Raises:
            ClientError: no answer in time, or one that says no.
        """
        data = None if body is None else msgspec.json.encode(body)
        request = urllib.request.Request(self._url + path, data, self._headers, method=method)
        end = time.monotonic() + self._timeout
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                answer = _read(response, end)
                status, reason = response.status, response.reason
        except urllib.error.URLError as exc:
            raise ClientError(f"cannot reach {self._url}: {exc.reason}") from exc
        except TimeoutError as exc:
            raise ClientError(f"{self._url} did not answer within {self._timeout:g} s") from exc
        except (OSError, http.client.HTTPException) as exc:
            raise ClientError(f"{self._url} broke off: {exc or type(exc).__name__}") from exc
        if not 200 <= status < 300:
            raise ClientError(_refusal(status, reason, answer))
        return answer


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(response: http.client.HTTPResponse, end: float) -> bytes:
    """The whole body: the socket's timeout bounds each part, and this the sum of them."""
    parts: list[bytes] = []
    size = 0
    while part := response.read1(_CHUNK_BYTES):
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
