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


class _Searched(NamedTuple):
    """What one search has found: `ranked` are the nearest rows of all parts."""

    plan: Plan
    parts: dict[str, ShardRows]
    ranked: list[Ranked]
    scan_limited: bool = False  # some shard's rows rest on a scan that ended too early


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
        wanted = depths(query)
        if len(wanted) == 1:
            searches = [await self._at(wanted[0], query, query.caller, stop)]
        else:
            searches = await self._at_each(wanted, query, stop)
        return Found(self._answer(query, searches), "miss" if query.cached else "bypass")

    async def _at_each(self, wanted: Sequence[int], query: SearchQuery, stop: float) -> list[_Searched]:
        """The searches of a page, all at once."""
        # Others go between them, as between those of a batch.
        caller = object() if query.caller is None else query.caller
        tasks = [asyncio.create_task(self._at(depth, query, caller, stop)) for depth in wanted]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _at(self, depth: int, query: SearchQuery, caller: Hashable, stop: float) -> _Searched:
        """The nearest `depth` rows."""
        plan = plan_search(query, self._map, depth)
        parts = await self._fanout.fetch(self._probes(query, plan, plan.targets, caller), stop)
        ranked = _ranked(parts, depth)
        look = unsettled(plan, parts, ranked)
        if look is None:
            return _Searched(plan, parts, ranked)
        scan, again = look
        second = plan_search(query, self._map, depth, scan=scan)
        try:
            found = await self._fanout.fetch(self._probes(query, second, again, caller), stop)
        except OverloadedError:
            return _Searched(plan, parts, ranked, scan_limited=True)
        better = {
            name: added(parts[name], part)
            for name, part in found.items()
            if part.report.state is ShardState.OK
        }
        parts = parts | better
        return _Searched(plan, parts, _ranked(parts, depth), scan_limited=len(better) < len(again))

    def _probes(
        self, query: SearchQuery, plan: Plan, shards: Sequence[str], caller: Hashable
    ) -> dict[str, Probe]:
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
        return {
            shard: Probe(
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
            )
            for shard in shards
        }

    def _answer(self, query: SearchQuery, searches: list[_Searched]) -> Answer:
        parts = searches[0].parts
        reports = [part.report for part in parts.values()]
        if len(searches) > 1:
            reports = [combined([one.parts[shard].report for one in searches]) for shard in parts]
        coverage = coverage_of(reports, searches[0].plan.total)
        raise_if_unanswered(coverage, reports, allow_partial=query.allow_partial)
        if len(searches) > 1 and not coverage.full:
            # What is missing at one depth would be repeated or lost by another.
            searches = [_without(one, {failure.shard for failure in coverage.failures}) for one in searches]
        # Cut here and not on the shards, where too near a limit would look like too few rows.
        near = [(one.plan.depth, within(one.ranked, query.max_distance)) for one in searches]
        kept = page(near, query.offset, query.k)
        counts = dict.fromkeys(parts, 0)
        for _, shard in kept:
            counts[shard] += 1
        scan_limited = any([one.scan_limited for one in searches])
        short = None
        if len(kept) < query.k:
            too_far = sum(len(rows) for _, rows in near) < sum(len(one.ranked) for one in searches)
            short = shortfall(query, len(kept), coverage, scan_limited=scan_limited, too_far=too_far)
        return Answer(
            hits=encode_hits(kept, query.collection, result_columns(query.collection, query.include)),
            count=len(kept),
            coverage=coverage,
            short=short,
            reports=tuple([msgspec.structs.replace(r, kept=counts[r.shard]) for r in reports]),
            cacheable=coverage.full and not coverage.stale and not scan_limited,
        )


def _ranked(parts: Mapping[str, ShardRows], depth: int) -> list[Ranked]:
    return merge({name: part.rows for name, part in parts.items()}, depth)


def _without(searched: _Searched, missing: set[str]) -> _Searched:
    parts = {name: part for name, part in searched.parts.items() if name not in missing}
    return searched._replace(parts=parts, ranked=_ranked(parts, searched.plan.depth))
