"""Connections for work on the servers themselves: who is the primary, and plain statements on it.

The router's own connections need the vector extension, know its types and leave nothing behind; these
create the extension, run for hours and hold locks. What asyncpg raises becomes a `NodeError` here too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

import asyncpg
import msgspec

from router.postgres.connection import ErrorKind, NodeError, node_error
from shard_config.model import Node, Shard

__all__ = [
    "SESSION_ERRORS",
    "Connection",
    "Primary",
    "bound_to",
    "connect",
    "node_errors",
    "on_each",
    "primary_of",
    "session_error",
]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

CONNECT_TIMEOUT = 5.0
# How long a statement may take to notice that its connection is gone.
_LAST_WORDS = 1.0
# As many shards are worked on at once; more would only queue on this process.
CONCURRENCY = 16
# A server of PostgreSQL 14 or newer ends the statement of a client that is gone after this time,
# instead of building an index for nobody.
_CLIENT_CHECK = (
    "SELECT set_config(name, '1s', false) FROM pg_settings WHERE name = 'client_connection_check_interval'"
)


class _Session(asyncpg.Connection):
    """A connection that ends when a statement on it is cancelled.

    asyncpg would open another connection to ask the server for the cancel, and wait for it: with a frozen
    server for ever. What a session was about is undone when it ends, and that needs no answer.
    """

    def _cancel_current_command(self, *_: object) -> None:
        self.terminate()


Connection: TypeAlias = _Session


class Primary(msgspec.Struct, frozen=True):
    """The node of a replica set that takes writes, with a connection to it."""

    shard: str
    node: Node
    connection: Connection

    def close(self) -> None:
        self.connection.terminate()


# What a statement raises. asyncpg takes a server's last message, sent between two statements, for a
# fault of its own (InternalClientError: "another operation is in progress").
SESSION_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


def session_error(exc: BaseException) -> NodeError:
    """What one of `SESSION_ERRORS` means."""
    if isinstance(exc, asyncpg.InternalClientError):
        return NodeError(ErrorKind.UNREACHABLE, "the connection was lost")
    return node_error(exc)


@contextmanager
def node_errors() -> Iterator[None]:
    """
    Raises:
        NodeError: in the place of whatever asyncpg or the socket raised.
    """
    try:
        yield
    except SESSION_ERRORS as exc:
        raise session_error(exc) from exc


async def connect(node: Node, name: str, **settings: str) -> Connection:
    """A connection whose statements have no bound of their own: each caller gives its own.

    Commits wait for this server's disk but not for synchronous replicas, which may be down: whoever
    needs rows on replicas waits for their replay and can say which one is late.

    Raises:
        NodeError
    """
    options = {
        "application_name": name,
        "synchronous_commit": "local",
        "statement_timeout": "0",
        "client_min_messages": "warning",
        **settings,
    }
    try:
        connection = await asyncpg.connect(
            node.dsn,
            timeout=CONNECT_TIMEOUT,
            connection_class=_Session,
            server_settings=options,
            statement_cache_size=0,
        )
    except SESSION_ERRORS as exc:
        error = session_error(exc)
        raise NodeError(error.kind, f"{node.name}: {error}") from exc
    try:
        with node_errors():
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await connection.execute(_CLIENT_CHECK)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def primary_of(shard: Shard, name: str, **settings: str) -> Primary:
    """The primary of `shard`, found by asking every node of it.

    Raises:
        NodeError: none of them is, or more than one.
    """
    primaries: list[Primary] = []
    others: list[str] = []

    async def ask(node: Node) -> None:
        found = await _if_primary(node, name, settings)
        if isinstance(found, str):
            others.append(found)
        else:
            primaries.append(Primary(shard.name, node, found))

    try:
        async with asyncio.TaskGroup() as group:
            for node in shard.nodes:
                group.create_task(ask(node))
        if len(primaries) == 1:
            return primaries[0]
        names = ", ".join(sorted(primary.node.name for primary in primaries))
        reason = f"more than one primary: {names}" if names else f"no primary: {'; '.join(sorted(others))}"
        raise NodeError(ErrorKind.UNREACHABLE, reason)
    except BaseException:
        for primary in primaries:
            primary.close()
        raise


async def _if_primary(node: Node, name: str, settings: dict[str, str]) -> Connection | str:
    """A connection to `node`, or why it is no primary."""
    try:
        connection = await connect(node, name, **settings)
    except NodeError as exc:
        return str(exc)
    try:
        with node_errors():
            async with asyncio.timeout(CONNECT_TIMEOUT):
                standby = await connection.fetchval("SELECT pg_is_in_recovery()")
    except NodeError as exc:
        connection.terminate()
        return f"{node.name}: {exc}"
    except BaseException:
        connection.terminate()
        raise
    if not standby:
        return connection
    connection.terminate()
    return f"{node.name} is a replica"


async def bound_to(connection: Connection, work: Coroutine[None, None, T]) -> T:
    """Await `work` on `connection`, and end it when the connection is lost.

    A COPY that waits for room in the socket is not told of the loss: asyncpg 0.32 leaves its
    `writing_allowed` unset then.

    Raises:
        NodeError: the connection was lost, and the work did not say so itself.
    """
    lost = asyncio.get_running_loop().create_future()

    def listen(_: object) -> None:
        if not lost.done():
            lost.set_result(None)

    connection.add_termination_listener(listen)
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task, lost}, return_when=asyncio.FIRST_COMPLETED)
        error = await _settle(connection, task)
        if lost.done() and error is not None and not isinstance(error, SESSION_ERRORS):
            raise NodeError(ErrorKind.UNREACHABLE, "the connection was lost") from error
        return task.result()
    finally:
        await _settle(connection, task)
        connection.remove_termination_listener(listen)


async def _settle(connection: Connection, task: asyncio.Task[T]) -> BaseException | None:
    """See the task end, and what it failed of.

    One that is about to hear of the loss is not cancelled: asyncio would then complain that nobody has
    read what it was about to hear.
    """
    if not task.done() and connection.is_closed():
        await asyncio.wait({task}, timeout=_LAST_WORDS)
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_LAST_WORDS)
    if not task.done() or task.cancelled():
        return asyncio.CancelledError()
    return task.exception()


async def on_each(
    keys: Iterable[K], work: Callable[[K], Awaitable[T]], timeout: float
) -> tuple[dict[K, T], dict[K, NodeError]]:
    """Run `work` for every key, each within `timeout` seconds; what succeeded, and what failed and why."""
    slots = asyncio.Semaphore(CONCURRENCY)
    done: dict[K, T] = {}
    failed: dict[K, NodeError] = {}

    async def one(key: K) -> None:
        async with slots:
            try:
                with node_errors():
                    async with asyncio.timeout(timeout):
                        done[key] = await work(key)
            except NodeError as exc:
                failed[key] = exc

    keys = list(keys)
    async with asyncio.TaskGroup() as group:
        for key in keys:
            group.create_task(one(key))
    return {k: done[k] for k in keys if k in done}, {k: failed[k] for k in keys if k in failed}
