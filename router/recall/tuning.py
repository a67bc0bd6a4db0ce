"""How wide an HNSW scan must be for a wanted recall, with filters and without.

Real vectors of the collection are the queries; each one's own row is left out of its answers. Truth
comes from exact searches through the same router, so whatever the number of shards, the plan and the
filters do for recall is part of what is measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from router.postgres.search import by_index_order
from router.query.filter import Filter, parse
from router.query.plan import EF_SEARCH_MAX
from router.query.ranked import RankedAnswer
from router.query.types import SearchQuery
from router.query.wire import to_wire
from router.recall.advice import advice, candidate_steps
from router.recall.filters import filters_of_share
from router.recall.measure import best_bound, lower_bound, queries_for, recall
from router.recall.reading import (
    SEARCH_SECONDS,
    Query,
    Searched,
    TuningError,
    rows_of,
    sampled,
    sizes_of,
    vectors_of,
)
from router.settings import Settings
from shard_config.model import Collection, Quantization

__all__ = ["STEPS", "Measured", "Tuned", "TuningError", "queries_by_default", "said", "smallest", "tune"]

# Steps of about an eighth: finer ones would be told apart by noise alone.
STEPS = [
    *(2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 36, 40, 48, 56, 64, 72, 80, 96, 112, 128, 144, 160),
    *(192, 224, 256, 288, 320, 384, 448, 512, 576, 640, 768, 896, EF_SEARCH_MAX),
]
_SHARES = (0.01, 0.1, 0.5)
_SHARE_ROWS = 4000  # 1 % of them are 40, so that shares are off by a sixth
_LEAST_QUERIES = 500
_CONCURRENCY = 4
# Each reads all rows; they are to tell two causes apart, and not to prove a recall.
_IDEAL_QUERIES = 50

Progress = Callable[[str, int, int], None]
Tell = Callable[[str], None]


class Measured(msgspec.Struct, frozen=True):
    """`recall` is the mean over `queries`, at least `bound` with 95 % confidence.

    `case` is what searches had in common: "no filter", or the filter.
    """

    case: str
    recall: float
    bound: float
    queries: int

    def __str__(self) -> str:
        return (
            f"{self.recall:.4f}, at least {self.bound:.4f} with 95 % confidence,"
            f" over {self.queries} queries, {self.case}"
        )


class Tuned(msgspec.Struct, frozen=True):
    """The `ef_search` found, and what was measured with it for each case."""

    ef_search: int
    cases: tuple[Measured, ...]

    @property
    def worst(self) -> Measured:
        return min(self.cases, key=lambda case: case.bound)


class _Case(msgspec.Struct, frozen=True):
    """A filter, its name, and the exact answers' distances to each query."""

    name: str
    filter: Filter | None
    truth: list[list[float]]


def queries_by_default(target: float) -> int:
    """Three times what would do if no query missed anything, so that some may."""
    return max(_LEAST_QUERIES, 3 * queries_for(target))


async def smallest(steps: Sequence[int], reaches: Callable[[int], Awaitable[bool]]) -> int | None:
    """The smallest of the ascending `steps` that `reaches`, by bisection; None if the last does not."""
    if not await reaches(steps[-1]):
        return None
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        if await reaches(steps[middle]):
            high = middle
        else:
            low = middle + 1
    return steps[low]


async def tune(
    router: Searched,
    collection: Collection,
    settings: Settings,
    *,
    k: int,
    target: float,
    queries: int,
    filters: Sequence[dict[str, Any]],
    progress: Progress,
    tell: Tell,
) -> Tuned:
    """The smallest `ef_search` whose recall at `k` is at least `target` with 95 % confidence.

    It must be so without a filter, with filters made from the collection's values that keep about 1 %,
    10 % and 50 % of it, as far as its columns allow, and with each of `filters`. As all of these must
    reach the target, each is held to the same confidence (Berger, "Multiparameter hypothesis testing and
    acceptance sampling", Technometrics 24, 1982).

    Args:
        settings: the limits of filters.
        filters: as requests say them.
        progress: is told what is being done, how much of it is, and out of how much.
        tell: is told each measurement.

    Raises:
        TuningError: too few rows, a shard did not answer, or no width reaches the target.
        InvalidError: one of `filters` is none.
    """
    if best_bound(queries) < target:
        raise TuningError(
            f"{collection.name}: {queries} queries cannot show a recall of {target}; it takes"
            f" {queries_for(target)} without a miss, and more with some"
        )
    given = [(said(raw), parse(collection, raw, settings)) for raw in filters]
    # Without them, nothing bounds what a scan with a filter may visit.
    await router.read_statistics()
    sizes = await sizes_of(router, collection)
    queried = await vectors_of(router, collection, sizes, queries)
    if not queried or best_bound(len(queried)) < target:
        raise TuningError(
            f"{collection.name} holds too few rows: {sum(sizes.values())}, where a recall of {target}"
            f" takes {queries_for(target)} queries or more"
        )
    tuning = _Tuning(router, collection, k, queried, progress)
    if not await tuning.uses_index():
        tell(
            f"{collection.name}: PostgreSQL reads all rows for a search and not the index, so any width will"
            " do; tune again when there are more rows"
        )
        tuning.steps = [max(collection.search.ef_search, k + 1)]
    cases = [await tuning.case("no filter", None)]
    cases += [await tuning.case(f"filter {name}", filter) for name, filter in given]
    for made in await _filters(router, collection, sizes):
        cases.append(await tuning.case(f"filter {made.said} ({made.share:.1%})", made.filter))
    return await _search(tuning, cases, target, tell)


async def _search(tuning: _Tuning, cases: list[_Case], target: float, tell: Tell) -> Tuned:
    reached: dict[int, Tuned] = {}
    failed: dict[int, tuple[_Case, Measured]] = {}

    async def reaches(ef_search: int) -> bool:
        measured: list[Measured] = []
        for at, case in enumerate(cases):
            measured.append(await tuning.measure(case, ef_search))
            tell(f"{tuning.collection.name}: ef_search {ef_search}: recall@{tuning.k} {measured[-1]}")
            if measured[-1].bound < target:
                failed[ef_search] = case, measured[-1]
                # What was hardest now is likely to be so again, and then spares measuring the others.
                cases.insert(0, cases.pop(at))
                return False
        reached[ef_search] = Tuned(ef_search, tuple(measured))
        return True

    best = await smallest(tuning.steps, reaches)
    if best is None:
        widest = tuning.steps[-1]
        case, measured = failed[widest]
        advice = await tuning.advice(case, measured, target)
        raise TuningError(
            f"{tuning.collection.name}: recall at {tuning.k} is {measured}, even at ef_search"
            f" {widest}: the target {target} is out of reach; {advice}"
        )
    return reached[best]


class _Tuning:
    """The queries of one collection, and the searches for them."""

    def __init__(
        self, router: Searched, collection: Collection, k: int, queries: list[Query], progress: Progress
    ) -> None:
        self.collection = collection
        self.k = k
        # A query's own row takes a place of its scan.
        self.steps = [step for step in STEPS if step > k] or [EF_SEARCH_MAX]
        self._router = router
        self._queries = queries
        self._progress = progress

    async def uses_index(self) -> bool:
        """Whether PostgreSQL scans an index at all: reading every row has a recall of 1 at any width."""
        query = SearchQuery(
            self.collection, self._queries[0].vector, self.k, ef_search=self.steps[0], plan=True
        )
        found = await self._found(query)
        return any("Index Scan using" in (report.plan or "") for report in found.reports.values())

    async def case(self, name: str, filter: Filter | None) -> _Case:
        truth = await self._answers(f"exact answers, {name}", filter, None)
        if not any(truth):
            what = "no other rows" if filter is None else f"nothing that matches: {name}"
            raise TuningError(f"{self.collection.name} holds {what}")
        return _Case(name, filter, truth)

    async def measure(self, case: _Case, ef_search: int) -> Measured:
        # A connection keeps the plan it made for a statement, and at a great width that may be to read all
        # rows: kept for a narrow one, it would have a recall of 1 that no new connection's index scan has.
        self._router.discard_plans()
        found = await self._answers(f"ef_search {ef_search}, {case.name}", case.filter, ef_search)
        each = [recall(got, true) for got, true in zip(found, case.truth, strict=True)]
        recalls = [value for value in each if value is not None]
        return Measured(case.name, sum(recalls) / len(recalls), lower_bound(recalls), len(recalls))

    async def advice(self, case: _Case, measured: Measured, target: float) -> str:
        """What limits the recall of `case` at the greatest width, and what to change."""
        if measured.recall >= target or self.collection.index.quantization is Quantization.NONE:
            return advice(self.collection, self.k, measured.recall, {}, target)
        ideal: dict[int, float] = {}
        for candidates in candidate_steps(self.k):
            ideal[candidates] = await self._ideal(case, candidates)
            if ideal[candidates] >= target:
                break
        return advice(self.collection, self.k, measured.recall, ideal, target)

    async def _ideal(self, case: _Case, candidates: int) -> float:
        """The mean recall of an index that missed none of its first `candidates` on each shard."""
        recalls: list[float] = []
        sample = [*zip(self._queries, case.truth, strict=True)][:_IDEAL_QUERIES]
        for done, (query, true) in enumerate(sample, 1):
            wire = to_wire(query.vector, self.collection.vector.type)
            statement = by_index_order(self.collection, wire, candidates, self.k + 1, case.filter)
            shards = self._router.shard_map.shards_of(self.collection)
            parts = await rows_of(self._router, dict.fromkeys(shards, statement))
            found = sorted(row[1] for rows in parts.values() for row in rows if row[0] != query.id)[: self.k]
            value = recall(found, true)
            recalls += [] if value is None else [value]
            self._progress(f"{self.collection.name}: {candidates} candidates", done, len(sample))
        return sum(recalls) / max(1, len(recalls))

    async def _answers(self, what: str, filter: Filter | None, ef_search: int | None) -> list[list[float]]:
        """For each query the distances of its k nearest other rows; exactly if `ef_search` is None."""
        places = asyncio.Semaphore(_CONCURRENCY)
        done = 0

        async def one(query: Query) -> list[float]:
            nonlocal done
            async with places:
                distances = await self._answer(query, filter, ef_search)
            done += 1
            self._progress(f"{self.collection.name}: {what}", done, len(self._queries))
            return distances

        tasks = [asyncio.create_task(one(query)) for query in self._queries]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, query: Query, filter: Filter | None, ef_search: int | None) -> list[float]:
        search = SearchQuery(
            self.collection,
            query.vector,
            self.k + 1,
            filter=filter,
            ef_search=ef_search or 1,
            exact=ef_search is None,
            # What is chosen for a filter today, on tables of today's size, says nothing of the width.
            by_index=ef_search is not None,
            cache=False,
        )
        found = await self._found(search)
        return [row[1] for row, _ in found.rows if row[0] != query.id][: self.k]

    async def _found(self, search: SearchQuery) -> RankedAnswer:
        deadline = asyncio.get_running_loop().time() + SEARCH_SECONDS
        found = await self._router.rank(search, deadline)
        if not found.coverage.full:
            failure = found.coverage.failures[0]
            raise TuningError(f"{failure.shard} did not answer: {failure.error}")
        return found


async def _filters(router: Searched, collection: Collection, sizes: dict[str, int]) -> list[Any]:
    if not collection.columns:
        return []
    columns = [column.column for column in collection.columns.values()]
    rows = await sampled(router, collection, sizes, _SHARE_ROWS, columns)
    return filters_of_share(collection, [row[1:] for row in rows], _SHARES)


def said(raw: dict[str, Any]) -> str:
    """A request's filter in one short line."""
    text = msgspec.json.encode(raw).decode()
    return text if len(text) <= 80 else text[:77] + "..."
