"""Asks a node's Patroni whether the node leads: a second opinion on who the primary is.

See https://patroni.readthedocs.io/en/latest/rest_api.html. Invariant: no answer, or one that makes no
sense, counts as if Patroni had not been asked; a probe never waits for it longer than `_SECONDS`.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import httpcore

from router.network.dial import Network
from router.network.http_client import Connections

__all__ = ["Patroni"]

_SECONDS = 0.25
# A connection that is kept would hold one of the few threads that answer Patroni's own members.
_HEADERS = ((b"connection", b"close"),)
_MOST_BYTES = 1 << 16  # there is no body
_ERRORS = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    httpcore.ConnectionNotAvailable,
    OSError,  # TimeoutError and TLS included
    ValueError,  # a host or an answer beyond understanding
)


class Patroni:
    """The REST API at `url`, such as http://10.0.0.11:8008."""

    def __init__(self, url: str, network: Network | None = None) -> None:
        self._leader = url.rstrip("/") + "/leader"
        tls = httpcore.default_ssl_context() if url.startswith("https:") else None
        self._connections = Connections(self._leader, network or Network(), tls, 0.0)

    def __repr__(self) -> str:
        return f"<Patroni {self._leader}>"

    async def leads(self) -> bool | None:
        """Whether the node holds the leader's lock; None if Patroni does not say."""
        try:
            async with asyncio.timeout(_SECONDS):
                response, _ = await self._connections.request("HEAD", _HEADERS, b"", _MOST_BYTES)
        except _ERRORS:
            return None
        if response.status == HTTPStatus.OK:
            return True
        return False if response.status == HTTPStatus.SERVICE_UNAVAILABLE else None

    async def close(self) -> None:
        await self._connections.close()
