"""Upserts that keep ids unique over all shards, for collections whose sharding key is not their id.

Nothing in PostgreSQL keeps an id from standing on two shards there. So each id has a home shard, on
which a writer holds a lock for it, and no document is stored before every shard has been asked
whether it holds the id. One that would have to move to another shard is refused: moving cannot be
atomic over two servers, and a document that is briefly doubled or gone is worse than a refusal.

The lock at home lets one writer at a time ask and store. That writer then takes the same locks on all
shards, in the sessions that will store: a statement whose writer has gone may still be under way, and
until it is over its session keeps the next writer from asking.

Nobody waits for a lock in PostgreSQL: whoever finds one taken gives back what it has, its connections
too, and tries again later. So there is no deadlock, and a router that is frozen with locks in its hands
holds up the writers of these ids until their deadlines, and nobody else. Locks belong to sessions: a router
that dies gives them up. Ids share a fixed number of them, since PostgreSQL has room for a few thousand.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from hashlib import blake2b

from router.documents.primary import FAILOVER_KINDS, PAUSE_SECONDS, Outcome, Primaries
from router.documents.rows import store_documents, upsert_outcome
from router.documents.types import Document, DocumentFailure, UpsertOutcome
from router.nodes.node import Node
from router.postgres import sql
from router.postgres.connection import POSTGRES_ERRORS, Connection, ErrorKind, NodeError
from router.postgres.wal import written_position
from router.postgres.write import explained, lock_holder, try_advisory_lock, unlock_all
from router.query.errors import OverloadedError
from shard_config.model import Collection

__all__ = ["store_unique"]

# Before locks are tried again; doubled from the first to the longest. Another writer holds them for some
# round trips.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.004, 0.25


async def store_unique(
    primaries: Primaries,
    collection: Collection,
    shards: Sequence[str],
    groups: Mapping[str, Sequence[Document]],
    deadline: float,
) -> UpsertOutcome:
    """Store each group on its shard unless another shard holds the id.

    Needs the primaries of all `shards`: with one of them away nobody can tell whether it holds an id,
    and nothing is stored.
    """
    attempt = _Attempt(primaries, collection, shards, groups)
    async with primaries.freshness.writing(collection.name):
        try:
            async with asyncio.timeout_at(deadline):
                await attempt.run()
        except TimeoutError:
            attempt.fail_rest(attempt.why_late())
        except (NodeError, OverloadedError) as exc:
            kind = exc.kind if isinstance(exc, NodeError) else None
            attempt.fail_rest(f"all shards must be asked whether they hold the id: {exc}", kind)
        finally:
            for node, connection in attempt.unconfirmed():
                primaries.unconfirmed.add(collection.name, node, connection)
    return attempt.result()


class _Attempt:
    """One such upsert; `outcomes` is filled in as shards finish."""

    def __init__(
        self,
        primaries: Primaries,
        collection: Collection,
        shards: Sequence[str],
        groups: Mapping[str, Sequence[Document]],
    ) -> None:
        self._primaries = primaries
        self._collection = collection
        self._shards = shards
        self._groups = {shard: list(part) for shard, part in groups.items()}
        self._outcomes: dict[str, Outcome[dict[int, str]]] = {}
        self._conflicts: list[DocumentFailure] = []
        self._storing: set[str] = set()
        self._used: dict[str, tuple[Node, Connection]] = {}
        self._blocked = ""  # by whom, as long as the locks are not free
        self._renewed = False  # whether connections have been replaced that may have been at fault

    async def run(self) -> None:
        """Store; nothing is stored yet while primaries change, so that takes as long as it may."""
        now = asyncio.get_running_loop().time
        end = now() + self._primaries.wait
        pause = _FIRST_PAUSE
        while True:
            try:
                if await self._once(end):
                    return
            except NodeError as exc:
                if exc.renewable and not self._renewed:
                    self._renewed = True
                    continue
                if self._storing or exc.kind not in FAILOVER_KINDS or now() >= end:
                    raise
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                await asyncio.sleep(random.uniform(pause / 2, pause))
                pause = min(2 * pause, _LONGEST_PAUSE)
                end = now() + self._primaries.wait

    async def _once(self, end: float) -> bool:
        """False if the locks were not free, and nothing was done."""
        async with AsyncExitStack() as turn, AsyncExitStack() as stack:
            if self._blocked:
                await turn.enter_async_context(self._primaries.retry_turn)
            sessions: dict[str, Connection] = {}
            for shard in self._shards:
                node = await self._primaries.node(shard, end - asyncio.get_running_loop().time())
                try:
                    session = self._primaries.session(shard, node, renewed=self._renewed)
                    sessions[shard] = await stack.enter_async_context(session)
                except NodeError as exc:
                    self._primaries.failed(shard, node, exc)
                    raise
                self._used[shard] = (node, sessions[shard])
            try:
                holders = await self._elsewhere(sessions) if await self._lock() else None
                if holders is not None:
                    self._blocked = ""
                    await turn.aclose()
                    self._refuse(holders)
                    await self._store(sessions)
                for connection in sessions.values():
                    if not connection.is_closed():
                        await unlock_all(connection)
                return holders is not None
            except Exception:
                # To end the session is the one way to let go of locks that needs no answer. A cancelled
                # one has a statement under way: the pool waits for its end, and unlocks.
                for connection in sessions.values():
                    connection.terminate()
                raise

    async def _lock(self) -> bool:
        """Take every id's lock at its home, if they are free."""
        at_home: dict[str, list[int]] = defaultdict(list)
        for key in self._keys():
            at_home[self._shards[key % len(self._shards)]].append(key)
        for shard in self._shards:
            if at_home[shard] and not await self._try_lock(shard, at_home[shard]):
                return False
        return True

    async def _try_lock(self, shard: str, keys: Sequence[int]) -> bool:
        node, connection = self._used[shard]
        try:
            if await try_advisory_lock(connection, keys):
                return True
            self._blocked = f"{await lock_holder(connection, keys) or 'another session'} of {shard}"
            return False
        except POSTGRES_ERRORS as exc:
            raise node.writes.error(connection, exc) from exc

    async def _elsewhere(self, sessions: Mapping[str, Connection]) -> dict[object, set[str]] | None:
        """For each id, the shards that hold it, when nobody can be storing it any more; None until then."""
        statement = sql.existing_ids(self._collection, [document.id for document in self._documents()])
        keys = self._keys()

        async def existing(shard: str) -> list[object] | None:
            if not await self._try_lock(shard, keys):
                return None
            node, connection = self._used[shard]

            async def ask() -> list[object]:
                return [row[0] for row in await connection.fetch(statement.sql, *statement.args)]

            try:
                return await explained(connection, self._collection, ask)
            except POSTGRES_ERRORS as exc:
                error = node.writes.error(connection, exc)
                if not error.renewable or self._renewed:
                    self._primaries.failed(shard, node, error)
                # Its documents may belong to other shards than the one that cannot be asked.
                said = f"{node.config.name}: {error}"
                raise NodeError(error.kind, said, renewable=error.renewable) from exc

        found = await asyncio.gather(*(existing(shard) for shard in sessions))
        holders: dict[object, set[str]] = defaultdict(set)
        for shard, ids in zip(sessions, found, strict=True):
            if ids is None:
                return None
            for id_ in ids:
                holders[id_].add(shard)
        return holders

    def _refuse(self, holders: Mapping[object, set[str]]) -> None:
        key = self._collection.sharding.key.name
        for shard, part in self._groups.items():
            staying = []
            for document in part:
                others = sorted(holders.get(document.id, set()) - {shard})
                if not others:
                    staying.append(document)
                    continue
                message = (
                    f"stored on {', '.join(others)} under another {key}; {key} of a stored document"
                    f" cannot change so that it would move to {shard}: delete it first"
                )
                self._conflicts.append(
                    DocumentFailure(document.index, document.id, "conflict", message, shard)
                )
            self._groups[shard] = staying

    async def _store(self, sessions: Mapping[str, Connection]) -> None:
        renewable: list[NodeError] = []  # which a new connection may not have

        async def one(shard: str, part: Sequence[Document]) -> None:
            node, connection = self._used[shard]
            self._storing.add(shard)  # before the statement: if this is cancelled, it may be committed
            committed = False
            try:
                refused = await explained(
                    connection,
                    self._collection,
                    lambda: store_documents(connection, self._collection, part),
                )
                committed = True
                position = await written_position(connection)
            except (NodeError, *POSTGRES_ERRORS) as exc:
                unknown = committed or connection.is_closed()
                error = node.writes.error(connection, exc)
                connection.terminate()
                if error.renewable and not unknown and not self._renewed:
                    self._storing.discard(shard)
                    renewable.append(error)
                else:
                    self._primaries.failed(shard, node, error)
                    said = f"{node.config.name}: {error}"
                    self._outcomes[shard] = Outcome(error=said, unknown=unknown, kind=error.kind)
                return
            self._outcomes[shard] = Outcome(refused)
            self._primaries.committed(self._collection.name, shard, position)

        async with asyncio.TaskGroup() as group:
            for shard, part in self._groups.items():
                if part and shard not in self._outcomes:
                    group.create_task(one(shard, part))
        if renewable:
            raise renewable[0]

    def unconfirmed(self) -> list[tuple[Node, Connection]]:
        """Where something was to be stored, and nobody knows whether it was."""
        unknown = Outcome[dict[int, str]](unknown=True)
        return [self._used[shard] for shard in self._storing if self._outcomes.get(shard, unknown).unknown]

    def why_late(self) -> str:
        if self._blocked:
            return f"other writers of these ids did not finish in time: {self._blocked} holds their lock"
        return "the primaries did not answer in time"

    def fail_rest(self, error: str, kind: ErrorKind | None = None) -> None:
        """Shards without an outcome: nothing was stored there, unless their statement was under way."""
        for shard in self._groups:
            if shard not in self._outcomes:
                self._outcomes[shard] = Outcome(error=error, unknown=shard in self._storing, kind=kind)

    def result(self) -> UpsertOutcome:
        for shard in self._groups:
            self._outcomes.setdefault(shard, Outcome({}))
        stored = upsert_outcome(self._groups, self._outcomes)
        failures = sorted([*stored.failures, *self._conflicts], key=lambda failure: failure.index)
        return UpsertOutcome(stored.stored, stored.shards, tuple(failures))

    def _documents(self) -> list[Document]:
        return [document for part in self._groups.values() for document in part]

    def _keys(self) -> list[int]:
        """Of the locks of all documents, ascending."""
        return sorted({_lock_key(self._collection.name, document.id) for document in self._documents()})


def _lock_key(collection: str, id_: object) -> int:
    """One of 256 numbers that are the collection's own."""
    space = blake2b(collection.encode(), digest_size=7).digest()
    return int.from_bytes(space + blake2b(str(id_).encode(), digest_size=1).digest(), "big", signed=True)
