"""A search for words becomes probes, one per shard; the shards' rows become one answer.

As `router.stages.scatter` does for nearest rows, and simpler, since every shard's ranking is exact: its first
rows are all that the merged answer can need of it, and pages are windows of one list. Like there, a shard
that is missing is data in the answer.
"""

from __future__ import annotations

import asyncio

import msgspec

from router.freshness.freshness import Freshness
from router.policy.deadline import stop_before
from router.postgres.words import words_search
from router.query.answer import coverage_of, raise_if_unanswered
from router.query.errors import InvalidError
from router.query.filter import constant
from router.query.hits import words_score
from router.query.merge import merge
from router.query.plan import targets
from router.query.ranked import RankedAnswer
from router.query.sizes import Layout, layout_for
from router.query.types import Consistency, Probe, SearchQuery, Shape, ShardRows, Work
from router.stages.fanout import Fanout
from router.stages.stage import Figures
from shard_config.model import ShardMap

__all__ = ["FulltextScatter"]


class FulltextScatter:
    """The innermost stage of searches for words: from a query to shards' probes and back."""

    def __init__(self, shard_map: ShardMap, fanout: Fanout, freshness: Freshness) -> None:
        self._map = shard_map
        self._fanout = fanout
        self._freshness = freshness

    def __repr__(self) -> str:
        return f"<FulltextScatter map {self._map.version}, {self._fanout!r}>"

    def expected(self, query: SearchQuery) -> tuple[float, float]:
        """Seconds that it would wait for the nodes, and that each of many like it takes; 0 if not known."""
        return self._fanout.expected(self._probes(query, self._layout(query)))

    async def search(self, query: SearchQuery, deadline: float) -> RankedAnswer:
        """The merged answer; of a wide row, the columns are still to be read.

        Each hit shows its `score` in place of a distance, which in the rows is the negated score.

        Raises:
            InvalidError: the collection has no full text.
            UnavailableError, DeadlineError: no shard answered, or not all did and the query wants all.
            OverloadedError: a shard's queues are full.
        """
        stop = stop_before(deadline, asyncio.get_running_loop().time())
        if query.filter is not None and constant(query.filter) is True:
            query = msgspec.structs.replace(query, filter=None)
        layout = self._layout(query)
        parts = await self._fanout.fetch(self._probes(query, layout), stop)
        wordless = {shard for shard, part in parts.items() if _is_wordless(part)}
        for shard in wordless:
            parts[shard] = ShardRows([], msgspec.structs.replace(parts[shard].report, returned=0))
        reports = {shard: part.report for shard, part in parts.items()}
        coverage = coverage_of(list(reports.values()), len(self._map.shards_of(query.collection)))
        raise_if_unanswered(coverage, list(reports.values()), allow_partial=query.allow_partial)
        ranked = merge({shard: part.rows for shard, part in parts.items()}, query.offset + query.k)
        rows = ranked[query.offset :]
        return RankedAnswer(
            rows=rows,
            layout=layout,
            coverage=coverage,
            reports=reports,
            notes=[b'"score":%r' % words_score(row[1]) for row, _ in rows],
            wordless=bool(wordless),
        )

    def describe(self) -> Figures:
        return {}

    def _layout(self, query: SearchQuery) -> Layout:
        shards = len(self._map.shards_of(query.collection))
        return layout_for(query.collection, query.include, query.offset + query.k, shards)

    def _probes(self, query: SearchQuery, layout: Layout) -> dict[str, Probe]:
        collection, limit = query.collection, query.offset + query.k
        if collection.fulltext is None or query.words is None:
            raise InvalidError(f"collection {collection.name} has no full text")
        statement = words_search(
            collection,
            collection.fulltext,
            query.words,
            match=query.match,
            limit=limit,
            filter=query.filter,
            layout=layout,
        )
        shape = Shape(statement.sql)
        return {
            shard: Probe(
                shape,
                statement.args,
                limit,
                limit,
                caller=query.caller,
                primary_only=query.consistency is Consistency.STRONG,
                min_lsn=self._freshness.position(shard),
                plan=query.plan,
                work=Work.WORDS,
            )
            for shard in targets(query.filter, collection, self._map)
        }


def _is_wordless(part: ShardRows) -> bool:
    return bool(part.rows) and part.rows[0][0] is None
