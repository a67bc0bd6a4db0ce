"""Work on the primaries of several shards at once, with an outcome for each.

Invariant: every shard asked has an outcome by the deadline, and after the first commit the caches of
this router's workers no longer answer from before it; commits of which nobody knows are followed by
`router.documents.unconfirmed`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Generic, TypeVar

import msgspec

from router.documents.unconfirmed import UnconfirmedWrites
from router.freshness.freshness import Freshness
from router.nodes.node import Node
from router.nodes.prober import Prober
from router.policy.selection import Role
from router.postgres.connection import LASTING, Connection, ErrorKind, NodeError
from router.postgres.wal import written_position
from router.query.errors import OverloadedError
from router.query.types import Position
from router.stages.replicas import ReplicaSet

__all__ = ["FAILOVER_KINDS", "PAUSE_SECONDS", "Outcome", "Primaries"]

T = TypeVar("T")

# A node that fails so may have been replaced as the primary; the next one may answer.
FAILOVER_KINDS = (ErrorKind.UNREACHABLE, ErrorKind.LOST, ErrorKind.READ_ONLY)
# Before a node is asked again that was thought to be the primary, and was not.
PAUSE_SECONDS = 0.05


class Outcome(msgspec.Struct, Generic[T], frozen=True):
    """`value` if `error` is None. Otherwise nothing was stored, or, if `unknown`, perhaps all was.

    `kind` is what the error allows, as far as it came from a node.
    """

    value: T | None = None
    error: str | None = None
    unknown: bool = False
    kind: ErrorKind | None = None


class Primaries:
    """Sends writes to whichever nodes are primaries now, or within `wait` seconds."""

    def __init__(
        self,
        sets: Mapping[str, ReplicaSet],
        freshness: Freshness,
        prober: Prober,
        unconfirmed: UnconfirmedWrites,
        *,
        wait: float,
    ) -> None:
        self.wait = wait
        self.freshness = freshness
        self.unconfirmed = unconfirmed
        # Upserts that have found an id locked try again one at a time, so that connections stay free.
        self.retry_turn = asyncio.Lock()
        self._sets = sets
        self._prober = prober

    def __repr__(self) -> str:
        return f"<Primaries of {list(self._sets)}>"

    async def node(self, shard: str, wait: float) -> Node:
        """
        Raises:
            NodeError: for `wait` seconds no node of the shard was known to be its primary.
        """
        node = await self._sets[shard].primary_within(wait)
        if node is None:
            waited = f", after {wait:.1f} s" if wait > 0 else ""
            raise NodeError(ErrorKind.UNREACHABLE, f"no primary of {shard} is up{waited}")
        return node

    @asynccontextmanager
    async def session(self, shard: str, node: Node, *, renewed: bool = False) -> AsyncIterator[Connection]:
        """A write connection to `node`, if one is to be had while it is the shard's primary.

        `renewed` is as for `Pool.session`.

        Raises:
            NodeError, OverloadedError: on entering.
        """
        async with AsyncExitStack() as stack:
            try:
                # A frozen primary may keep a newcomer waiting for a connection long after it was replaced:
                # the news of that ends the wait, as a time limit that has passed.
                async with asyncio.timeout(None) as waiting:
                    with self._sets[shard].relying_on(node, lambda: waiting.reschedule(0)):
                        connection = await stack.enter_async_context(node.writes.session(renewed=renewed))
            except TimeoutError:
                raise NodeError(ErrorKind.LOST, "it is not the primary any more") from None
            yield connection

    async def run(
        self,
        collection: str,
        work: Mapping[str, Callable[[Connection], Awaitable[T]]],
        deadline: float,
    ) -> dict[str, Outcome[T]]:
        """Run each shard's work on its primary, all at once, and say by the deadline what became of it."""
        loop = asyncio.get_running_loop()
        jobs = {shard: _Job(self, collection, shard, job) for shard, job in work.items()}
        tasks = [loop.create_task(job.run()) for job in jobs.values()]
        async with self.freshness.writing(collection):
            try:
                if tasks:
                    await asyncio.wait(tasks, timeout=max(0.0, deadline - loop.time()))
            finally:
                for task in tasks:
                    task.cancel()
                try:
                    await asyncio.gather(*tasks, return_exceptions=True)
                finally:
                    # Also when this is cancelled once more before all have ended: the task tells when it has.
                    for job, task in zip(jobs.values(), tasks, strict=True):
                        if job.outcome.unknown and job.sent is not None:
                            self.unconfirmed.add(collection, *job.sent, task)
        return {shard: job.outcome for shard, job in jobs.items()}

    def committed(self, collection: str, shard: str, position: Position) -> None:
        """A commit on `shard` is in its log up to `position`: later reads want nodes that have it."""
        self.freshness.committed(collection, shard, position)
        self._prober.expect(shard, position.lsn)

    def failed(self, shard: str, node: Node, error: NodeError) -> None:
        node.failed(error)
        if error.kind in LASTING:
            self._sets[shard].failed_for_good()
        if error.kind is ErrorKind.READ_ONLY:
            node.observe(msgspec.structs.replace(node.state, role=Role.REPLICA))


class _Job(Generic[T]):
    """One shard's work; `outcome` is true at every moment, so that a cancelled job needs no epilogue."""

    def __init__(
        self, primaries: Primaries, collection: str, shard: str, work: Callable[[Connection], Awaitable[T]]
    ) -> None:
        self.outcome: Outcome[T] = Outcome(error="no connection to the primary in time")
        self.sent: tuple[Node, Connection] | None = None
        self._primaries = primaries
        self._collection = collection
        self._shard = shard
        self._work = work

    async def run(self) -> None:
        """Try until it is known what became of it, as long as primaries may take to change."""
        now = asyncio.get_running_loop().time
        end = now() + self._primaries.wait
        while True:
            try:
                node = await self._primaries.node(self._shard, end - now())
            except NodeError as exc:
                self.outcome = Outcome(error=str(exc))
                return
            if not await self._try(node) or now() >= end:
                return
            await asyncio.sleep(PAUSE_SECONDS)

    async def _try(self, node: Node, *, renewed: bool = False) -> bool:
        """Whether nothing was stored because `node` is no primary any more, so that the next one may."""
        sent = committed = False
        try:
            async with self._primaries.session(self._shard, node, renewed=renewed) as connection:
                sent = True
                self.sent = (node, connection)
                # Said before, because a cancelled task says nothing after: from here until the position is
                # known, the work may have been committed, and where in the log nobody could tell.
                self.outcome = Outcome(error="no answer from the primary in time", unknown=True)
                value = await self._work(connection)
                committed = True
                # In the session that committed: what it must ask for depends on its synchronous_commit.
                position = await written_position(connection)
        except OverloadedError as exc:
            self.outcome = Outcome(error=exc.detail)
        except NodeError as exc:
            if exc.renewable and not committed and not renewed:
                # Known until the next try begins: nothing was stored.
                self.outcome = Outcome(error=_named(node, exc), kind=exc.kind)
                return await self._try(node, renewed=True)
            self._primaries.failed(self._shard, node, exc)
            lost = committed or (sent and exc.kind is ErrorKind.LOST)
            self.outcome = Outcome(error=_named(node, exc), unknown=lost, kind=exc.kind)
            return not lost and exc.kind in FAILOVER_KINDS
        else:
            self._primaries.committed(self._collection, self._shard, position)
            self.outcome = Outcome(value)
        return False


def _named(node: Node, error: NodeError) -> str:
    """Of the caller's own values the caller is told in the server's words, and of nothing inside."""
    return str(error) if error.kind is ErrorKind.DATA else f"{node.config.name}: {error}"
