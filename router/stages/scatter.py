"""One search becomes one probe per shard; the shards' rows become one answer.

This stage owns the deadline: it stops a little before it, cancels what has not answered, and
everything below is cancelled by it. A shard that is missing is data in the answer; only when no shard
answered, or the caller insists on all, is it an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from router.postgres.search import SearchStatements
from router.query.answer import coverage_of, raise_if_unanswered, shortfall
from router.query.errors import OverloadedError, UnavailableError
from router.query.merge import merge, within
from router.query.plan import Plan, plan_search
from router.query.sizes import Layout, layout
from router.query.types import (
    Answer,
    Consistency,
    Found,
    Probe,
    Row,
    SearchQuery,
    ShardRows,
    ShardState,
    Work,
)
from router.query.wire import to_wire
from router.shared import Shared
from router.stages.answer_memory import AnswerMemory
from router.stages.columns import Columns, Hits, Ranked, RowsChangedError, write_hits
from router.stages.fanout import Fanout
from shard_config.model import ShardMap

__all__ = ["Scatter"]

# What is left of the deadline for merging and encoding: a tenth of short ones, 10 ms of long ones.
_MARGIN_SHARE = 0.1
_MARGIN_MOST = 0.010
# A statement for more rows than this is for one search: several would keep a node, and whoever waits for it,
# for as many times as long.
_ROWS_TOGETHER = 256


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
        plan = plan_search(query, self._map)
        brings = layout(query.collection, query.include, plan.limit, len(plan.targets))
        parts = await self._fanout.fetch(self._probes(query, plan, brings, plan.targets), stop)
        scan_limited = False
        if not plan.exact and _short(parts, plan, query):
            parts, scan_limited = await self._complete(query, plan, brings, parts, stop)
        return await self._answer(query, plan, brings, parts, scan_limited, stop)

    async def _complete(
        self, query: SearchQuery, plan: Plan, brings: Layout, parts: dict[str, ShardRows], stop: float
    ) -> tuple[dict[str, ShardRows], bool]:
        """Too few rows in all: ask the shards that came up short once more, comparing every row.

        An index scan gives up after hnsw.max_scan_tuples, so few rows from it do not mean that there
        are few. Returns the better parts, and whether some shard's rows still rest on such a scan.
        """
        again = [name for name in plan.targets if _fell_short(parts[name], plan)]
        exact = plan_search(query, self._map, exact=True)
        try:
            found = await self._fanout.fetch(self._probes(query, exact, brings, again), stop)
        except OverloadedError:
            return parts, True
        merged = dict(parts)
        limited = False
        for name, rows in found.items():
            if rows.report.state is ShardState.OK:
                merged[name] = _added(parts[name], rows)
            else:
                limited = True
        return merged, limited

    def _probes(
        self, query: SearchQuery, plan: Plan, brings: Layout, shards: tuple[str, ...] | list[str]
    ) -> dict[str, Probe]:
        statement = self._statements.search(
            query.collection,
            to_wire(query.vector, query.collection.vector.type),
            limit=plan.limit,
            candidates=plan.candidates,
            ef_search=plan.ef_search,
            exact=plan.exact,
            filter=query.filter,
            layout=brings,
        )
        alone = query.plan or plan.limit > _ROWS_TOGETHER
        return {
            shard: Probe(
                statement.shape,
                statement.args,
                plan.asked,
                plan.limit,
                key=None if alone else statement.key,
                ef_search=None if plan.exact else plan.ef_search,
                caller=query.caller,
                primary_only=query.consistency is Consistency.STRONG,
                min_lsn=self._shared.position(shard),
                plan=query.plan,
                work=Work.SCAN if plan.exact else Work.NEAREST,
            )
            for shard in shards
        }

    async def _answer(
        self,
        query: SearchQuery,
        plan: Plan,
        brings: Layout,
        parts: dict[str, ShardRows],
        scan_limited: bool,
        stop: float,
    ) -> Answer:
        reports = {name: part.report for name, part in parts.items()}
        coverage = coverage_of(list(reports.values()), plan.total)
        raise_if_unanswered(coverage, list(reports.values()), allow_partial=query.allow_partial)
        # Cut here and not on the shards, where too near a limit would look like too few rows.
        ranked = merge({name: part.rows for name, part in parts.items()}, query.offset, query.k)
        kept = within(ranked, query.max_distance)
        if query.include != brings.inline or (brings.guarded and not all([row[-1] for row, _ in kept])):
            hits = await self._columns.hits(query, _to_complete(kept, brings), reports, stop)
            # A shard may have failed since.
            coverage = coverage_of(list(reports.values()), plan.total)
            raise_if_unanswered(coverage, list(reports.values()), allow_partial=query.allow_partial)
        else:
            counts = dict.fromkeys(parts, 0)
            for _, shard in kept:
                counts[shard] += 1
            hits = Hits(await write_hits(query, kept, brings.fixed_bytes), counts)
        count = sum(hits.counts.values())
        return Answer(
            hits=msgspec.Raw(hits.pieces[0]),
            count=count,
            coverage=coverage,
            short=shortfall(
                query, count, coverage, scan_limited=scan_limited, too_far=len(kept) < len(ranked)
            ),
            reports=tuple([msgspec.structs.replace(r, kept=hits.counts[r.shard]) for r in reports.values()]),
            cacheable=coverage.full and not coverage.stale and not scan_limited,
            more=tuple(hits.pieces[1:]),
            held=hits.held,
        )


def _to_complete(kept: list[tuple[Row, str]], brings: Layout) -> list[Ranked]:
    """What came with the rows of a guarded statement, or with none."""
    if not brings.guarded:
        return [Ranked(row, shard, fetched=False) for row, shard in kept]
    return [
        Ranked(
            row[:-1],
            shard,
            fetched=row[-1],
            size_bytes=sum([len(v) for v in row[2:-1] if isinstance(v, str)]),
        )
        for row, shard in kept
    ]


def _fell_short(part: ShardRows, plan: Plan) -> bool:
    return part.report.state is ShardState.OK and len(part.rows) < plan.limit


def _short(parts: Mapping[str, ShardRows], plan: Plan, query: SearchQuery) -> bool:
    """Whether the answer would have fewer rows than asked while some shard may hold more."""
    total = sum(len(part.rows) for part in parts.values())
    return total < query.offset + query.k and any(_fell_short(part, plan) for part in parts.values())


def _added(first: ShardRows, second: ShardRows) -> ShardRows:
    """The second round's rows, with both rounds' time and attempts on the account."""
    one, two = first.report, second.report
    report = msgspec.structs.replace(
        two,
        attempts=one.attempts + two.attempts,
        queue_ms=one.queue_ms + two.queue_ms,
        execute_ms=one.execute_ms + two.execute_ms,
        total_ms=one.total_ms + two.total_ms,
        stale=one.stale or two.stale,
    )
    return ShardRows(second.rows, report)
