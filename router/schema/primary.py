"""The primary of each shard, and work on many of them at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import TypeVar

import msgspec

from router.postgres.connection import ErrorKind, NodeError
from router.schema.session import CONNECT_TIMEOUT, Connection, connect, node_errors
from shard_config.model import Node, Shard

__all__ = ["Primary", "on_each", "primary_of"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

# As many shards are worked on at once; more would only queue on this process.
_CONCURRENCY = 16


class Primary(msgspec.Struct, frozen=True):
    """The node of a replica set that takes writes, with a connection to it."""

    shard: str
    node: Node
    connection: Connection

    def close(self) -> None:
        self.connection.terminate()


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
    slots = asyncio.Semaphore(_CONCURRENCY)
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
