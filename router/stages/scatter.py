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

from router.freshness.freshness import Freshness
from router.postgres.search import SearchStatements
from router.query.answer import coverage_of, raise_if_unanswered, shortfall
from router.query.errors import OverloadedError, UnavailableError
from router.query.merge import Ranked, merge, page, within
from router.query.plan import Plan, depths, plan_search
from router.query.second_look import added, combined, unsettled
from router.query.sizes import Layout, layout
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
from router.stages.answer_memory import AnswerMemory
from router.stages.columns import Columns, Hits, RankedHit, RowsChangedError, write_hits
from router.stages.fanout import Fanout, time_to_stop
from router.stages.stage import Figures
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
    scan_limited: bool = False  # some shard's rows rest on a scan that ended too early


class Scatter:
    """The innermost stage: from a collection's query to shards' probes and back."""

    def __init__(
        self, shard_map: ShardMap, fanout: Fanout, freshness: Freshness, memory: AnswerMemory
    ) -> None:
        self._map = shard_map
        self._fanout = fanout
        self._freshness = freshness
        self._statements = SearchStatements()
        self._columns = Columns(fanout, freshness, memory)

    def __repr__(self) -> str:
        return f"<Scatter map {self._map.version}, {self._fanout!r}>"

    async def search(self, query: SearchQuery, deadline: float) -> Found:
        """The merged answer.

        Raises:
            UnavailableError, DeadlineError: no shard answered, or not all did and the query wants all.
            OverloadedError: a shard's queues are full, or there is no memory for a large answer.
            AnswerTooLargeError: it would be larger than an answer may be.
        """
        stop = time_to_stop(deadline)
        try:
            answer = await self._search(query, stop)
        except RowsChangedError:
            # A search that begins now finds the rows as they are now.
            try:
                answer = await self._search(query, stop)
            except RowsChangedError as exc:
                raise UnavailableError("documents were deleted or changed while they were read") from exc
        return Found(answer, "miss" if query.cached else "bypass")

    def describe(self) -> Figures:
        return {}

    async def _search(self, query: SearchQuery, stop: float) -> Answer:
        wanted = depths(query)
        # One more of each shard shows whether rows beyond are as near as the last.
        rows = sum(wanted) + len(wanted)
        brings = layout(query.collection, query.include, rows, len(self._map.shards_of(query.collection)))
        if len(wanted) == 1:
            searches = [await self._at(wanted[0], query, brings, query.caller, stop)]
        else:
            searches = await self._at_each(wanted, query, brings, stop)
        return await self._answer(query, brings, searches, stop)

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
            return _Searched(plan, parts, ranked, scan_limited=True)
        better = {
            name: added(parts[name], part)
            for name, part in found.items()
            if part.report.state is ShardState.OK
        }
        parts = parts | better
        return _Searched(plan, parts, _ranked(parts, depth), scan_limited=len(better) < len(again))

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

    async def _answer(
        self, query: SearchQuery, brings: Layout, searches: list[_Searched], stop: float
    ) -> Answer:
        parts, total = searches[0].parts, searches[0].plan.total
        reports = {shard: part.report for shard, part in parts.items()}
        if len(searches) > 1:
            reports = {shard: combined([one.parts[shard].report for one in searches]) for shard in parts}
        coverage = coverage_of(list(reports.values()), total)
        raise_if_unanswered(coverage, list(reports.values()), allow_partial=query.allow_partial)
        if len(searches) > 1 and not coverage.full:
            # What is missing at one depth would be repeated or lost by another.
            searches = [_without(one, {failure.shard for failure in coverage.failures}) for one in searches]
        # Cut here and not on the shards, where too near a limit would look like too few rows.
        near = [(one.plan.depth, within(one.ranked, query.max_distance)) for one in searches]
        kept = page(near, query.offset, query.k)
        if _lacks_columns(query, brings, kept):
            hits = await self._columns.hits(query, _to_complete(kept, brings), reports, stop)
            # A shard may have failed since.
            coverage = coverage_of(list(reports.values()), total)
            raise_if_unanswered(coverage, list(reports.values()), allow_partial=query.allow_partial)
        else:
            counts = dict.fromkeys(parts, 0)
            for _, shard in kept:
                counts[shard] += 1
            hits = Hits(await write_hits(query, kept, brings.fixed_bytes), counts)
        count = sum(hits.counts.values())
        scan_limited = any([one.scan_limited for one in searches])
        short = None
        if count < query.k:
            too_far = sum(len(rows) for _, rows in near) < sum(len(one.ranked) for one in searches)
            short = shortfall(query, count, coverage, scan_limited=scan_limited, too_far=too_far)
        return Answer(
            hits=msgspec.Raw(hits.pieces[0]),
            count=count,
            coverage=coverage,
            short=short,
            reports=tuple([msgspec.structs.replace(r, kept=hits.counts[r.shard]) for r in reports.values()]),
            cacheable=coverage.full and not coverage.stale and not scan_limited,
            more=tuple(hits.pieces[1:]),
            held=hits.held,
        )


def _ranked(parts: Mapping[str, ShardRows], depth: int) -> list[Ranked]:
    return merge({name: part.rows for name, part in parts.items()}, depth)


def _without(searched: _Searched, missing: set[str]) -> _Searched:
    parts = {name: part for name, part in searched.parts.items() if name not in missing}
    return searched._replace(parts=parts, ranked=_ranked(parts, searched.plan.depth))


def _lacks_columns(query: SearchQuery, brings: Layout, kept: Sequence[Ranked]) -> bool:
    """Whether some row has come without columns that the answer shows."""
    if not kept or not query.include:
        return False
    # Behind it, a row of a statement for several searches has its search's number.
    fits = 2 + len(brings.inline)
    return query.include != brings.inline or (brings.guarded and not all([row[fits] for row, _ in kept]))


def _to_complete(kept: Sequence[Ranked], brings: Layout) -> list[RankedHit]:
    """What came with the rows of a guarded statement, or with none."""
    if not brings.guarded:
        return [RankedHit(row, shard, fetched=False) for row, shard in kept]
    fits = 2 + len(brings.inline)
    return [
        RankedHit(
            row[:fits],
            shard,
            fetched=row[fits],
            size_bytes=sum([len(v) for v in row[2:fits] if isinstance(v, str)]),
        )
        for row, shard in kept
    ]
