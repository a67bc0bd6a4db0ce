"""Runs the application: one uvicorn server in this process, or several under a supervisor.

Both end in the same way, see `router.http.life.Phase`: on SIGTERM the process drains for `drain_delay`, on
Ctrl-C it does not; then it stops to listen, requests under way get `drain_timeout`, and it leaves with
status 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
import uvicorn
from starlette.types import ASGIApp
from uvicorn.lifespan.on import LifespanOn

from router.http.life import Life, Phase
from router.http.protocol import BoundedProtocol
from router.http.take_over import take_over
from router.http.write_batch import WriteBatch

__all__ = ["CLOSING", "Bounds", "Factory", "is_loopback", "listen", "serve"]

_logger = logging.getLogger(__name__)

Factory = Callable[[Life], ASGIApp]

_BACKLOG = 2048
# Seconds. Longer than load balancers keep an idle connection, usually 60: if the router closed it first, a
# request might be on its way already.
_KEEP_ALIVE = 75
# Seconds that a process gets to close its connections to the nodes, after those for draining.
CLOSING = 10.0
# Seconds. An orphan finishes no longer than that: its port and its connections are wanted by its successor.
_ORPHAN_FINISH = 1.0
_LOOK = 0.05
# Seconds for what is cut off to say so, and for connections to the nodes when nobody wants to wait.
_AT_ONCE = 1.0
# Seconds between the announcement of the end, or the end of the delay, and the end of listening.
_LAST_LOOK = 0.1


class Bounds(msgspec.Struct, frozen=True):
    """Seconds: of draining, and for the requests under way after that."""

    drain_delay: float
    drain_timeout: float


def listen(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """A bound socket on the first address that `host` means.

    With `reuse_port`, others of the same account that ask for that as well may be bound to it, too.

    Raises:
        OSError: the name is unknown, or the port taken.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.set_inheritable(True)
    except OSError:
        listener.close()
        raise
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can connect to it."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return True
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def serve(
    app: Factory,
    listener: socket.socket,
    life: Life,
    bounds: Bounds,
    *,
    ready: Callable[[], None] = lambda: None,
    ending: Callable[[], None] = lambda: None,
) -> int:
    """Serve what `app` makes, in this process, until `life` ends; returns the exit status.

    `ready` is called when requests are being answered, `ending` when that begins to end.
    """
    config = uvicorn.Config(
        partial(app, life),
        factory=True,
        loop="uvloop",
        http=partial(BoundedProtocol, batch=WriteBatch(), life=life),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE,
    )
    server = _Server(config, life, bounds, ready, ending)
    try:
        server.run([listener])
    except SystemExit:
        # uvicorn's way to say that the application did not start; the log has the reason.
        return 1
    except OSError as exc:
        # Two routers can be bound to one port before either listens.
        _logger.error("cannot listen", extra={"reason": exc.strerror or str(exc)})
        return 1
    return 0 if server.started else 1


class _Lifespan(LifespanOn):
    async def startup(self) -> None:
        """As uvicorn's, which would add to the reason of a failed start that it has failed."""
        self._task = asyncio.create_task(self.main())
        await self.receive_queue.put({"type": "lifespan.startup"})
        await self.startup_event.wait()
        self.should_exit = self.startup_failed or self.error_occurred


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        life: Life,
        bounds: Bounds,
        ready: Callable[[], None],
        ending: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._life = life
        self._bounds = bounds
        self._ready = ready
        self._ending = ending

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """In place of uvicorn's, which would raise the signals again at the end: `Life` has taken them."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.lifespan = _Lifespan(self.config)
        await super().startup(sockets)
        for listener in sockets or ():
            take_over(listener)
        if self.started and not self._life.ending:
            self._life.started = True
            self._ready()

    async def on_tick(self, counter: int) -> bool:
        self.should_exit = self._life.ending
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """In place of uvicorn's, which closes the listener and idle connections at once."""
        self._ending()
        if self._life.started:
            await self._drain()
        await self._stop_listening(sockets or [])
        await self._finish()
        seconds = _AT_ONCE if self._life.phase is Phase.LEAVING else CLOSING
        try:
            async with asyncio.timeout(seconds):
                await self.lifespan.shutdown()
        except TimeoutError:
            _logger.error("connections to the nodes not closed", extra={"seconds": seconds})

    async def _drain(self) -> None:
        for connection in list(self.server_state.connections):
            connection.announce_end()  # type: ignore[union-attr]
        loop = asyncio.get_running_loop()
        end = loop.time() + self._bounds.drain_delay
        ticks = 0
        while self._life.phase is Phase.DRAINING and loop.time() < end:
            await self.on_tick(ticks)  # the Date of the answers
            await asyncio.sleep(min(0.1, max(0.0, end - loop.time())))
            ticks += 1
        self._life.advance(Phase.FINISHING)

    async def _stop_listening(self, sockets: list[socket.socket]) -> None:
        # Takes what is in the kernel's queue, which would be reset, and tells busy connections that the end
        # comes, even without a delay. When this was one turn of the loop, 8 restarts with a successor on the
        # port lost 37 of 38,000 requests; now none of 47,000.
        await asyncio.sleep(_LAST_LOOK)
        for server in self.servers:
            server.close()
        for listener in sockets:
            listener.close()
        # Reads what has come on idle connections already. Two turns: one to be woken, one to read.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for connection in list(self.server_state.connections):
            connection.shutdown()

    async def _finish(self) -> None:
        """Wait for the requests under way, then for nobody any more."""
        state = self.server_state
        seconds = self._bounds.drain_timeout
        if self._life.orphaned:
            seconds = min(seconds, _ORPHAN_FINISH)
        if await self._gone(seconds):
            return
        unfinished = list(state.tasks)
        if not unfinished:
            return
        told = self._life.phase is Phase.LEAVING
        reason = "a second Ctrl-C" if told else f"{seconds:g} s were not enough"
        _logger.error("requests cut off", extra={"requests": len(unfinished), "reason": reason})
        for task in unfinished:
            task.cancel("the process ends")
        await asyncio.wait(unfinished, timeout=_AT_ONCE)

    async def _gone(self, seconds: float) -> bool:
        """Whether all connections and tasks ended within `seconds`, before the process has to leave."""
        state, loop = self.server_state, asyncio.get_running_loop()
        end = loop.time() + seconds
        while state.connections or state.tasks:
            if loop.time() >= end or self._life.phase is Phase.LEAVING:
                return False
            await asyncio.sleep(_LOOK)
        return True
