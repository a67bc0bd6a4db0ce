"""Counts by the values of fields, from the same replica sets that searches use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from router.documents.types import FacetsAnswer
from router.freshness.freshness import Freshness
from router.policy.deadline import stop_before
from router.postgres.facets import facets
from router.query.answer import coverage_of, raise_if_unanswered
from router.query.facets import Facet, FacetField, facet_of
from router.query.filter import Filter
from router.query.plan import targets
from router.query.types import Probe, Shape, Work
from router.stages.fanout import Fanout
from shard_config.model import Collection, ShardMap

__all__ = ["Facets"]

_MOST_AT_ONCE = 500


class Facets:
    """Reads of one shard map; a shard brings at most `most` values of a field."""

    def __init__(self, shard_map: ShardMap, fanout: Fanout, freshness: Freshness, most: int) -> None:
        self._map = shard_map
        self._fanout = fanout
        self._freshness = freshness
        self._most = most

    def __repr__(self) -> str:
        return f"<Facets map {self._map.version}, {self._most} values>"

    async def count(
        self,
        collection: Collection,
        fields: Sequence[FacetField],
        filter: Filter | None,
        limit: int,
        deadline: float,
    ) -> FacetsAnswer:
        """For each field the `limit` values that most matching documents have, on the shards that answered.

        Raises:
            UnavailableError, DeadlineError: none of them did.
        """
        statement = facets(collection, fields, filter, self._most)
        stop = stop_before(deadline, asyncio.get_running_loop().time())
        rows = len(fields) * (self._most + 3)
        probes = {
            shard: Probe(
                Shape(statement.sql),
                statement.args,
                rows,
                rows,
                min_lsn=self._freshness.position(shard),
                work=Work.FACETS,
            )
            for shard in targets(filter, collection, self._map)
        }
        parts = await self._fanout.fetch(probes, stop) if probes else {}
        reports = [part.report for part in parts.values()]
        coverage = coverage_of(reports, len(self._map.shards_of(collection)))
        raise_if_unanswered(coverage, reports, allow_partial=True)
        counted = []
        for i, field in enumerate(fields):
            groups = {
                shard: [(row[3 + i], row[1], row[2]) for row in part.rows if row[0] == i]
                for shard, part in parts.items()
            }
            count: Callable[[], Facet] = partial(facet_of, field, groups, limit, self._most)
            # Of thousands of values it takes milliseconds, in which everybody else is to have turns.
            many = sum(map(len, groups.values())) > _MOST_AT_ONCE
            counted.append(await asyncio.to_thread(count) if many else count())
        return FacetsAnswer(tuple(counted), coverage)
