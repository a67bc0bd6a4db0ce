"""Which pages of other origins may call the router from a browser: the Fetch standard's CORS protocol.

Off unless origins are set. Every answer to a page that may call it has the headers, errors too: without them
the page could not read why. Keys travel in headers that the page sets itself, so credentials, which browsers
send by themselves, are never allowed.
"""

from __future__ import annotations

from collections.abc import Mapping

from router.http.message import Reply
from router.settings import origins_of

__all__ = ["Cors"]

_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"
_REQUEST_HEADERS = b"Authorization, Content-Type, X-API-Key, X-Request-ID, traceparent"
_EXPOSED = b"X-Request-ID, Server-Timing, Retry-After, X-Stale-Shard, X-Next-Cursor, Allow, traceparent"
_MAX_AGE = b"600"

_Headers = list[tuple[bytes, bytes]]


class Cors:
    """What the setting `cors_origins` allows."""

    def __init__(self, setting: str) -> None:
        """
        Raises:
            ValueError: no list of origins.
        """
        self._origins = frozenset(origin.encode() for origin in origins_of(setting))
        self._any = b"*" in self._origins

    def __repr__(self) -> str:
        return f"<Cors {sorted(self._origins)}>"

    def headers(self, request: Mapping[bytes, bytes]) -> _Headers:
        """What every answer to `request` has besides its own headers."""
        if not self._origins:
            return []
        # Caches must not give the answer for one origin to another, nor to one that may not read it.
        vary: _Headers = [] if self._any else [(b"vary", b"origin")]
        if not self._allows(request):
            return vary
        origin = b"*" if self._any else request[b"origin"]
        return [
            *vary,
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _EXPOSED),
        ]

    def preflight_method(self, method: str, request: Mapping[bytes, bytes]) -> str | None:
        """The method that a preflight request announces; None if this request is none."""
        wanted = request.get(b"access-control-request-method")
        if method != "OPTIONS" or wanted is None or not self._allows(request):
            return None
        return wanted.decode("latin-1")

    def preflight_reply(self) -> Reply:
        """The answer to a preflight request: what the page may send."""
        return Reply(
            b"",
            content_type=b"text/plain",
            headers=[
                (b"access-control-allow-methods", _METHODS),
                (b"access-control-allow-headers", _REQUEST_HEADERS),
                (b"access-control-max-age", _MAX_AGE),
            ],
        )

    def _allows(self, request: Mapping[bytes, bytes]) -> bool:
        return b"origin" in request and (self._any or request[b"origin"] in self._origins)
