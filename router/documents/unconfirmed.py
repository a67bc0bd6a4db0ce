"""Writes that may have been committed although nobody was told so.

A cancelled statement may be past its point of no return, and a statement on a connection that broke may
still run, or run when a frozen server goes on. Whatever is cached meanwhile is from before it.

Invariant: once such a write is visible, caches of this router's workers answer from before it for no
longer than it took to become visible, and not at all after the server had its time for a statement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from router.freshness.freshness import Freshness
from router.nodes.node import Node
from router.nodes.prober import Prober
from router.policy.selection import Health, Role
from router.postgres.connection import Connection, NodeError
from router.postgres.wal import written_position
from router.query.errors import OverloadedError

__all__ = ["UnconfirmedWrites"]

# Between two checks; each pause is twice as long as the one before, so that a write that becomes visible
# after t seconds is found within about as many more.
_FIRST_SECONDS = 0.1
_POSITION_SECONDS = 1.0
_RETURN_SECONDS = 1.0


class _Unconfirmed:
    """The writes to one collection on one node: each with what still runs it, if anything does."""

    def __init__(self, collection: str, node: Node) -> None:
        self.collection = collection
        self.node = node
        self.writes: list[tuple[Awaitable[object] | None, Connection]] = []


class UnconfirmedWrites:
    """Counts them as written again and again until they have ended, one task per collection and node.

    It outlives shard maps: a write through one map is followed to its end under the next one.
    """

    def __init__(self, freshness: Freshness, prober: Prober, statement_timeout: float) -> None:
        """`statement_timeout` is how long a server may take over a statement."""
        self._freshness = freshness
        self._prober = prober
        self._statement_timeout = statement_timeout
        self._followed: dict[tuple[str, Node], _Unconfirmed] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<UnconfirmedWrites of {len(self._followed)} collections and nodes>"

    def add(
        self, collection: str, node: Node, connection: Connection, writing: Awaitable[object] | None = None
    ) -> None:
        """What `writing` has done with `connection` is not known; it has ended, or is about to."""
        key = (collection, node)
        followed = self._followed.get(key)
        if followed is None:
            followed = self._followed[key] = _Unconfirmed(collection, node)
            task = asyncio.create_task(self._follow(key, followed), name=f"unconfirmed, {collection}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        followed.writes.append((writing, connection))

    async def close(self) -> None:
        """Follow them no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, key: tuple[str, Node], followed: _Unconfirmed) -> None:
        try:
            await self._until_ended(followed)
        finally:
            # In the same turn as the last check: a write that is added from now on has a task of its own.
            del self._followed[key]

    async def _until_ended(self, followed: _Unconfirmed) -> None:
        """Check until nothing can become visible any more.

        1. A connection that is whole has its statement's end behind it: one check tells all.
        2. On one that broke, the server may still run the statement, for as long as it may take.
        3. A server that is down may be frozen with the statement, and has that time when it is back.
        """
        now: Callable[[], float] = asyncio.get_running_loop().time
        pause, until = _FIRST_SECONDS, now()
        while True:
            if followed.writes and await self._await_writes(followed):
                pause, until = _FIRST_SECONDS, now() + self._statement_timeout
            await self._count_as_written(followed)
            if followed.writes:
                continue  # they came during the check, which may have been too early for them
            if now() < until:
                await asyncio.sleep(min(pause, until - now()))
                pause *= 2
            elif followed.node.state.health is Health.UP:
                return
            else:
                await _return_of(followed.node)
                pause, until = _FIRST_SECONDS, now() + self._statement_timeout

    async def _await_writes(self, followed: _Unconfirmed) -> bool:
        """Take over the writes that were added and wait for the tasks that made them.

        Returns:
            Whether a connection broke meanwhile: the server may still be running its statement.
        """
        writes, followed.writes = followed.writes, []
        await asyncio.gather(*(one for one, _ in writes if one is not None), return_exceptions=True)
        await followed.node.writes.mended()
        return any(connection.is_closed() for _, connection in writes)

    async def _count_as_written(self, followed: _Unconfirmed) -> None:
        """Whatever is visible by now is in the log up to where it ends now."""
        node, state = followed.node, followed.node.state
        # A deposed primary's positions are of another log.
        if state.role is Role.PRIMARY and not state.deposed:
            with suppress(NodeError, OverloadedError, TimeoutError):
                async with asyncio.timeout(_POSITION_SECONDS), node.writes.session() as connection:
                    position = await written_position(connection)
                    self._freshness.committed(followed.collection, node.shard, position)
                    self._prober.expect(node.shard, position.lsn)
        self._freshness.wrote(followed.collection)
        await self._freshness.publish(followed.collection)


async def _return_of(node: Node) -> None:
    while True:
        await asyncio.sleep(_RETURN_SECONDS)
        if node.state.health is Health.UP:
            return
