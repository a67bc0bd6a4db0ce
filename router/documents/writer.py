"""Documents into shards: upsert, patch and delete.

Invariant: an id stands on one shard at most. Where the id is the sharding key, its hash sees to that.
Where it is not, ids are locked and looked for on every shard before they are stored
(`router.documents.unique_ids`), and a document that would have to move is refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from router.documents.primary import Primaries
from router.documents.rows import key_of, shard_write, store_documents, upsert_outcome
from router.documents.types import DeleteOutcome, Document, PatchOutcome, UpsertOutcome
from router.documents.unique_ids import store_unique
from router.postgres import sql
from router.postgres.connection import Connection
from router.postgres.patch import PatchStatement, patch_by_ids, patch_matching
from router.postgres.write import Patched, delete, explained, patch, repeated
from router.query.filter import Filter
from router.query.patch import Patch
from router.query.plan import ids_by_shard, targets
from shard_config.model import Collection, ShardMap
from shard_config.partition import locate

__all__ = ["Writer"]


class Writer:
    """Writes of one shard map."""

    def __init__(self, shard_map: ShardMap, primaries: Primaries) -> None:
        self._map = shard_map
        self._primaries = primaries

    def __repr__(self) -> str:
        return f"<Writer map {self._map.version}, {self._primaries!r}>"

    async def upsert(
        self, collection: Collection, documents: Sequence[Document], deadline: float
    ) -> UpsertOutcome:
        """Store `documents`, each shard's in one transaction; ids must not repeat among them."""
        groups: dict[str, list[Document]] = defaultdict(list)
        # A transaction keeps the rows it has locked; all take them by rising id, so that no two wait for
        # each other.
        for document in sorted(documents, key=_order):
            groups[locate(collection.sharding, key_of(collection, document))].append(document)
        if not collection.sharded_by_id:
            shards = self._map.shards_of(collection)
            return await store_unique(self._primaries, collection, shards, groups, deadline)
        outcomes = await self._primaries.run(
            collection.name, {shard: _storing(collection, part) for shard, part in groups.items()}, deadline
        )
        return upsert_outcome(groups, outcomes)

    async def delete(self, collection: Collection, ids: Sequence[object], deadline: float) -> DeleteOutcome:
        """Delete the documents with these ids, wherever they are; what has no place is nowhere."""
        statements = {
            shard: sql.delete_by_ids(collection, part)
            for shard, part in ids_by_shard(ids, collection, self._map).items()
        }
        return await self._delete(collection, statements, deadline)

    async def delete_matching(self, collection: Collection, filter: Filter, deadline: float) -> DeleteOutcome:
        """Delete every document that `filter` matches."""
        statement = sql.delete_matching(collection, filter)
        shards = targets(filter, collection, self._map)
        return await self._delete(collection, dict.fromkeys(shards, statement), deadline)

    async def patch(
        self, collection: Collection, ids: Sequence[object], patch: Patch, deadline: float
    ) -> PatchOutcome:
        """Change the documents with these ids, each shard's in one transaction; none moves or is added."""
        work = {
            shard: _patching(collection, patch, partial(patch_by_ids, collection, part, patch))
            for shard, part in ids_by_shard(ids, collection, self._map).items()
        }
        return await self._patch(collection, work, deadline)

    async def patch_matching(
        self, collection: Collection, filter: Filter, patch: Patch, deadline: float
    ) -> PatchOutcome:
        """Change every document that `filter` matches."""
        work = _patching(collection, patch, partial(patch_matching, collection, filter, patch))
        shards = targets(filter, collection, self._map)
        return await self._patch(collection, dict.fromkeys(shards, work), deadline)

    async def _patch(
        self,
        collection: Collection,
        work: Mapping[str, Callable[[Connection], Awaitable[Patched]]],
        deadline: float,
    ) -> PatchOutcome:
        outcomes = await self._primaries.run(collection.name, work, deadline)
        done = {shard: outcome.value or Patched(0, 0) for shard, outcome in outcomes.items()}
        writes = tuple(
            shard_write(shard, outcome, done[shard].changed) for shard, outcome in outcomes.items()
        )
        found = sum(one.found for one in done.values())
        return PatchOutcome(found, sum(write.rows for write in writes), writes)

    async def _delete(
        self, collection: Collection, statements: Mapping[str, sql.Statement], deadline: float
    ) -> DeleteOutcome:
        outcomes = await self._primaries.run(
            collection.name,
            {shard: _executing(collection, statement) for shard, statement in statements.items()},
            deadline,
        )
        writes = tuple(shard_write(shard, outcome, outcome.value or 0) for shard, outcome in outcomes.items())
        return DeleteOutcome(sum(write.rows for write in writes), writes)


def _order(document: Document) -> Any:
    """Ids of one collection are of one type, and its order is the same in every router."""
    return document.id


def _storing(
    collection: Collection, documents: Sequence[Document]
) -> Callable[[Connection], Awaitable[dict[int, str]]]:
    async def work(connection: Connection) -> dict[int, str]:
        return await explained(
            connection, collection, lambda: store_documents(connection, collection, documents)
        )

    return work


def _executing(collection: Collection, statement: sql.Statement) -> Callable[[Connection], Awaitable[int]]:
    async def work(connection: Connection) -> int:
        def once() -> Awaitable[int]:
            return delete(connection, statement.sql, statement.args)

        return await explained(connection, collection, lambda: repeated(connection, once))

    return work


def _patching(
    collection: Collection, wanted: Patch, statement: Callable[[frozenset[str]], PatchStatement]
) -> Callable[[Connection], Awaitable[Patched]]:
    async def work(connection: Connection) -> Patched:
        async def once() -> Patched:
            defaulted: frozenset[str] = frozenset()
            if wanted.unset:
                asked = sql.defaulted_columns(collection)
                defaulted = frozenset(row[0] for row in await connection.fetch(asked.sql, *asked.args))
            return await patch(connection, statement(defaulted))

        return await explained(connection, collection, lambda: repeated(connection, once))

    return work
