"""Writes that may be committed after their callers were told that nobody knows.

A cancelled statement may be past its point of no return, and one on a connection that broke may still
run, or run when a frozen server goes on. Whatever is cached meanwhile is from before it.

Invariant: once such a write is visible, caches of this router's workers answer from before it for no
longer than it took to become visible, and not at all after the server had its time for a statement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Protocol

from router.nodes.node import Node
from router.policy.selection import Health, Role
from router.postgres.connection import Connection, NodeError
from router.postgres.write import written_position
from router.query.errors import OverloadedError
from router.query.types import Position

__all__ = ["Doubts"]

# Between two looks; each is twice as long as the one before.
_FIRST_SECONDS = 0.1
_POSITION_SECONDS = 1.0
_RETURN_SECONDS = 1.0


class Caches(Protocol):
    """What has to be told of writes."""

    def committed(self, collection: str, shard: str, position: Position) -> None: ...
    def wrote(self, collection: str) -> None: ...
    def publish(self, collection: str) -> Coroutine[None, None, None]: ...


class _Doubt:
    """The writes to one collection on one node."""

    def __init__(self, collection: str, node: Node) -> None:
        self.collection = collection
        self.node = node
        self.pending: list[tuple[Awaitable[object] | None, Connection]] = []


class Doubts:
    """Follows what is in doubt, with a task for each collection and node."""

    def __init__(self, caches: Caches, seconds: float) -> None:
        """`seconds` is how long a server may take over a statement."""
        self._caches = caches
        self._seconds = seconds
        self._doubts: dict[tuple[str, Node], _Doubt] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Doubts of {len(self._doubts)}>"

    def add(
        self, collection: str, node: Node, connection: Connection, writing: Awaitable[object] | None = None
    ) -> None:
        """What `writing` has done with `connection` is not known; it has ended, or is about to."""
        key = (collection, node)
        doubt = self._doubts.get(key)
        if doubt is None:
            doubt = self._doubts[key] = _Doubt(collection, node)
            self._start(self._until_clear(key, doubt), f"doubts of {collection}")
        doubt.pending.append((writing, connection))

    def tell(self, collection: str) -> None:
        """Publish a write whose caller does not wait for that any more."""
        self._start(self._caches.publish(collection), f"publish {collection}")

    def _start(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _until_clear(self, key: tuple[str, Node], doubt: _Doubt) -> None:
        try:
            await self._follow(doubt)
        finally:
            # In the same turn as its last look: what is added from now on has a task of its own.
            del self._doubts[key]

    async def _follow(self, doubt: _Doubt) -> None:
        now: Callable[[], float] = asyncio.get_running_loop().time
        pause, until = _FIRST_SECONDS, now()
        while True:
            if doubt.pending and await self._broken(doubt):
                pause, until = _FIRST_SECONDS, now() + self._seconds
            await self._tell(doubt)
            if doubt.pending:
                continue
            if now() < until:
                await asyncio.sleep(min(pause, until - now()))
                pause *= 2
            elif doubt.node.state.health is Health.UP:
                return
            else:
                await _return_of(doubt.node)
                pause, until = _FIRST_SECONDS, now() + self._seconds

    async def _broken(self, doubt: _Doubt) -> bool:
        """Whether one of the connections has ended without a word, so that its statement may go on."""
        pending, doubt.pending = doubt.pending, []
        await asyncio.gather(*(one for one, _ in pending if one is not None), return_exceptions=True)
        await doubt.node.writes.mended()
        return any(connection.is_closed() for _, connection in pending)

    async def _tell(self, doubt: _Doubt) -> None:
        state = doubt.node.state
        # A deposed primary's positions are of another log.
        if state.role is Role.PRIMARY and not state.deposed:
            with suppress(NodeError, OverloadedError, TimeoutError):
                async with asyncio.timeout(_POSITION_SECONDS), doubt.node.writes.session() as connection:
                    position = await written_position(connection)
                    self._caches.committed(doubt.collection, doubt.node.shard, position)
        self._caches.wrote(doubt.collection)
        await self._caches.publish(doubt.collection)


async def _return_of(node: Node) -> None:
    while True:
        await asyncio.sleep(_RETURN_SECONDS)
        if node.state.health is Health.UP:
            return
