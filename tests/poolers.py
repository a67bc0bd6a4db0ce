"""Poolers in front of a server: a small one of our own, and PgBouncer where the machine has it.

Ours shows each way of handing out server processes on purpose, and is there on every machine.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit, urlunsplit

from deploy.local.servers import free_ports

__all__ = ["POOLERS", "Pooler", "pgbouncer", "stand_in"]

_CANCEL, _TLS = 80877102, 80877103
Message = tuple[bytes, bytes]


def through(dsn: str, port: int) -> str:
    parts = urlsplit(dsn)
    user = f"{parts.username}@" if parts.username else ""
    return urlunsplit(parts._replace(netloc=f"{user}127.0.0.1:{port}"))


class _Server:
    """A connection to the server, which must trust the user."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.welcome: list[Message] = []
        self.key = b""
        self.idle = True  # outside of a transaction, with nothing to answer

    async def until_ready(self) -> list[Message]:
        messages = [await _message(self.reader)]
        while messages[-1][0] != b"Z":
            messages.append(await _message(self.reader))
        return messages


class Pooler:
    """`mode` may change while clients are connected; `size` servers at most.

    `round_robin` gives out the server that has rested longest, otherwise the one used last. `reset` is what a
    session's end runs.
    """

    def __init__(
        self,
        host: str,
        port: int,
        mode: str,
        *,
        size: int = 30,
        round_robin: bool = False,
        reset: str = "DISCARD ALL",
    ) -> None:
        self.mode = mode
        self.dsn = ""
        self.clients = 0  # that have come so far
        self._address = host, port
        self._free: list[_Server] = []
        self._slots = asyncio.Semaphore(size)
        self._round_robin = round_robin
        self._reset = reset
        self._used: dict[bytes, _Server] = {}  # by the key of the client that has it now
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients += 1
        self._writers.append(writer)
        self._keep(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        key = os.urandom(8)
        answering: asyncio.Task[None] | None = None
        try:
            startup = await self._startup(reader, writer)
            if startup is None:
                return
            server = await self._take(startup)
            self._give(server)
            for kind, body in ((b"R", struct.pack("!i", 0)), *server.welcome, (b"K", key), (b"Z", b"I")):
                _send(writer, kind, body)
            while True:
                kind, body = await _message(reader)
                if kind == b"X":
                    return
                if key not in self._used:
                    self._used[key] = await self._take(startup)
                    answering = asyncio.create_task(self._answer(key, writer))
                    self._keep(answering)
                self._used[key].idle = False
                _send(self._used[key].writer, kind, body)
        except (EOFError, OSError):
            pass
        finally:
            if answering is not None:
                answering.cancel()
                await asyncio.gather(answering, return_exceptions=True)
            if key in self._used:
                await self._end(self._used.pop(key))
            writer.close()

    async def _answer(self, key: bytes, writer: asyncio.StreamWriter) -> None:
        """Pass on what the server says, in transaction mode until the transaction has ended."""
        server = self._used[key]
        with suppress(EOFError, OSError):
            while True:
                kind, body = await _message(server.reader)
                server.idle = (kind, body) == (b"Z", b"I")
                if server.idle and self.mode == "transaction":
                    del self._used[key]
                    self._give(server)
                    _send(writer, kind, body)
                    return
                _send(writer, kind, body)

    async def _end(self, server: _Server) -> None:
        """Another client may have the server, if it can be made as new."""
        if server.idle:
            _send(server.writer, b"Q", self._reset.encode() + b"\0")
            with suppress(EOFError, OSError):
                await server.until_ready()
                self._free.append(server)
        else:
            server.writer.close()
        self._slots.release()

    async def _startup(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes | None:
        while True:
            size, code = struct.unpack("!ii", await reader.readexactly(8))
            body = await reader.readexactly(size - 8)
            if code == _TLS:
                writer.write(b"N")
            elif code == _CANCEL:
                server = self._used.get(body)
                if server is not None:
                    _, other = await asyncio.open_connection(*self._address)
                    self._writers.append(other)
                    other.write(struct.pack("!ii", 16, _CANCEL) + server.key)
                    other.close()
                return None
            else:
                names = body.split(b"\0")
                given = dict(zip(names[::2], names[1::2], strict=False))
                wanted = {name: given[name] for name in (b"user", b"database") if name in given}
                return b"".join(b"%b\0%b\0" % pair for pair in wanted.items()) + b"\0"

    async def _take(self, startup: bytes) -> _Server:
        await self._slots.acquire()
        if self._free:
            return self._free.pop(0 if self._round_robin else -1)
        server = _Server(*await asyncio.open_connection(*self._address))
        self._writers.append(server.writer)
        server.writer.write(struct.pack("!ii", len(startup) + 8, 196608) + startup)
        for kind, body in await server.until_ready():
            if kind == b"S":
                server.welcome.append((kind, body))
            elif kind == b"K":
                server.key = body
        return server

    def _give(self, server: _Server) -> None:
        self._free.append(server)
        self._slots.release()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def _message(reader: asyncio.StreamReader) -> Message:
    head = await reader.readexactly(5)
    return head[:1], await reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)


def _send(writer: asyncio.StreamWriter, kind: bytes, body: bytes) -> None:
    writer.write(kind + struct.pack("!i", len(body) + 4) + body)


@asynccontextmanager
async def stand_in(dsn: str, mode: str, **options: object) -> AsyncIterator[Pooler]:
    parts = urlsplit(dsn)
    pooler = Pooler(str(parts.hostname), parts.port or 5432, mode, **options)  # type: ignore[arg-type]
    listener = await asyncio.start_server(pooler.serve, "127.0.0.1", 0)
    pooler.dsn = through(dsn, listener.sockets[0].getsockname()[1])
    try:
        yield pooler
    finally:
        listener.close()
        await pooler.close()


@asynccontextmanager
async def pgbouncer(
    dsn: str, mode: str, *, size: int = 30, round_robin: bool = False, reset: str = "DISCARD ALL"
) -> AsyncIterator[Pooler]:
    """PgBouncer itself; one that is only unpacked will do."""
    parts = urlsplit(dsn)
    (port,) = free_ports(1)
    with TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        (path / "users").write_text(f'"{parts.username}" ""\n')
        (path / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={parts.hostname} port={parts.port}\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n"
            f"auth_file = {path}/users\npool_mode = {mode}\ndefault_pool_size = {size}\n"
            f"server_round_robin = {int(round_robin)}\nserver_reset_query = {reset}\nverbose = 0\n"
        )
        # It refuses to run as root.
        account = ["-u", "nobody"] if os.geteuid() == 0 else []
        command = [str(shutil.which("pgbouncer")), *account, str(path / "pgbouncer.ini")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for _ in range(200):
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                await asyncio.sleep(0.01)
            pooler = Pooler("", 0, mode)
            pooler.dsn = through(dsn, port)
            yield pooler
        finally:
            process.terminate()
            process.wait(timeout=10)


Started = Callable[..., AbstractAsyncContextManager[Pooler]]
POOLERS: dict[str, Started] = {"stand-in": stand_in}
if shutil.which("pgbouncer") is not None:
    POOLERS["PgBouncer"] = pgbouncer
