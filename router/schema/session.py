"""Connections for work on the servers themselves: who is the primary, and plain statements on it.

The router's own connections need the vector extension, know its types and leave nothing behind; these
create the extension, run for hours and hold locks. What asyncpg raises becomes a `NodeError` here too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

import asyncpg
import msgspec

from router.postgres.connection import ErrorKind, NodeError, node_error
from shard_config.model import Node, Shard

__all__ = ["Connection", "Primary", "connect", "node_errors", "on_each", "primary_of"]

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

CONNECT_TIMEOUT = 5.0
# As many shards are worked on at once; more would only queue on this process.
CONCURRENCY = 16
# A server of PostgreSQL 14 or newer ends the statement of a client that is gone after this time,
# instead of building an index for nobody.
_CLIENT_CHECK = (
    "SELECT set_config(name, '1s', false) FROM pg_settings WHERE name = 'client_connection_check_interval'"
)


class Primary(msgspec.Struct, frozen=True):
    """The node of a replica set that takes writes, with a connection to it."""

    shard: str
    node: Node
    connection: Connection

    def close(self) -> None:
        self.connection.terminate()


@contextmanager
def node_errors() -> Iterator[None]:
    """
    Raises:
        NodeError: in the place of whatever asyncpg or the socket raised.
    """
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as exc:
        raise node_error(exc) from exc


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
            node.dsn, timeout=CONNECT_TIMEOUT, server_settings=options, statement_cache_size=0
        )
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as exc:
        error = node_error(exc)
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
