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
from router.shared import Shared
from router.stages.answer_memory import AnswerMemory
from router.stages.columns import Columns, Hits, RankedHit, RowsChangedError, write_hits
from router.stages.fanout import Fanout
from shard_config.model import ShardMap

__all__ = ["Scatter"]

# What is left of the deadline for merging and encoding: a tenth of short ones, 10 ms of long ones.
_MARGIN_SHARE = 0.1
_MARGIN_MOST = 0.010
# A statement for more rows than this is for one search: several would keep a node, and whoever waits for it,
# for as many times as long.
_ROWS_TOGETHER = 256


class _Ask(msgspec.Struct, frozen=True):
    """What all statements of one search have in common."""

    query: SearchQuery
    brings: Layout
    caller: Hashable
    stop: float


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

    def __init__(self, shard_map: ShardMap, fanout: Fanout, shared: Shared, memory: AnswerMemory) -> None:
        self._map = shard_map
        self._fanout = fanout
        self._shared = shared
        self._statements = SearchStatements()
        self._columns = Columns(fanout, shared, memory)

    def __repr__(self) -> str:
        return f"<Scatter map {self._map.version}, {self._fanout!r}>"

    async def search(self, query: SearchQuery, deadline: float) -> Found:
        """The merged answer.

        Raises:
            UnavailableError, DeadlineError: no shard answered, or not all did and the query wants all.
            OverloadedError: a shard's queues are full, or there is no memory for a large answer.
            AnswerTooLargeError: it would be larger than an answer may be.
        """
        remaining = deadline - asyncio.get_running_loop().time()
        stop = deadline - min(_MARGIN_MOST, _MARGIN_SHARE * max(remaining, 0.0))
        try:
            answer = await self._search(query, stop)
        except RowsChangedError:
            # A search that begins now finds the rows as they are now.
            try:
                answer = await self._search(query, stop)
            except RowsChangedError as exc:
                raise UnavailableError("documents were deleted or changed while they were read") from exc
        return Found(answer, "miss" if query.cached else "bypass")

    async def _search(self, query: SearchQuery, stop: float) -> Answer:
        plans = [plan_search(query, self._map, depth) for depth in depths(query)]
        rows = sum([plan.limit for plan in plans])
        brings = layout(query.collection, query.include, rows, len(plans[0].targets))
        # Others go between the several searches of a page, as between those of a batch.
        caller = object() if query.caller is None and len(plans) > 1 else query.caller
        ask = _Ask(query, brings, caller, stop)
        found = await self._fetch(ask, [(plan, plan.targets) for plan in plans])
        searches = [_Search(plan, parts) for plan, parts in zip(plans, found, strict=True)]
        again = [
            (search, plan_search(ask.query, self._map, search.plan.depth, scan=look[0]), look[1])
            for search in searches
            if (look := unsettled(search.plan, search.parts, search.ranked)) is not None
        ]
        scan_limited = bool(again) and await self._look_again(ask, again)
        return await self._answer(ask, searches, scan_limited)

    async def _look_again(self, ask: _Ask, again: Sequence[tuple[_Search, Plan, list[str]]]) -> bool:
        """Ask the shards whose rows do not settle their search once more, in the time that is left.

        Returns whether some shard's rows still rest on a scan that ended too early.
        """
        try:
            found = await self._fetch(ask, [(plan, shards) for _, plan, shards in again])
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
        self, ask: _Ask, asked: Sequence[tuple[Plan, Sequence[str]]]
    ) -> list[dict[str, ShardRows]]:
        """The parts of each plan's shards, all asked at once.

        Raises:
            OverloadedError: a shard's queues are full.
        """
        probes = [pair for plan, shards in asked for pair in self._probes(ask, plan, shards)]
        parts = iter(await self._fanout.fetch_all(probes, ask.stop))
        return [{shard: next(parts) for shard in shards} for _, shards in asked]

    def _probes(self, ask: _Ask, plan: Plan, shards: Sequence[str]) -> list[tuple[str, Probe]]:
        query = ask.query
        statement = self._statements.search(
            query.collection,
            to_wire(query.vector, query.collection.vector.type),
            limit=plan.limit,
            candidates=plan.candidates,
            ef_search=plan.ef_search,
            scan=plan.scan,
            filter=query.filter,
            layout=ask.brings,
        )
        exact = plan.scan is Scan.EXACT
        alone = query.plan or plan.limit > _ROWS_TOGETHER
        return [
            (
                shard,
                Probe(
                    statement.shape,
                    statement.args,
                    plan.asked,
                    plan.limit,
                    key=None if alone else statement.key,
                    ef_search=None if exact else plan.ef_search,
                    caller=ask.caller,
                    primary_only=query.consistency is Consistency.STRONG,
                    min_lsn=self._shared.position(shard),
                    plan=query.plan,
                    work=Work.SCAN if exact else Work.NEAREST,
                ),
            )
            for shard in shards
        ]

    async def _answer(self, ask: _Ask, searches: Sequence[_Search], scan_limited: bool) -> Answer:
        query, brings, plan, parts = ask.query, ask.brings, searches[0].plan, searches[0].parts
        reports = {shard: part.report for shard, part in parts.items()}
        if len(searches) > 1:
            reports = {shard: combined([one.parts[shard].report for one in searches]) for shard in parts}
        coverage = coverage_of(list(reports.values()), plan.total)
        raise_if_unanswered(coverage, list(reports.values()), allow_partial=query.allow_partial)
        if not coverage.full and len(searches) > 1:
            # What is missing at one depth would be repeated or lost by another.
            for search in searches:
                for failure in coverage.failures:
                    del search.parts[failure.shard]
                search.rank()
        # Cut here and not on the shards, where too near a limit would look like too few rows.
        near = [(search.plan.depth, within(search.ranked, query.max_distance)) for search in searches]
        kept = page(near, query.offset, query.k)
        if query.include != brings.inline or (brings.guarded and not all([row[-1] for row, _ in kept])):
            hits = await self._columns.hits(query, _to_complete(kept, brings), reports, ask.stop)
            # A shard may have failed since.
            coverage = coverage_of(list(reports.values()), plan.total)
            raise_if_unanswered(coverage, list(reports.values()), allow_partial=query.allow_partial)
        else:
            counts = dict.fromkeys(plan.targets, 0)
            for _, shard in kept:
                counts[shard] += 1
            hits = Hits(await write_hits(query, kept, brings.fixed_bytes), counts)
        count = sum(hits.counts.values())
        return Answer(
            hits=msgspec.Raw(hits.pieces[0]),
            count=count,
            coverage=coverage,
            short=shortfall(
                query,
                count,
                coverage,
                scan_limited=scan_limited,
                too_far=query.max_distance is not None and _cut(near, searches),
            ),
            reports=tuple([msgspec.structs.replace(r, kept=hits.counts[r.shard]) for r in reports.values()]),
            cacheable=coverage.full and not coverage.stale and not scan_limited,
            more=tuple(hits.pieces[1:]),
            held=hits.held,
        )


def _to_complete(kept: Sequence[Ranked], brings: Layout) -> list[RankedHit]:
    """What came with the rows of a guarded statement, or with none."""
    if not brings.guarded:
        return [RankedHit(row, shard, fetched=False) for row, shard in kept]
    return [
        RankedHit(
            row[:-1],
            shard,
            fetched=row[-1],
            size_bytes=sum([len(v) for v in row[2:-1] if isinstance(v, str)]),
        )
        for row, shard in kept
    ]


def _cut(near: Sequence[tuple[int, list[Ranked]]], searches: Sequence[_Search]) -> bool:
    """Whether rows were found that lie too far away."""
    return any(len(rows) < len(search.ranked) for (_, rows), search in zip(near, searches, strict=True))
