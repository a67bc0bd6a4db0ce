"""Stored vectors of documents that a request names: the examples of a search for more like them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from router.freshness.freshness import Freshness
from router.policy.deadline import stop_before
from router.postgres import sql
from router.query.answer import coverage_of, raise_if_stale, raise_if_unanswered
from router.query.plan import ids_by_shard
from router.query.types import Consistency, Probe, Shape, Work
from router.query.wire import from_wire_bytes
from router.stages.fanout import Fanout
from shard_config.model import Collection, ShardMap

__all__ = ["StoredVectors"]

_VECTOR = frozenset({"vector"})


class StoredVectors:
    """Reads of one shard map; fresh with regard to writes through this router's workers."""

    def __init__(self, shard_map: ShardMap, fanout: Fanout, freshness: Freshness) -> None:
        self._map = shard_map
        self._fanout = fanout
        self._freshness = freshness

    def __repr__(self) -> str:
        return f"<StoredVectors map {self._map.version}>"

    async def read(
        self, collection: Collection, ids: Sequence[object], consistency: Consistency, deadline: float
    ) -> dict[object, bytes | None]:
        """The vectors of those documents that exist, as little-endian float32; None where there is none.

        Raises:
            UnavailableError, DeadlineError: a shard that may hold one of them did not answer, or was read
                from a node that is behind, which cannot prove that it is not there.
            OverloadedError: a shard's queues are full.
        """
        stop = stop_before(deadline, asyncio.get_running_loop().time())
        probes = {
            shard: self._probe(collection, shard, part, consistency)
            for shard, part in ids_by_shard(ids, collection, self._map).items()
        }
        parts = await self._fanout.fetch(probes, stop)
        reports = [part.report for part in parts.values()]
        coverage = coverage_of(reports, len(self._map.shards_of(collection)))
        raise_if_unanswered(coverage, reports, allow_partial=False)
        found: dict[object, bytes | None] = {}
        # A node that is behind may still show a document as it was, or where it was before it moved.
        for part in sorted(parts.values(), key=lambda part: not part.report.stale):
            for id_, data in part.rows:
                found[id_] = None if data is None else from_wire_bytes(data, collection.vector.type)
        if any(found.get(id_) is None for id_ in ids):
            raise_if_stale(reports, "a document whose vector was not found may have one by now")
        return found

    def _probe(
        self, collection: Collection, shard: str, ids: list[object], consistency: Consistency
    ) -> Probe:
        statement = sql.select_by_ids(collection, ids, _VECTOR)
        return Probe(
            Shape(statement.sql),
            statement.args,
            len(ids),
            len(ids),
            primary_only=consistency is Consistency.STRONG,
            min_lsn=self._freshness.position(shard),
            work=Work.COLUMNS,
        )
