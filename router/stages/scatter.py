"""One search becomes probes, one per shard; the shards' rows become one answer.

A page below the first is made of several searches, at once, of rising depths; see `depths`.

This stage owns the deadline: it stops a little before it, cancels what has not answered, and
everything below is cancelled by it. A shard that is missing is data in the answer; only when no shard
answered, or the caller insists on all, is it an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import msgspec

from router.freshness.freshness import Freshness
from router.policy.deadline import stop_before
from router.policy.ways import Chosen, Outcome, Ways
from router.postgres.search import SearchStatements, seen_at
from router.query.answer import coverage_of, joined, raise_if_unanswered
from router.query.errors import OverloadedError
from router.query.filter import constant
from router.query.merge import merge, page, within
from router.query.plan import Plan, depths, exactly, plan_search
from router.query.ranked import Ranked, RankedAnswer
from router.query.second_look import looked_again, not_settled, unsettled
from router.query.sizes import Layout, layout_for, vector_bytes
from router.query.types import (
    Consistency,
    Probe,
    Scan,
    SearchQuery,
    ShardReport,
    ShardRows,
    ShardState,
    Unsettled,
    Work,
)
from router.query.way import Need, Way, countable, most_visits, shareable
from router.query.wire import to_wire
from router.stages.fanout import Fanout
from router.stages.stage import Figures
from shard_config.model import ShardMap

__all__ = ["Scatter"]

# A statement for more rows than this is for one search: several would keep a node, and whoever waits for it,
# for as many times as long.
_ROWS_TOGETHER = 256


class _Kind(NamedTuple):
    """Of a shard's statement; an exact read is `counted` where it says how many rows matched.

    It is `shared` where a node may keep the rows that match, for all searches that wait with the same filter.
    """

    scan: Scan
    counted: bool = False
    shared: bool = False


class _Searched(NamedTuple):
    """What one search has found: `ranked` are the nearest rows of all parts."""

    plan: Plan
    parts: dict[str, ShardRows]
    ranked: list[Ranked]
    unsettled: tuple[Unsettled, ...] = ()


class Scatter:
    """The innermost stage: from a collection's query to shards' probes and back."""

    def __init__(self, shard_map: ShardMap, fanout: Fanout, freshness: Freshness, ways: Ways) -> None:
        self._map = shard_map
        self._ways = ways
        self._fanout = fanout
        self._freshness = freshness
        self._statements = SearchStatements()

    def __repr__(self) -> str:
        return f"<Scatter map {self._map.version}, {self._fanout!r}>"

    def expected(self, query: SearchQuery) -> tuple[float, float]:
        """Seconds that it would wait for the nodes, and that each of many like it takes; 0 if not known."""
        wanted = depths(query)
        plan = self._plan(query, wanted[-1])
        chosen = self._chosen(query, plan)
        scans, layout = self._scans(plan, chosen), self._layout(query, wanted)
        return self._fanout.expected(self._probes(query, plan, scans, chosen, layout, query.caller))

    async def search(self, query: SearchQuery, deadline: float) -> RankedAnswer:
        """The merged answer; of a wide row, the columns are still to be read.

        Raises:
            UnavailableError, DeadlineError: no shard answered, or not all did and the query wants all.
            OverloadedError: a shard's queues are full.
        """
        stop = stop_before(deadline, asyncio.get_running_loop().time())
        if query.filter is not None and constant(query.filter) is True:
            query = msgspec.structs.replace(query, filter=None)
        wanted = depths(query)
        plans = [self._plan(query, depth) for depth in wanted]
        chosen = self._chosen(query, plans[0])
        if len(wanted) > 1 and chosen is not None and not chosen.scans:
            # Exact reads continue each other.
            wanted = [query.offset + query.k]
            plans = [self._plan(query, wanted[0])]
        layout = self._layout(query, wanted)
        with chosen or nullcontext():
            if len(wanted) == 1:
                searches = [await self._at(plans[0], query, chosen, layout, query.caller, stop)]
            else:
                searches = await self._at_each(plans, query, chosen, layout, stop)
        return self._answer(query, layout, searches)

    def describe(self) -> Figures:
        return {}

    def _plan(self, query: SearchQuery, depth: int, scan: Scan | None = None) -> Plan:
        rows = 0.0
        if query.filter is not None:
            collection = query.collection
            rows = self._ways.most_rows(collection.name, self._map.shards_of(collection))
        return plan_search(query, self._map, depth, scan=scan, rows=rows)

    def _chosen(self, query: SearchQuery, plan: Plan) -> Chosen | None:
        """Each shard's way, where there is a filter; one for all depths and pages of a search."""
        if query.filter is None:
            return None
        need = Need(plan.candidates, plan.ef_search, vector_bytes(query.collection))
        return self._ways.choose(
            query.collection.name,
            query.filter,
            plan.targets,
            need,
            exact=query.exact,
            by_index=query.by_index,
            alone=_goes_alone(query, plan),
            search=(query.vector, query.k),
            goes_on=query.offset > 0,
        )

    def _layout(self, query: SearchQuery, wanted: Sequence[int]) -> Layout:
        # One more of each shard shows whether rows beyond are as near as the last.
        rows = sum(wanted) + len(wanted)
        return layout_for(query.collection, query.include, rows, len(self._map.shards_of(query.collection)))

    def _scans(self, plan: Plan, chosen: Chosen | None) -> dict[str, Scan]:
        """How each shard is read at first."""
        scans = dict.fromkeys(plan.targets, plan.scan)
        if chosen is not None:
            for shard, choice in chosen.choices.items():
                if choice.way is not Way.VECTOR_INDEX:
                    scans[shard] = Scan.EXACT
        return scans

    async def _at_each(
        self,
        plans: Sequence[Plan],
        query: SearchQuery,
        chosen: Chosen | None,
        layout: Layout,
        stop: float,
    ) -> list[_Searched]:
        """The searches of a page, all at once."""
        # Others go between them, as between those of a batch.
        caller = object() if query.caller is None else query.caller
        tasks = [asyncio.create_task(self._at(plan, query, chosen, layout, caller, stop)) for plan in plans]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            tasks.clear()  # an error holds the frames that it passes, and this one would hold it in turn

    async def _at(
        self,
        plan: Plan,
        query: SearchQuery,
        chosen: Chosen | None,
        layout: Layout,
        caller: Hashable,
        stop: float,
    ) -> _Searched:
        """The nearest rows, as many as the plan's depth."""
        scans = self._scans(plan, chosen)
        parts = await self._fanout.fetch(self._probes(query, plan, scans, chosen, layout, caller), stop)
        exact: set[str] = set()
        cut: set[str] = set()
        if chosen is not None:
            parts = _account(parts, scans, chosen, layout, plan.candidates)
            exact = {shard for shard, scan in scans.items() if scan is Scan.EXACT}
            cut = {shard for shard in parts if shard not in exact and _was_cut(parts[shard].report)}
        ranked = _ranked(parts, plan.depth)
        again = unsettled(plan, parts, ranked, exact, cut)
        if not again:
            return _Searched(plan, parts, ranked)
        try:
            found = await self._fanout.fetch(
                self._probes(query, plan, again, chosen, layout, caller, doubtful=True), stop
            )
        except OverloadedError:
            return _Searched(plan, parts, ranked, not_settled(again))
        if chosen is not None:
            found = _account(found, again, chosen, layout, plan.candidates)
        better = {
            name: looked_again(parts[name], part, again[name])
            for name, part in found.items()
            if part.report.state is ShardState.OK
        }
        parts = parts | better
        missing = {name: scan for name, scan in again.items() if name not in better}
        return _Searched(plan, parts, _ranked(parts, plan.depth), not_settled(missing))

    def _probes(
        self,
        query: SearchQuery,
        usual: Plan,
        scans: Mapping[str, Scan],
        chosen: Chosen | None,
        layout: Layout,
        caller: Hashable,
        *,
        doubtful: bool = False,
    ) -> dict[str, Probe]:
        """What to send to each shard; `doubtful`: those that are read exactly were not expected to be."""
        visits, inline = 0, bool(layout.inline)
        groups: dict[_Kind, list[str]] = {}
        for shard, scan in scans.items():
            kind = _Kind(scan)
            if chosen is not None:
                choice = chosen.choices[shard]
                if scan is Scan.INDEX:
                    # One statement for all, although they differ a little in what is expected of them.
                    visits = max(visits, most_visits(choice, usual.candidates))
                elif scan is Scan.EXACT:
                    table = self._ways.table(query.collection.name, shard)
                    kind = _Kind(
                        scan,
                        (query.explain or query.plan or chosen.counts(shard))
                        and countable(choice, table, inline=inline, doubtful=doubtful),
                        shareable(choice, table, doubtful=doubtful),
                    )
            groups.setdefault(kind, []).append(shard)
        probes: dict[str, Probe] = {}
        for kind, shards in groups.items():
            exact = kind.scan is Scan.EXACT
            if kind.scan is usual.scan:
                plan = usual
            else:
                plan = exactly(usual) if exact else self._plan(query, usual.depth, kind.scan)
            statement = self._statements.search(
                query.collection,
                to_wire(query.vector, query.collection.vector.type),
                limit=plan.limit,
                candidates=plan.candidates,
                ef_search=plan.ef_search,
                scan=kind.scan,
                filter=query.filter,
                layout=layout,
                visits=visits,
                counted=kind.counted,
            )
            alone = _goes_alone(query, plan) or (exact and not kind.shared)
            for shard in shards:
                probes[shard] = Probe(
                    statement.shape,
                    statement.args,
                    plan.asked,
                    plan.limit,
                    key=None if alone else statement.key,
                    ef_search=None if exact else plan.ef_search,
                    caller=caller,
                    sharers=1 if chosen is None else chosen.choices[shard].most_sharing,
                    primary_only=query.consistency is Consistency.STRONG,
                    min_lsn=self._freshness.position(shard),
                    plan=query.plan,
                    work=_work(shard, chosen) if exact else Work.NEAREST,
                )
        return probes if len(groups) == 1 else {shard: probes[shard] for shard in scans}

    def _answer(self, query: SearchQuery, layout: Layout, searches: list[_Searched]) -> RankedAnswer:
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
        found = sum([len(one.ranked) for one in searches])
        unsettled = dict.fromkeys([shard for one in searches for shard in one.unsettled])
        return RankedAnswer(
            rows=page(near, query.offset, query.k),
            layout=layout,
            coverage=coverage,
            reports=reports,
            too_far=sum([len(rows) for _, rows in near]) < found,
            unsettled=tuple(unsettled),
        )


def _account(
    parts: Mapping[str, ShardRows],
    scans: Mapping[str, Scan],
    chosen: Chosen,
    layout: Layout,
    candidates: int,
) -> dict[str, ShardRows]:
    """Put on each shard's report what was to be done and what was found, and learn from it."""
    at = seen_at(layout)
    told: dict[str, ShardRows] = {}
    for shard, part in parts.items():
        rows, report, scan = part.rows, part.report, scans[shard]
        exact, ok = scan is Scan.EXACT, report.state is ShardState.OK
        matched = visited = None
        if exact and ok:
            matched = rows[0][at] if rows else 0
        elif rows and scan is Scan.INDEX:
            visited = rows[0][at]
        report = msgspec.structs.replace(
            report, choice=chosen.choices[shard], matched=matched, visited=visited
        )
        told[shard] = ShardRows(rows, report)
        if ok and scan is not Scan.TIES:
            together = report.together
            outcome = Outcome(
                exact, matched, visited, report.execute_ms / together, shared=exact and together > 1
            )
            chosen.learn(shard, outcome, candidates)
    return told


def _was_cut(report: ShardReport) -> bool:
    """Whether a scan with a filter has ended before it had its candidates."""
    return report.state is ShardState.OK and report.visited is None


def _goes_alone(query: SearchQuery, plan: Plan) -> bool:
    """Whether its statements are for no other search."""
    return query.plan or plan.limit > _ROWS_TOGETHER


def _work(shard: str, chosen: Chosen | None) -> Work:
    """Of an exact read."""
    by_filter = chosen is not None and chosen.choices[shard].way is Way.FILTER_INDEX
    return Work.FILTER if by_filter else Work.SCAN


def _ranked(parts: Mapping[str, ShardRows], depth: int) -> list[Ranked]:
    return merge({name: part.rows for name, part in parts.items()}, depth)


def _without(searched: _Searched, missing: set[str]) -> _Searched:
    parts = {name: part for name, part in searched.parts.items() if name not in missing}
    return searched._replace(parts=parts, ranked=_ranked(parts, searched.plan.depth))
