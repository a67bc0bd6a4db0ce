"""Asks a node's Patroni whether the node leads: a second opinion on who the primary is.

See https://patroni.readthedocs.io/en/latest/rest_api.html. Invariant: no answer, or one that makes no
sense, counts as if Patroni had not been asked; a probe never waits for it longer than `_SECONDS`.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import httpcore

from router.network.dial import Network
from router.network.http_client import NetworkBackend

__all__ = ["Patroni"]

_SECONDS = 0.25
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
        # A connection that is kept would hold one of the few threads that answer Patroni's own members.
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=1,
            max_keepalive_connections=0,
            network_backend=NetworkBackend(network or Network()),
        )

    def __repr__(self) -> str:
        return f"<Patroni {self._leader}>"

    async def leads(self) -> bool | None:
        """Whether the node holds the leader's lock; None if Patroni does not say."""
        try:
            async with asyncio.timeout(_SECONDS):
                response = await self._pool.request("HEAD", self._leader)
        except _ERRORS:
            return None
        if response.status == HTTPStatus.OK:
            return True
        return False if response.status == HTTPStatus.SERVICE_UNAVAILABLE else None

    async def close(self) -> None:
        await self._pool.aclose()
