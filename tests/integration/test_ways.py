"""Filtered searches on a real cluster: the way of each shard, right answers, and what is learned."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy.local import Cluster
from router.policy import ways as ways_policy
from router.policy.ways import Pace
from router.query.types import Consistency, Found, Probe, ShardReport, ShardRows
from router.query.way import Choice, Way
from shard_config.values import ValueType
from tests.integration.test_search import execute, locked, primary, ranked, vector_of
from tests.integration.worlds import Vectors, World, column, hits, world

ROWS, DIMENSIONS = 6000, 16
NUMBERS = np.arange(ROWS)
COLUMNS = {
    "number": column("number", ValueType.INTEGER),
    "plain": column("plain", ValueType.INTEGER),
    "place": column("place", ValueType.INTEGER),
    "none": column("none", ValueType.TEXT),
}


def clustered() -> tuple[Vectors, NDArray[np.int64]]:
    """Vectors in 16 clusters far apart, and the cluster of each."""
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(16, DIMENSIONS)) * 4
    places = rng.integers(0, 16, ROWS)
    return (centres[places] + rng.normal(size=(ROWS, DIMENSIONS))).astype(np.float32), places


VECTORS, PLACES = clustered()


@pytest.fixture(autouse=True)
def expected_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is expected decides here; on a busy machine, what was measured might."""
    monkeypatch.setattr(Pace, "took", lambda *_: None)
    monkeypatch.setattr(ways_policy, "_DEAR_MS", float("inf"))


@asynccontextmanager
async def filled(cluster: Cluster, *, analyze: bool = True, rows: int = ROWS) -> AsyncIterator[World]:
    """`number` has an index, `plain` and `place` have none, and `none` is NULL."""
    async with world(cluster, columns=COLUMNS, vector=vector_of(DIMENSIONS)) as w:
        for start in range(0, rows, 1000):
            await w.put(
                *(
                    w.document(
                        i, VECTORS[i], number=i, plain=i % 100, place=int(PLACES[i]), metadata={"n": i}
                    )
                    for i in range(start, min(start + 1000, rows))
                )
            )
        table = w.collection.table
        await w.on_primaries(f"CREATE INDEX ON {table} USING hnsw (embedding vector_l2_ops)")
        await w.on_primaries(f"CREATE INDEX ON {table} (number)")
        if analyze:
            await w.on_primaries(f"ANALYZE {table}")
            await w.topology.parts.statistics.read()
        yield w


async def ask(w: World, vector: Any, filter: dict[str, Any] | None, k: int = 10, **options: Any) -> Found:
    """Of the primaries: replicas may lack an index, or a change made without the router, for a moment."""
    return await w.search(vector, k, filter=filter, cache=False, consistency=Consistency.STRONG, **options)


def choices(found: Found) -> list[Choice]:
    assert all(report.choice is not None for report in found.answer.reports)
    return [report.choice for report in found.answer.reports if report.choice is not None]


def ways(found: Found) -> set[Way]:
    return {choice.way for choice in choices(found)}


def ids(found: Found) -> list[int]:
    return [hit["id"] for hit in hits(found)]


def nearest(keep: NDArray[np.bool_], query: Any, k: int = 10) -> list[int]:
    return [i for i in ranked(VECTORS, query) if keep[i]][:k]


def counted(reports: tuple[ShardReport, ...]) -> int:
    assert all(report.matched is not None for report in reports)
    return sum(report.matched or 0 for report in reports)


async def test_each_way_is_taken_where_it_is_cheapest(cluster: Cluster) -> None:
    async with filled(cluster) as w:
        query = VECTORS[3] + np.float32(0.1)
        for filter, keep, way, plan in (
            ({"number": {"$lt": 40}}, NUMBERS < 40, Way.FILTER_INDEX, "_number_idx"),
            (
                {"number": {"$in": [1, 2, 3000]}},
                np.isin(NUMBERS, [1, 2, 3000]),
                Way.FILTER_INDEX,
                "_number_idx",
            ),
            ({"plain": 7}, NUMBERS % 100 == 7, Way.ALL_ROWS, "Seq Scan"),
            ({"plain": {"$between": [7, 8]}}, np.isin(NUMBERS % 100, [7, 8]), Way.ALL_ROWS, "Seq Scan"),
            ({"plain": {"$gte": 0}}, NUMBERS >= 0, Way.VECTOR_INDEX, "_embedding_idx"),
        ):
            for _ in range(7):  # plans for any value would take the place of the first five
                found = await ask(w, query, filter, explain=True)
                assert ways(found) == {way}, filter
                assert found.answer.coverage.full
                if way is Way.VECTOR_INDEX:
                    # Of clusters so far apart, a graph does not always reach all: that is the index's matter.
                    assert keep.all() and ids(found) == ids(await ask(w, query, None))
                else:
                    assert ids(found) == nearest(keep, query)
                    assert counted(found.answer.reports) == keep.sum()
            shown = await ask(w, query, filter, plan=True)
            assert all(plan in (report.plan or "") for report in shown.answer.reports), shown.answer.reports
            exact = await ask(w, query, filter, exact=True)
            assert Way.VECTOR_INDEX not in ways(exact) and ids(exact) == nearest(keep, query)


async def test_rows_that_match_are_counted_now_and_then_and_when_somebody_looks(cluster: Cluster) -> None:
    async with filled(cluster) as w:
        found = [await ask(w, VECTORS[0], {"plain": 7}, explain=explain) for explain in (False, False, True)]
        assert [ways(one) for one in found] == [{Way.ALL_ROWS}] * 3
        assert counted(found[0].answer.reports) == counted(found[2].answer.reports) > 0
        assert all(report.matched is None for report in found[1].answer.reports)
        assert hits(found[0]) == hits(found[1]) == hits(found[2])


async def test_searches_with_the_same_filter_share_exact_reads(cluster: Cluster) -> None:
    async with filled(cluster) as w:
        wide = {"include": frozenset(["metadata", "vector", "number"])}
        asked: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
            (VECTORS[i] + np.float32(0.1), filter, options)
            for i in range(64)
            for filter, options in (
                ({"plain": 7}, {}),
                ({"plain": 8}, {"k": 3 + i % 5}),
                ({"number": {"$lt": 40}}, wide),
                ({"metadata.n": {"$gte": ROWS - 30}}, {}),
            )
        ]
        for filter in ({"plain": 7}, {"plain": 8}, {"metadata.n": {"$gte": ROWS - 30}}):
            await ask(w, VECTORS[0], filter)  # what keeps few rows is known from here on
        alone = [await ask(w, query, filter, **options) for query, filter, options in asked]
        together = await asyncio.gather(
            *(ask(w, query, filter, **options) for query, filter, options in asked)
        )
        shared = 0
        for (query, filter, _), one, other in zip(asked, alone, together, strict=True):
            assert other.answer.coverage.full and hits(other) == hits(one)
            if filter == {"plain": 7}:
                assert ids(other) == nearest(NUMBERS % 100 == 7, query)
            shared += sum(report.together > 1 for report in other.answer.reports)
        assert shared > len(asked)


async def test_what_lies_elsewhere_than_the_query_is_found_exactly_after_a_short_scan(
    cluster: Cluster,
) -> None:
    async with filled(cluster) as w:
        found = again = 0
        for i in range(0, 400, 10):
            query = VECTORS[i] + np.float32(0.05)
            place = int(PLACES[i] + i // 10) % 16
            answer = await ask(w, query, {"place": place}, by_index=True, plan=True)
            found += len(set(ids(answer)) & set(nearest(PLACES == place, query)))
            for report in answer.answer.reports:
                plans = (report.plan or "").split("\n\n")
                assert "_embedding_idx" in plans[0]
                assert ["Seq Scan" in plan for plan in plans[1:]] == [True] * (report.again == "short")
                again += report.again == "short"
        assert found / 400 >= 0.97
        # Scans that begin within the cluster are not cut.
        assert 40 < again < 160


async def test_a_shard_that_hangs_before_its_second_look_is_named_and_the_rest_is_answered(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with filled(cluster) as w, AsyncExitStack() as frozen:
        fetch, rounds = w.router._fanout.fetch, itertools.count()

        async def hangs_between(probes: Mapping[str, Probe], deadline: float) -> dict[str, ShardRows]:
            if next(rounds) == 1:
                assert "s1" in probes
                await frozen.enter_async_context(locked(primary(cluster, "s1"), w.collection.table))
            return await fetch(probes, deadline)

        monkeypatch.setattr(w.router._fanout, "fetch", hangs_between)
        place = int(PLACES[ranked(VECTORS, VECTORS[0])[-1]])  # that lies farthest away
        loop = asyncio.get_running_loop()
        started = loop.time()
        found = await ask(w, VECTORS[0], {"place": place}, by_index=True, within=2.5)
        assert loop.time() - started < 8
        assert next(rounds) == 2 and found.answer.coverage.full and not found.answer.cacheable
        assert [(one.shard, one.reason) for one in found.answer.unsettled] == [("s1", "scan_limit")]
        again = {report.shard: report.again for report in found.answer.reports}
        assert again["s1"] is None and "short" in again.values()
        # The other shards were read exactly: of their rows, these are the nearest.
        elsewhere = {hit["id"] for hit in hits(found) if hit["shard"] != "s1"}
        assert elsewhere <= set(nearest(PLACES == place, VECTORS[0], 40))


async def test_statistics_that_are_no_longer_true_are_corrected_by_the_first_search(cluster: Cluster) -> None:
    async with filled(cluster) as w:
        table, query = w.collection.table, VECTORS[5]
        await w.on_primaries(f"UPDATE {table} SET plain = 0")
        first = await ask(w, query, {"plain": 0})
        assert ways(first) == {Way.ALL_ROWS}
        assert {choice.basis for choice in choices(first)} == {"statistics"}
        assert counted(first.answer.reports) == ROWS
        second = await ask(w, query, {"plain": 0})
        assert ways(second) == {Way.VECTOR_INDEX}
        assert {choice.basis for choice in choices(second)} == {"searches"}
        # The other way round: the scan meets nothing, is given up, and its successor reads the shard at once.
        await w.on_primaries(f"UPDATE {table} SET plain = 1")
        for number in range(12):
            answer = await ask(w, query, {"plain": 0})
            assert ids(answer) == [] and answer.answer.short is not None
            assert answer.answer.short.reason == "exhausted"
            again = {report.again for report in answer.answer.reports}
            assert again == ({"short"} if number == 0 else {None}), number


async def test_without_statistics_every_answer_is_right(cluster: Cluster) -> None:
    async with filled(cluster, analyze=False) as w:
        query = VECTORS[9]
        for _ in range(3):
            for filter, keep in (
                ({"number": {"$lt": 3}}, NUMBERS < 3),
                ({"plain": 50}, NUMBERS % 100 == 50),
                ({"metadata.n": {"$gte": 5990}}, NUMBERS >= 5990),
            ):
                found = await ask(w, query, filter)
                assert ids(found) == nearest(keep, query), filter
                assert found.answer.coverage.full
        # Tables that were never analyzed are of a size that is known, and nothing else.
        await w.topology.parts.statistics.read()
        found = await ask(w, query, {"plain": 51})
        assert {choice.basis for choice in choices(found)} <= {"guess", "searches"}
        assert ids(found) == nearest(NUMBERS % 100 == 51, query)


async def test_a_filter_that_matches_nothing_is_asked_once(cluster: Cluster) -> None:
    async with filled(cluster) as w:
        for filter in (
            {"plain": {"$in": []}},
            {"plain": 1234},
            {"number": {"$lt": -5}},
            {"none": "x"},
            {"$not": {"none": None}},
        ):
            found = await ask(w, VECTORS[0], filter)
            assert hits(found) == []
            assert all(report.attempts == 1 and report.again is None for report in found.answer.reports), (
                filter
            )
            assert found.answer.short is not None and found.answer.short.reason == "exhausted"
        everything = await ask(w, VECTORS[0], {"none": None})
        assert ways(everything) == {Way.VECTOR_INDEX} and len(hits(everything)) == 10


async def test_empty_tables_are_searched_without_complaint(cluster: Cluster) -> None:
    async with filled(cluster, rows=0) as w:
        found = await ask(w, VECTORS[0], {"number": {"$gte": 0}})
        assert hits(found) == [] and found.answer.coverage.full


async def test_a_shard_that_lacks_the_others_index_goes_its_own_way(cluster: Cluster) -> None:
    async with filled(cluster) as w:
        name = f"{w.collection.table.name}_number_idx"
        await execute(primary(cluster, "s1"), f"DROP INDEX {name}")
        await w.topology.parts.statistics.read()
        query = VECTORS[77]
        found = await ask(w, query, {"number": {"$lt": 40}})
        taken = {
            report.shard: choice.way
            for report, choice in zip(found.answer.reports, choices(found), strict=True)
        }
        assert taken.pop("s1") is Way.ALL_ROWS and set(taken.values()) == {Way.FILTER_INDEX}
        assert ids(found) == nearest(NUMBERS < 40, query)
        pages = [
            ids(await ask(w, query, {"number": {"$lt": 40}}, 7, offset=offset)) for offset in range(0, 42, 7)
        ]
        assert [id_ for page in pages for id_ in page] == nearest(NUMBERS < 40, query, 40)


async def test_columns_come_with_rows_that_were_counted(cluster: Cluster) -> None:
    async with filled(cluster) as w:
        for filter in ({"number": {"$lt": 40}}, {"plain": 7}, {"plain": {"$gte": 0}}):
            found = await ask(w, VECTORS[1], filter, include=frozenset({"metadata", "number", "none"}))
            assert len(hits(found)) == 10
            for hit in hits(found):
                assert (hit["metadata"], hit["number"], hit["none"]) == ({"n": hit["id"]}, hit["id"], None)
