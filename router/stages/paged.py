"""Pages of one ranking: it is computed once and kept, and a page costs reading its rows.

It stands below the answers' caches, which keep no pages, and around what writes answers. Invariants: over all
pages that are reached by following cursors from the first, no row comes twice, and none of the ranking is
skipped but those that are gone, which each page counts, and those of shards that failed, which its coverage
names; a cursor asks for the same page of the ranking whenever it is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import msgspec

from router.policy.deadline import stop_before
from router.query.answer import as_readable, coverage_of, raise_if_unanswered, with_failures_of
from router.query.errors import DeadlineError, UnavailableError
from router.query.paging import Cursor, encode
from router.query.ranked import Ranked, RankedAnswer
from router.query.ranking import Ranking, filter_of, ranking_of
from router.query.sizes import Layout
from router.query.types import Answer, Found, Page, SearchQuery, ShardReport, ShardState, Shortfall
from router.settings import Settings
from router.stages.columns import ColumnReader, RowsChangedError
from router.stages.encode import Encoded
from router.stages.rankings import Kept, Rankings
from router.stages.stage import Figures, Stage

__all__ = ["Paged"]

# As of any search whose rows change while they are read.
_TRIES = 3
# Of the time that is left, what a step may take that others follow: where a shard keeps silent it takes all
# that it may, and the rows of the others are still to be read.
_STEP_SHARE = 0.7


class _Window(NamedTuple):
    """The rows of a page, with their places in the ranking, and where the next one begins."""

    rows: list[Ranked]
    places: list[int]
    sizes: list[int]
    end: int
    gone: int


class Paged:
    """Answers searches for pages, and hands all others through."""

    def __init__(
        self,
        encoded: Encoded,
        ranked: Stage[SearchQuery, RankedAnswer],
        columns: ColumnReader,
        rankings: Rankings,
        settings: Settings,
    ) -> None:
        """
        Args:
            encoded: writes answers, and answers what is no page.
            ranked: what stands below it.
        """
        self._encoded = encoded
        self._ranked = ranked
        self._columns = columns
        self._rankings = rankings
        self._settings = settings

    def __repr__(self) -> str:
        return f"<Paged {self._rankings!r}>"

    async def search(self, query: SearchQuery, deadline: float) -> Found:
        """
        Raises:
            ExpiredError: the cursor's ranking is not kept.
            InvalidError, AnswerTooLargeError, UnavailableError: no ranking can be kept.
            and what the stages below raise.
        """
        if query.paging is None:
            return await self._encoded.search(query, deadline)
        stop = stop_before(deadline, asyncio.get_running_loop().time())
        cursor = query.paging.cursor
        if cursor is None:
            kept, reports = await self._begin(query, deadline)
            return Found(await self._page(query, kept, reports, 0, stop), kept.tier)
        async with _until(stop):
            kept = await self._rankings.find(cursor.ranking, query.collection, query.paging.owner)
        answer = await self._page(query, kept, kept.ranking.reports, cursor.position, stop)
        return Found(answer, kept.tier)

    def describe(self) -> Figures:
        return self._rankings.describe() | self._encoded.describe()

    async def _begin(self, query: SearchQuery, deadline: float) -> tuple[Kept, dict[str, ShardReport]]:
        """A new ranking, kept if it has more than one page, and the reports of its search."""
        self._rankings.require()
        depth = min(self._settings.ranking_depth, query.collection.search.max_k)
        if query.composition is not None:
            depth = min(depth, self._settings.max_candidates)
        depth = max(query.k, depth)
        deep = msgspec.structs.replace(query, k=depth, include=frozenset(), room=None)
        answer = await self._ranked.search(deep, _step(deadline))
        ranking = ranking_of(deep, answer)
        if len(ranking) <= query.k:
            return Kept(b"", ranking, None, "bypass"), dict(answer.reports)
        async with _until(deadline):
            return await self._rankings.keep(ranking), dict(answer.reports)

    async def _page(
        self, query: SearchQuery, kept: Kept, reports: dict[str, ShardReport], position: int, stop: float
    ) -> Answer:
        """The page of up to k rows from `position` on; `reports` are of the ranking's shards."""
        ranking = kept.ranking
        filter_ = filter_of(ranking, query.collection, self._settings)
        query = msgspec.structs.replace(query, filter=filter_)
        if not query.allow_partial:
            self._raise_if_lacking(query, reports, ranking.total)
            _raise_if_lists_lack(ranking)
        readable = as_readable(reports, ranking.shards_of(position))
        for _ in range(_TRIES):
            with suppress(RowsChangedError):
                now = dict(readable)
                window = await self._window(query, ranking, now, position, stop)
                self._raise_if_lacking(query, now, ranking.total)
                answer = await self._encoded.write(query, _ranked(ranking, window, now), stop, window.sizes)
                # What shards did for an earlier page was told with that, and of the ranking with the first.
                asked = {name for name, one in now.items() if one.attempts or one is not readable[name]}
                return _told(answer, query, kept, position, window, reports, asked)
        raise UnavailableError("documents were deleted or changed while they were read")

    def _raise_if_lacking(self, query: SearchQuery, reports: dict[str, ShardReport], total: int) -> None:
        every = list(reports.values())
        raise_if_unanswered(coverage_of(every, total), every, allow_partial=query.allow_partial)

    async def _window(
        self,
        query: SearchQuery,
        ranking: Ranking,
        reports: dict[str, ShardReport],
        position: int,
        stop: float,
    ) -> _Window:
        """The next k rows that are there; those of a shard that has failed count as if they were."""
        rows: list[Ranked] = []
        places: list[int] = []
        sizes: list[int] = []
        gone, lacking, end, size = 0, 0, position, query.k
        while end < len(ranking) and len(rows) + lacking < query.k:
            part = ranking.rows(end, end + size, query.collection.id.type)
            found = await self._columns.present(query, part, reports, _step(stop))
            for one, size_bytes in zip(part, found, strict=True):
                if len(rows) + lacking == query.k:
                    break
                if reports[one[1]].state is not ShardState.OK:
                    lacking += 1
                elif size_bytes is None:
                    gone += 1
                else:
                    rows.append(one)
                    places.append(end)
                    sizes.append(size_bytes)
                end += 1
            # Where many are gone, few questions find the next that are not.
            size *= 2
        return _Window(rows, places, sizes, end, gone)


def _ranked(ranking: Ranking, window: _Window, reports: dict[str, ShardReport]) -> RankedAnswer:
    return RankedAnswer(
        rows=window.rows,
        layout=Layout(frozenset()),
        coverage=coverage_of(list(reports.values()), ranking.total),
        reports=reports,
        unsettled=ranking.unsettled,
        notes=None if ranking.notes is None else [ranking.notes[place] for place in window.places],
        account=ranking.account,
        settled=False,
        limited=ranking.limited,
    )


def _told(
    answer: Answer,
    query: SearchQuery,
    kept: Kept,
    position: int,
    window: _Window,
    before: dict[str, ShardReport],
    asked: set[str],
) -> Answer:
    """The page with what it says of its ranking.

    `before` are the reports with which the page began, and `asked` the shards whose reports it shows.
    """
    ranking = kept.ranking
    reports = with_failures_of(before, {one.shard: one for one in answer.reports})
    coverage = coverage_of(list(reports.values()), ranking.total)
    short = None
    if answer.count < query.k:
        lacks = window.end < len(ranking) or not coverage.full
        short = Shortfall(query.k, answer.count, "coverage" if lacks else ranking.ended)
    if ranking.limited == "legs":
        coverage = msgspec.structs.replace(coverage, full=False)
    shown = [
        reports[one.shard] if before[one.shard].attempts else one
        for one in answer.reports
        if one.shard in asked
    ]
    more = window.end < len(ranking)
    page = Page(
        cursor=encode(Cursor(kept.id, window.end)) if more else None,
        position=position,
        ranked=len(ranking),
        gone=window.gone,
        kept=kept.kept,
        ended=None if more else ranking.ended,
    )
    return msgspec.structs.replace(
        answer,
        coverage=coverage,
        short=short,
        reports=tuple(shown),
        cacheable=False,
        account=ranking.account,
        page=page,
    )


def _raise_if_lists_lack(ranking: Ranking) -> None:
    """
    Raises:
        UnavailableError: the ranking was made without one of its lists, and stays so.
    """
    if ranking.limited == "legs":
        legs = ranking.account.legs if ranking.account is not None else ()
        lacking = "; ".join([f"{leg.name}: {leg.error}" for leg in legs if leg.error is not None])
        raise UnavailableError(f'the ranking lacks lists ({lacking}); search anew with "cursor": "*"')


def _step(stop: float) -> float:
    """Until when a step may take that others follow."""
    now = asyncio.get_running_loop().time()
    return now + _STEP_SHARE * (stop - now)


@asynccontextmanager
async def _until(stop: float) -> AsyncIterator[None]:
    """
    Raises:
        DeadlineError: it takes longer.
    """
    try:
        async with asyncio.timeout_at(stop):
            yield
    except TimeoutError as exc:
        raise DeadlineError("Redis, which keeps rankings, left no time") from exc
