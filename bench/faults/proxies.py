"""A way to each node that can be made slow, cut or closed (as Toxiproxy does), without touching the node.

Runs in a thread of its own, so that a load generator that is busy does not delay what passes.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import cast

import uvloop

from bench.errors import BenchError
from bench.faults.network import Network

__all__ = ["Proxies", "open_proxies"]

_HOST = "127.0.0.1"
_SECONDS = 10.0


class _Way:
    """What happens to the bytes of one node."""

    def __init__(self, port: int, address: tuple[str, int], passing: Callable[[bytes], bytes]) -> None:
        self.target = port
        self.host, self.port = address
        self.passing = passing
        self.delay = 0.0
        self.cut = False
        self.mute = False
        self.server: asyncio.Server | None = None
        self.pipes: set[_Pipe] = set()


class _Pipe(asyncio.Protocol):
    """One end of a connection; what it receives goes out of `other`, after the way's delay."""

    def __init__(self, way: _Way, other: _Pipe | None = None) -> None:
        self.way = way
        self.other = other
        self._of_node = other is not None
        self.transport: asyncio.Transport | None = None
        self.forgotten = False
        self.doomed = False
        self._early: list[bytes] = []
        self._late: deque[tuple[float, bytes]] = deque()
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.way.pipes.add(self)
        if self.other is None:
            self.other = _Pipe(self.way, self)
            task = self._loop.create_task(self._connect(self.other))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        for data in self._early:
            self.transport.write(data)
        self._early.clear()

    def data_received(self, data: bytes) -> None:
        if self.doomed and self.transport is not None:
            self.transport.abort()
            return
        if self._silent or (self.way.mute and self._of_node):
            return
        data = self.way.passing(data)
        if self.way.delay or self._late:
            self._late.append((self._loop.time() + self.way.delay, data))
            if len(self._late) == 1:
                self._loop.call_later(self.way.delay, self._release)
        else:
            self._pass(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.way.pipes.discard(self)
        if self.other is not None and self.other.transport is not None and not self._silent:
            self.other.transport.close()

    @property
    def _silent(self) -> bool:
        return self.way.cut or self.forgotten

    def send(self, data: bytes) -> None:
        if self.transport is None:
            self._early.append(data)
        elif not self.transport.is_closing():
            self.transport.write(data)

    async def _connect(self, other: _Pipe) -> None:
        try:
            await self._loop.create_connection(lambda: other, _HOST, self.way.target)
        except OSError:
            if self.transport is not None:
                self.transport.abort()

    def _release(self) -> None:
        now = self._loop.time()
        while self._late and self._late[0][0] <= now:
            self._pass(self._late.popleft()[1])
        if self._late:
            self._loop.call_later(self._late[0][0] - now, self._release)

    def _pass(self, data: bytes) -> None:
        if self.other is not None and not self.way.cut:
            self.other.send(data)


class Proxies:
    """One way per node; made by `open_proxies`, and changed by any thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        targets: Mapping[str, int],
        network: Network | None,
        addresses: Mapping[str, tuple[str, int]],
        passing: Callable[[str, bytes], bytes],
    ) -> None:
        self._loop = loop
        self._network = network
        self._ways = {
            name: _Way(port, addresses.get(name, (_HOST, 0)), partial(passing, name))
            for name, port in targets.items()
        }

    def __repr__(self) -> str:
        return f"<Proxies {self.addresses}>"

    @property
    def addresses(self) -> dict[str, tuple[str, int]]:
        """Host and port at which each node is reached."""
        return {name: (way.host, way.port) for name, way in self._ways.items()}

    def delay(self, name: str, seconds: float) -> None:
        """What passes takes so much longer, each way half of it."""
        self._ways[name].delay = seconds / 2

    def cut(self, *names: str) -> None:
        """Nothing passes, and nobody is told."""
        for name in names:
            if self._network is not None:
                self._network.cut(name)
            self._ways[name].cut = True

    def forget(self, name: str) -> None:
        """Nothing passes over present connections, as when a firewall has lost its table of them."""
        for pipe in list(self._ways[name].pipes):
            pipe.forgotten = True

    def doom(self, name: str) -> None:
        """Present connections end when something is sent over them, as if a firewall had restarted."""
        for pipe in list(self._ways[name].pipes):
            pipe.doomed = True

    def mend(self, *names: str) -> None:
        """What was cut passes again over new connections; present ones stay silent, and nobody is told."""
        for name in names:
            if self._network is not None:
                self._network.mend(name)
            self.forget(name)
            self._ways[name].cut = False

    def mute(self, name: str) -> None:
        """What the node is told reaches it, and what it answers is lost."""
        self._ways[name].mute = True

    def refuse(self, *names: str) -> None:
        """Connections end, and no new one is taken."""
        self._do(self._close(self._ways[name]) for name in names)

    def restore(self, *names: str) -> None:
        """Everything passes again; connections that were cut are lost."""
        for name in names:
            if self._network is not None and self._ways[name].cut:
                self._network.mend(name)
        self._do(self._restore(name, self._ways[name]) for name in names)

    def _do(self, steps: Iterable[Coroutine[None, None, None]]) -> None:
        async def work() -> None:
            await asyncio.gather(*steps)

        asyncio.run_coroutine_threadsafe(work(), self._loop).result(_SECONDS)

    async def open(self) -> None:
        for name, way in self._ways.items():
            await self._listen(name, way)

    async def close(self) -> None:
        for way in self._ways.values():
            await self._close(way)

    async def _listen(self, name: str, way: _Way) -> None:
        if self._network is None:
            way.server = await self._loop.create_server(lambda: _Pipe(way), way.host, way.port)
        else:
            listener = self._network.listen(name, way.port)
            way.server = await self._loop.create_server(lambda: _Pipe(way), sock=listener)
        way.host, way.port = way.server.sockets[0].getsockname()

    async def _close(self, way: _Way) -> None:
        server, way.server = way.server, None
        self._abort(way)
        if server is not None:
            server.close()
            await server.wait_closed()

    async def _restore(self, name: str, way: _Way) -> None:
        way.delay = 0.0
        if way.cut or way.mute:
            way.cut = way.mute = False
            self._abort(way)
        if way.server is None:
            await self._listen(name, way)

    def _abort(self, way: _Way) -> None:
        for pipe in list(way.pipes):
            if pipe.transport is not None:
                pipe.transport.abort()


@contextmanager
def open_proxies(
    targets: Mapping[str, int],
    network: Network | None = None,
    *,
    addresses: Mapping[str, tuple[str, int]] | None = None,
    passing: Callable[[str, bytes], bytes] = lambda _, data: data,
) -> Iterator[Proxies]:
    """Ways to the ports of `targets`, while the block runs; over links of `network`, if there is one.

    `addresses` are where they listen, by default on any port. What passes the way of a name, in either
    direction, becomes what `passing` makes of it.
    """
    loop = uvloop.new_event_loop()
    proxies = Proxies(loop, targets, network, addresses or {}, passing)
    ready = threading.Event()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(proxies.open())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(proxies.close())
        loop.close()

    thread = threading.Thread(target=run, name="proxies", daemon=True)
    thread.start()
    try:
        if not ready.wait(_SECONDS):
            raise BenchError(f"the proxies did not start within {_SECONDS:g} s")
        yield proxies
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_SECONDS)
