"""Runs the application: one uvicorn server in this process, or several under a supervisor.

Both end in the same way. On SIGTERM or Ctrl-C no new connection is taken, requests under way get
`drain_timeout` to finish, and the process leaves with status 0; a second Ctrl-C leaves at once.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import signal
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from router.http.outbox import Outbox
from router.http.protocol import BoundedProtocol

__all__ = ["is_loopback", "listen", "run"]

_logger = logging.getLogger(__name__)

_BACKLOG = 2048
# Longer than load balancers keep an idle connection, so that they close it and not we under a request.
_KEEP_ALIVE = 75
# A worker imports numpy and opens its connections before it answers its supervisor.
_HEALTHCHECK = 60
# One that dies meanwhile never gets ready; asking goes on with the next turn of the supervisor.
_READY_POLL = 1.0
# What a worker may need beyond draining: closing its connections.
_CLOSING = 10.0


def listen(host: str, port: int) -> socket.socket:
    """A bound socket on the first address that `host` means.

    Raises:
        OSError: the name is unknown, or the port taken.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.set_inheritable(True)
    except OSError:
        listener.close()
        raise
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can connect to it."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def run(
    app: str | Callable[[], ASGIApp],
    listener: socket.socket,
    *,
    workers: int,
    drain_timeout: float,
    ready: Callable[[], None],
) -> int:
    """Serve the application that the factory `app` makes, until told to stop; returns the exit status.

    Several workers find it by its name, `module:function`, as processes that have nothing of this one.
    `ready` is called once, when requests are being answered.
    """
    config = uvicorn.Config(
        app,
        factory=True,
        workers=workers,
        loop="uvloop",
        http=partial(BoundedProtocol, outbox=Outbox()),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(drain_timeout),
        timeout_worker_healthcheck=_HEALTHCHECK,
    )
    if workers > 1:
        supervisor = _Supervisor(config, [listener], ready, drain_timeout + _CLOSING)
        supervisor.run()
        return 1 if supervisor.failed else 0
    return _run_one(_Server(config, ready), listener)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


def _run_one(server: _Server, listener: socket.socket) -> int:
    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    # uvicorn raises the signal again when it has shut down; without these, the process would die of it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        server.run([listener])
    except SystemExit:
        # uvicorn's way to say that the application did not start; the log has the reason.
        return 1
    return 0 if server.started else 1


class _Supervisor(Multiprocess):
    """uvicorn's, which also says when all workers serve, and does not wait for ever for one to end."""

    def __init__(
        self,
        config: uvicorn.Config,
        sockets: list[socket.socket],
        ready: Callable[[], None],
        patience: float,
    ) -> None:
        super().__init__(config, sockets)
        self.failed = False
        self._ready: Callable[[], None] | None = ready
        self._patience = patience

    def keep_subprocess_alive(self) -> None:
        for process in self.processes:
            # The worker has this end of the pipe. As long as it is open here as well, nothing tells of a
            # worker that dies while it is being asked whether it lives: the answer would be waited for as
            # long as a worker may take, and signals to the supervisor would wait with it.
            process.child_conn.close()
        before = {process.pid: process for process in self.processes}
        super().keep_subprocess_alive()
        dead = before.keys() - {process.pid for process in self.processes}
        for pid in dead:
            _logger.warning("worker %s died and was replaced", pid)
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
        if any(process.exitcode == STARTUP_FAILURE for process in before.values()):
            self.failed = True
        if self._ready is None or self.should_exit.is_set():
            return
        if dead:
            # One that dies before all have ever served will not do better the next time.
            self.failed = True
            self.should_exit.set()
        elif self._all_ready():
            self._ready()
            self._ready = None

    def handle_hup(self) -> None:
        _logger.warning("SIGHUP is not handled; restart the router to change its configuration")

    def join_all(self) -> None:
        for process in self.processes:
            process.process.join(self._patience)
            if process.exitcode is None:
                _logger.error("worker %s did not end in time and is killed", process.pid)
                process.process.kill()
                process.process.join()

    def _all_ready(self) -> bool:
        return all(process.is_ready(_READY_POLL) for process in self.processes)
