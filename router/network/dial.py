"""Opens TCP connections by name, with addresses from `Names`, and sees to it that a dead one is noticed.

Invariant: a host's silent address costs `_STAGGER_SECONDS`, not the whole time for connecting, when it has
others; and a peer that acknowledges nothing, or is not there any more, is found within twice `silence`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Collection
from typing import Any

from router.network.names import Address, Names

__all__ = ["Dialer", "Network"]

# RFC 8305 gives an address 250 ms before the next one is tried as well.
_STAGGER_SECONDS = 0.25
_KEEPALIVE_PROBES = 3


class Network:
    """How this process reaches hosts: by `names`, and with connections that end after so much `silence`.

    Without `names` it remembers no address, as is right for who connects once. With `taking` a connection
    ends as well when its other end takes no data for that long: that is not for bulk loads, which a server
    may keep waiting.
    """

    def __init__(
        self, names: Names | None = None, silence: float = 15.0, *, taking: float | None = None
    ) -> None:
        self.names = Names(float("inf")) if names is None else names
        self._silence = silence
        self._taking = taking

    def __repr__(self) -> str:
        return f"<Network {self.names!r}>"

    async def dial(self, host: str, port: int) -> tuple[socket.socket, Address]:
        """A connected socket, and where it leads.

        Raises:
            OSError: no address of the host takes a connection; the caller bounds the time.
        """
        waiting = list(await self.names.addresses(host))
        if len(waiting) == 1:
            return await self.connect(waiting[0], port), waiting[0]
        attempts: dict[asyncio.Task[socket.socket], Address] = {}
        failure: OSError | None = None
        try:
            while waiting or attempts:
                if waiting:
                    address = waiting.pop(0)
                    attempts[asyncio.ensure_future(self.connect(address, port))] = address
                done, _ = await asyncio.wait(
                    attempts,
                    timeout=_STAGGER_SECONDS if waiting else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for attempt in done:
                    address = attempts.pop(attempt)
                    error = attempt.exception()
                    if error is None:
                        self.names.worked(host, address)
                        return attempt.result(), address
                    if not isinstance(error, OSError):
                        raise error
                    failure = failure or error
        finally:
            await _give_up(attempts)
        assert failure is not None, "a name that was found has an address"
        raise failure

    async def connect(self, address: Address, port: int) -> socket.socket:
        """
        Raises:
            OSError
        """
        sock = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            watch(sock, self._silence, self._taking)
            await asyncio.get_running_loop().sock_connect(sock, address.at(port))
        except BaseException:
            sock.close()
            raise
        return sock


async def _give_up(attempts: Collection[asyncio.Task[socket.socket]]) -> None:
    for attempt in attempts:
        attempt.cancel()
    for late in await asyncio.gather(*attempts, return_exceptions=True):
        if isinstance(late, socket.socket):
            late.close()


def watch(sock: socket.socket, silence: float, taking: float | None) -> None:
    """Let the system end the connection when its other end is silent.

    An idle one is asked first after `silence` seconds, which is also what keeps it in the tables of firewalls
    and load balancers on its way. What was sent has to be acknowledged, and taken, within `taking` seconds.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = (
        ("TCP_KEEPIDLE", max(1, round(silence))),
        ("TCP_KEEPINTVL", max(1, round(silence / _KEEPALIVE_PROBES))),
        ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
        ("TCP_USER_TIMEOUT", 0 if taking is None else max(1, round(taking * 1000))),  # 0 is the system's own
    )
    for name, value in options:
        number = getattr(socket, name, None)
        if number is not None:  # not every system has all of them
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, number, value)


class Dialer:
    """What a driver takes for its event loop: it opens connections by `network`, and leaves the rest to the
    loop.

    One per connection: whatever else the driver opens for it, such as one for a cancel request, must reach
    the same server, which another address of the same name may not be. TLS compares certificates with the
    name.
    """

    def __init__(self, network: Network) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._network = network
        self._host = ""
        self._address: Address | None = None
        self._dialled: socket.socket | None = None  # for the first connection
        # What a driver calls for each statement.
        self.create_future = loop.create_future
        self.call_later = loop.call_later
        self.call_soon = loop.call_soon
        self.time = loop.time

    def __repr__(self) -> str:
        return f"<Dialer {self._host} at {self._address}>"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    # asyncio finds the current task by its loop.
    def __eq__(self, other: object) -> bool:
        return other is self or other is self._loop

    def __hash__(self) -> int:
        return hash(self._loop)

    @property
    def moved(self) -> bool:
        """Whether the name leads elsewhere by now."""
        return self._address is not None and self._network.names.left(self._host, self._address)

    async def dial(self, host: str, port: int) -> None:
        """Open the socket of the first connection.

        Raises:
            OSError
        """
        self._host = host
        self._dialled, self._address = await self._network.dial(host, port)

    def discard(self) -> None:
        """Close that socket, if no connection has taken it."""
        if self._dialled is not None:
            self._dialled.close()
            self._dialled = None

    async def create_connection(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, *, ssl: Any = None
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        """As the loop's own."""
        if self._address is None:
            await self.dial(host, port)
            assert self._address is not None
        sock, self._dialled = self._dialled, None
        if sock is None:
            sock = await self._network.connect(self._address, port)
        try:
            return await self._loop.create_connection(
                factory, sock=sock, ssl=ssl, server_hostname=host if ssl else None
            )
        except BaseException:
            sock.close()
            raise
