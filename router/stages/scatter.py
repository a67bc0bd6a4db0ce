"""One search becomes probes, one per shard; the shards' rows become one answer.

A page below the first is made of several searches, at once, of rising depths; see `depths`.

This stage owns the deadline: it stops a little before it, cancels what has not answered, and
everything below is cancelled by it. A shard that is missing is data in the answer; only when no shard
answered, or the caller insists on all, is it an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence

import msgspec

from router.postgres.search import SearchStatements
from router.postgres.sql import result_columns
from router.query.answer import coverage_of, encode_hits, raise_if_unanswered, shortfall
from router.query.errors import OverloadedError
from router.query.merge import Ranked, merge, page, within
from router.query.plan import Plan, depths, plan_search
from router.query.second_look import added, combined, unsettled
from router.query.types import (
    Answer,
    Consistency,
    Found,
    Probe,
    Scan,
    SearchQuery,
    ShardRows,
    ShardState,
    Work,
)
from router.query.wire import to_wire
from router.shared import Shared
from router.stages.fanout import Fanout
from shard_config.model import ShardMap

__all__ = ["Scatter"]

# What is left of the deadline for merging and encoding: a tenth of short ones, 10 ms of long ones.
_MARGIN_SHARE = 0.1
_MARGIN_MOST = 0.010


class _Search:
    """One of a page's searches; its parts are replaced by better ones."""

    __slots__ = ("parts", "plan", "ranked")

    def __init__(self, plan: Plan, parts: dict[str, ShardRows]) -> None:
        self.plan = plan
        self.parts = parts
        self.rank()

    def rank(self) -> None:
        self.ranked = merge({name: part.rows for name, part in self.parts.items()}, self.plan.depth)


class Scatter:
    """The innermost stage: from a collection's query to shards' probes and back."""

    def __init__(self, shard_map: ShardMap, fanout: Fanout, shared: Shared) -> None:
        self._map = shard_map
        self._fanout = fanout
        self._shared = shared
        self._statements = SearchStatements()

    def __repr__(self) -> str:
        return f"<Scatter map {self._map.version}, {self._fanout!r}>"

    async def search(self, query: SearchQuery, deadline: float) -> Found:
        """The merged answer.

        Raises:
            UnavailableError, DeadlineError: no shard answered, or not all did and the query wants all.
            OverloadedError: a shard's queues are full.
        """
        remaining = deadline - asyncio.get_running_loop().time()
        stop = deadline - min(_MARGIN_MOST, _MARGIN_SHARE * max(remaining, 0.0))
        plans = [plan_search(query, self._map, depth) for depth in depths(query)]
        # Others go between the several searches of a page, as between those of a batch.
        caller = object() if query.caller is None and len(plans) > 1 else query.caller
        found = await self._fetch(query, [(plan, plan.targets) for plan in plans], caller, stop)
        searches = [_Search(plan, parts) for plan, parts in zip(plans, found, strict=True)]
        again = [
            (search, plan_search(query, self._map, search.plan.depth, scan=look[0]), look[1])
            for search in searches
            if (look := unsettled(search.plan, search.parts, search.ranked)) is not None
        ]
        scan_limited = bool(again) and await self._look_again(query, again, caller, stop)
        return Found(self._answer(query, searches, scan_limited), "miss" if query.cached else "bypass")

    async def _look_again(
        self,
        query: SearchQuery,
        again: Sequence[tuple[_Search, Plan, list[str]]],
        caller: Hashable,
        stop: float,
    ) -> bool:
        """Ask the shards whose rows do not settle their search once more, in the time that is left.

        Returns whether some shard's rows still rest on a scan that ended too early.
        """
        try:
            found = await self._fetch(query, [(plan, shards) for _, plan, shards in again], caller, stop)
        except OverloadedError:
            return True
        limited = False
        for (search, _, _), parts in zip(again, found, strict=True):
            for name, part in parts.items():
                if part.report.state is ShardState.OK:
                    search.parts[name] = added(search.parts[name], part)
                else:
                    limited = True
            search.rank()
        return limited

    async def _fetch(
        self,
        query: SearchQuery,
        asked: Sequence[tuple[Plan, Sequence[str]]],
        caller: Hashable,
        stop: float,
    ) -> list[dict[str, ShardRows]]:
        """The parts of each plan's shards, all asked at once.

        Raises:
            OverloadedError: a shard's queues are full.
        """
        probes = [pair for plan, shards in asked for pair in self._probes(query, plan, shards, caller)]
        parts = iter(await self._fanout.fetch_all(probes, stop))
        return [{shard: next(parts) for shard in shards} for _, shards in asked]

    def _probes(
        self, query: SearchQuery, plan: Plan, shards: Sequence[str], caller: Hashable
    ) -> list[tuple[str, Probe]]:
        end = query.offset + query.k
        # Rows of the list's earlier parts are only counted; and of a search's rows none is shown that is not
        # among as many of its shard as the page's end counts.
        include = query.include if plan.depth > query.offset else frozenset[str]()
        statement = self._statements.search(
            query.collection,
            to_wire(query.vector, query.collection.vector.type),
            limit=plan.limit,
            candidates=plan.candidates,
            ef_search=plan.ef_search,
            scan=plan.scan,
            filter=query.filter,
            include=include,
            shown=end if include and plan.depth > end else None,
        )
        exact = plan.scan is Scan.EXACT
        return [
            (
                shard,
                Probe(
                    statement.shape,
                    statement.args,
                    plan.asked,
                    plan.limit,
                    key=None if query.plan else statement.key,
                    ef_search=None if exact else plan.ef_search,
                    caller=caller,
                    primary_only=query.consistency is Consistency.STRONG,
                    min_lsn=self._shared.position(shard),
                    plan=query.plan,
                    work=Work.SCAN if exact else Work.NEAREST,
                ),
            )
            for shard in shards
        ]

    def _answer(self, query: SearchQuery, searches: Sequence[_Search], scan_limited: bool) -> Answer:
        plan, parts = searches[0].plan, searches[0].parts
        reports = [part.report for part in parts.values()]
        if len(searches) > 1:
            reports = [combined([search.parts[shard].report for search in searches]) for shard in parts]
        coverage = coverage_of(reports, plan.total)
        raise_if_unanswered(coverage, reports, allow_partial=query.allow_partial)
        if not coverage.full and len(searches) > 1:
            # What is missing at one depth would be repeated or lost by another.
            for search in searches:
                for failure in coverage.failures:
                    del search.parts[failure.shard]
                search.rank()
        # Cut here and not on the shards, where too near a limit would look like too few rows.
        near = [(search.plan.depth, within(search.ranked, query.max_distance)) for search in searches]
        kept = page(near, query.offset, query.k)
        counts = dict.fromkeys(plan.targets, 0)
        for _, shard in kept:
            counts[shard] += 1
        return Answer(
            hits=encode_hits(kept, query.collection, result_columns(query.collection, query.include)),
            count=len(kept),
            coverage=coverage,
            short=shortfall(
                query,
                len(kept),
                coverage,
                scan_limited=scan_limited,
                too_far=query.max_distance is not None and _cut(near, searches),
            ),
            reports=tuple([msgspec.structs.replace(r, kept=counts[r.shard]) for r in reports]),
            cacheable=coverage.full and not coverage.stale and not scan_limited,
        )


def _cut(near: Sequence[tuple[int, list[Ranked]]], searches: Sequence[_Search]) -> bool:
    """Whether rows were found that lie too far away."""
    return any(len(rows) < len(search.ranked) for (_, rows), search in zip(near, searches, strict=True))
