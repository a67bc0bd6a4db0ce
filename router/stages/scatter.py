"""One search becomes probes, one per shard; the shards' rows become one answer.

A page below the first is made of several searches, at once, of rising depths; see `depths`.

This stage owns the deadline: it stops a little before it, cancels what has not answered, and
everything below is cancelled by it. A shard that is missing is data in the answer; only when no shard
answered, or the caller insists on all, is it an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from router.freshness.freshness import Freshness
from router.policy.deadline import stop_before
from router.postgres.search import SearchStatements
from router.query.answer import coverage_of, joined, raise_if_unanswered
from router.query.errors import OverloadedError
from router.query.merge import merge, page, within
from router.query.plan import Plan, depths, plan_search
from router.query.ranked import Ranked, RankedAnswer
from router.query.second_look import not_settled, unsettled
from router.query.sizes import Layout, layout
from router.query.types import (
    Consistency,
    Probe,
    Scan,
    SearchQuery,
    ShardRows,
    ShardState,
    Unsettled,
    Work,
)
from router.query.wire import to_wire
from router.stages.fanout import Fanout
from shard_config.model import ShardMap

__all__ = ["Scatter"]

# A statement for more rows than this is for one search: several would keep a node, and whoever waits for it,
# for as many times as long.
_ROWS_TOGETHER = 256


class _Searched(NamedTuple):
    """What one search has found: `ranked` are the nearest rows of all parts."""

    plan: Plan
    parts: dict[str, ShardRows]
    ranked: list[Ranked]
    unsettled: tuple[Unsettled, ...] = ()


class Scatter:
    """The innermost stage: from a collection's query to shards' probes and back."""

    def __init__(self, shard_map: ShardMap, fanout: Fanout, freshness: Freshness) -> None:
        self._map = shard_map
        self._fanout = fanout
        self._freshness = freshness
        self._statements = SearchStatements()

    def __repr__(self) -> str:
        return f"<Scatter map {self._map.version}, {self._fanout!r}>"

    def expected(self, query: SearchQuery) -> tuple[float, float]:
        """Seconds that it would wait for the nodes, and that each of many like it takes; 0 if not known."""
        wanted = depths(query)
        plan, brings = plan_search(query, self._map, wanted[-1]), self._layout(query, wanted)
        return self._fanout.expected(self._probes(query, plan, brings, plan.targets, query.caller))

    async def search(self, query: SearchQuery, deadline: float) -> RankedAnswer:
        """The merged answer; of a wide row, the columns are still to be read.

        Raises:
            UnavailableError, DeadlineError: no shard answered, or not all did and the query wants all.
            OverloadedError: a shard's queues are full.
        """
        stop = stop_before(deadline, asyncio.get_running_loop().time())
        wanted = depths(query)
        brings = self._layout(query, wanted)
        if len(wanted) == 1:
            searches = [await self._at(wanted[0], query, brings, query.caller, stop)]
        else:
            searches = await self._at_each(wanted, query, brings, stop)
        return self._answer(query, brings, searches)

    def _layout(self, query: SearchQuery, wanted: Sequence[int]) -> Layout:
        # One more of each shard shows whether rows beyond are as near as the last.
        rows = sum(wanted) + len(wanted)
        return layout(query.collection, query.include, rows, len(self._map.shards_of(query.collection)))

    async def _at_each(
        self, wanted: Sequence[int], query: SearchQuery, brings: Layout, stop: float
    ) -> list[_Searched]:
        """The searches of a page, all at once."""
        # Others go between them, as between those of a batch.
        caller = object() if query.caller is None else query.caller
        tasks = [asyncio.create_task(self._at(depth, query, brings, caller, stop)) for depth in wanted]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            tasks.clear()  # an error holds the frames that it passes, and this one would hold it in turn

    async def _at(
        self, depth: int, query: SearchQuery, brings: Layout, caller: Hashable, stop: float
    ) -> _Searched:
        """The nearest `depth` rows."""
        plan = plan_search(query, self._map, depth)
        parts = await self._fanout.fetch(self._probes(query, plan, brings, plan.targets, caller), stop)
        ranked = _ranked(parts, depth)
        look = unsettled(plan, parts, ranked)
        if look is None:
            return _Searched(plan, parts, ranked)
        scan, again = look
        second = plan_search(query, self._map, depth, scan=scan)
        try:
            found = await self._fanout.fetch(self._probes(query, second, brings, again, caller), stop)
        except OverloadedError:
            return _Searched(plan, parts, ranked, not_settled(scan, again))
        better = {
            name: ShardRows(part.rows, joined(part.report, parts[name].report))
            for name, part in found.items()
            if part.report.state is ShardState.OK
        }
        parts = parts | better
        missing = [name for name in again if name not in better]
        return _Searched(plan, parts, _ranked(parts, depth), not_settled(scan, missing))

    def _probes(
        self, query: SearchQuery, plan: Plan, brings: Layout, shards: Sequence[str], caller: Hashable
    ) -> dict[str, Probe]:
        statement = self._statements.search(
            query.collection,
            to_wire(query.vector, query.collection.vector.type),
            limit=plan.limit,
            candidates=plan.candidates,
            ef_search=plan.ef_search,
            scan=plan.scan,
            filter=query.filter,
            layout=brings,
        )
        exact = plan.scan is Scan.EXACT
        alone = query.plan or plan.limit > _ROWS_TOGETHER
        return {
            shard: Probe(
                statement.shape,
                statement.args,
                plan.asked,
                plan.limit,
                key=None if alone else statement.key,
                ef_search=None if exact else plan.ef_search,
                caller=caller,
                primary_only=query.consistency is Consistency.STRONG,
                min_lsn=self._freshness.position(shard),
                plan=query.plan,
                work=Work.SCAN if exact else Work.NEAREST,
            )
            for shard in shards
        }

    def _answer(self, query: SearchQuery, brings: Layout, searches: list[_Searched]) -> RankedAnswer:
        parts, total = searches[0].parts, searches[0].plan.total
        reports = {shard: part.report for shard, part in parts.items()}
        if len(searches) > 1:
            # The deepest of them had most to do.
            deepest_first = [one.parts for one in reversed(searches)]
            reports = {
                shard: joined(*[found[shard].report for found in deepest_first], at_once=True)
                for shard in parts
            }
        coverage = coverage_of(list(reports.values()), total)
        raise_if_unanswered(coverage, list(reports.values()), allow_partial=query.allow_partial)
        if len(searches) > 1 and not coverage.full:
            # What is missing at one depth would be repeated or lost by another.
            searches = [_without(one, {failure.shard for failure in coverage.failures}) for one in searches]
        # Cut here and not on the shards, where too near a limit would look like too few rows.
        near = [(one.plan.depth, within(one.ranked, query.max_distance)) for one in searches]
        unsettled = {shard: None for one in searches for shard in one.unsettled}
        return RankedAnswer(
            rows=page(near, query.offset, query.k),
            layout=brings,
            coverage=coverage,
            reports=reports,
            too_far=any([len(rows) < len(one.ranked) for (_, rows), one in zip(near, searches, strict=True)]),
            unsettled=tuple(unsettled),
        )


def _ranked(parts: Mapping[str, ShardRows], depth: int) -> list[Ranked]:
    return merge({name: part.rows for name, part in parts.items()}, depth)


def _without(searched: _Searched, missing: set[str]) -> _Searched:
    parts = {name: part for name, part in searched.parts.items() if name not in missing}
    return searched._replace(parts=parts, ranked=_ranked(parts, searched.plan.depth))
