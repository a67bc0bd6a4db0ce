"""Ranked rows become the JSON of an answer's hits. Below this stage answers are rows, above it bytes.

It stands below the caches, which keep bytes, and above whatever ranks. Columns that did not come along with
the rows are read here and not before, since a large answer can only be held in memory if its rows are read
and written piece by piece. Invariants: beside the JSON, which has its memory reserved before it is made, no
more than a bounded number of bytes of rows is held; the answer ends as soon as it is known to be too large.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Mapping, Sequence
from contextlib import AsyncExitStack, suppress

import msgspec

from router.policy.deadline import stop_before
from router.query.answer import (
    as_readable,
    coverage_of,
    raise_if_unanswered,
    shortfall,
    with_failures_of,
)
from router.query.composition import Account
from router.query.errors import DeadlineError, UnavailableError
from router.query.grouping import without_lost
from router.query.hits import Notes
from router.query.ranked import RankedAnswer
from router.query.sizes import expected_bytes, fixed_bytes, least_bytes, runs
from router.query.types import Answer, Found, SearchQuery, ShardReport
from router.stages.answer_memory import AnswerMemory, Reservation, too_large
from router.stages.columns import ColumnReader, PendingRow, RowsChangedError, pending
from router.stages.json_pieces import SLICE_BYTES, array_of, json_of, write_slices
from router.stages.stage import Figures, Stage

__all__ = ["Encoded"]

# A search whose rows have changed before they were read is made anew, but not again and again.
_TRIES = 2
# Of rows that are read together: 0.5 ms of vectors as JSON; a few at first, which tell of too large answers.
_READ_BYTES = 1 << 20
# An answer is given up when this much of it says that it will be too large by this factor.
_SURE_BYTES = 1 << 16
_SURE_FACTOR = 1.1


class Encoded:
    """Writes what its inner stage has ranked, and reads the columns that are missing from it."""

    def __init__(
        self, inner: Stage[SearchQuery, RankedAnswer], columns: ColumnReader, memory: AnswerMemory
    ) -> None:
        self._inner = inner
        self._columns = columns
        self._memory = memory

    def __repr__(self) -> str:
        return f"<Encoded {self._memory!r}>"

    async def search(self, query: SearchQuery, deadline: float) -> Found:
        """
        Raises:
            OverloadedError: there is no memory for a large answer.
            AnswerTooLargeError: it would be larger than an answer may be.
            UnavailableError: rows changed again and again between ranking and reading.
            and what the inner stage raises.
        """
        stop = stop_before(deadline, asyncio.get_running_loop().time())
        for _ in range(_TRIES):
            with suppress(RowsChangedError):
                answer = await self.write(query, await self._inner.search(query, deadline), stop)
                return Found(answer, "miss" if query.cached else "bypass")
        raise UnavailableError("documents were deleted or changed while they were read")

    async def write(
        self, query: SearchQuery, ranked: RankedAnswer, stop: float, sizes: Sequence[int] | None = None
    ) -> Answer:
        """The answer that `ranked` is; `sizes` of its rows' columns of variable length, where they are known.

        Raises:
            RowsChangedError: a row is not there any more.
            OverloadedError, AnswerTooLargeError, UnavailableError, DeadlineError
        """
        if ranked.complete(query.include):
            pieces = await json_of(query, ranked.rows, ranked.layout.fixed_bytes, _notes(ranked))
            return _answer(query, ranked, pieces, _by_shard(ranked))
        return await self._completed(query, ranked, stop, sizes)

    def describe(self) -> Figures:
        return self._inner.describe()

    async def _completed(
        self, query: SearchQuery, ranked: RankedAnswer, stop: float, sizes: Sequence[int] | None = None
    ) -> Answer:
        """The same where columns are still to be read, within the memory that is reserved for them."""
        rows = pending(ranked)
        reports = as_readable(ranked.reports, {one.shard for one in rows})
        counts = dict.fromkeys(reports, 0)
        notes, kept = _notes(ranked), set[object]()
        async with AsyncExitStack() as stack:
            if query.room is not None:
                try:
                    async with asyncio.timeout_at(stop):
                        await stack.enter_async_context(query.room)
                except TimeoutError as exc:
                    raise DeadlineError("the large answers of the same batch took all its time") from exc
            if sizes is None:
                await self._columns.measure(query, rows, reports, stop)
            else:
                for one, size_bytes in zip(rows, sizes, strict=True):
                    one.size_bytes = size_bytes
            reservation = await self._reserve(query, rows, stop)
            try:
                pieces = await self._write(query, rows, notes, reports, counts, stop, kept)
                reservation.resize(sum(map(len, pieces)))
                # A shard may have failed since it ranked its rows.
                coverage = coverage_of(list(reports.values()), ranked.coverage.shards.total)
                raise_if_unanswered(coverage, list(reports.values()), allow_partial=query.allow_partial)
                reports = with_failures_of(ranked.reports, reports)
                coverage = coverage_of(list(reports.values()), ranked.coverage.shards.total)
            except BaseException:
                reservation.release()
                raise
        ranked = msgspec.structs.replace(
            ranked,
            rows=(),
            notes=None,
            coverage=msgspec.structs.replace(coverage, full=coverage.full and ranked.limited != "legs"),
            reports=reports,
            account=_account_of(ranked, kept),
        )
        return _answer(query, ranked, pieces, counts, reservation)

    async def _reserve(self, query: SearchQuery, rows: Sequence[PendingRow], stop: float) -> Reservation:
        """Memory for the JSON of `rows`, and for the widest of them in its other forms."""
        args = query.collection, query.include, [one.size_bytes for one in rows], query.vector_format
        expected = expected_bytes(*args)
        if least_bytes(*args) > self._left(query):
            raise too_large(expected, self._left(query), self._memory.most_each)
        # The widest row is held as the driver's bytes and as text while it becomes JSON.
        widest = max([one.size_bytes for one in rows], default=0)
        # A batch holds what it has made until it is sent, and who holds memory must not wait for more.
        holding = query.room is not None and query.room.left < self._memory.most_each
        size = min(expected, self._memory.most_each) + 2 * widest
        return await self._memory.take(size, 0.0 if holding else stop)

    async def _write(
        self,
        query: SearchQuery,
        rows: Sequence[PendingRow],
        notes: Notes,
        reports: dict[str, ShardReport],
        counts: dict[str, int],
        stop: float,
        kept: set[object],
    ) -> list[bytes]:
        """The JSON array of `rows`, read and written run by run.

        `counts` becomes the hits of each shard; `kept` their ids, where they have notes.
        """
        fixed = fixed_bytes(query.collection, query.include)
        widths = [fixed + one.size_bytes for one in rows]
        total, read, size = sum(widths), 0, 0
        pieces: list[bytes] = []

        def take(piece: bytes) -> None:
            nonlocal size
            pieces.append(piece)
            size += len(piece)
            if size > self._left(query):
                raise too_large(size, self._left(query), self._memory.most_each)

        # A few rows first: of an answer that is too large, they tell.
        for run in runs(widths, SLICE_BYTES, _READ_BYTES):
            completed = await self._columns.read(query, [rows[i] for i in run], reports, stop)
            for row, shard in completed:
                counts[shard] += 1
                if notes is not None:
                    kept.add(row[0])
            await write_slices(query, completed, max(widths[i] for i in run), take, notes)
            read += sum(widths[i] for i in run)
            expected = size * total // read
            if size > _SURE_BYTES and expected > _SURE_FACTOR * self._left(query):
                raise too_large(expected, self._left(query), self._memory.most_each)
        return array_of(pieces)

    def _left(self, query: SearchQuery) -> int:
        """How large the answer may be."""
        return self._memory.most_each if query.room is None else query.room.left


def _notes(ranked: RankedAnswer) -> Notes:
    """By id, since rows of a shard that fails while columns are read are lost in between."""
    if ranked.notes is None:
        return None
    return {row[0]: note for (row, _), note in zip(ranked.rows, ranked.notes, strict=True)}


def _account_of(ranked: RankedAnswer, kept: Container[object]) -> Account | None:
    """The account, when of all rows only those in `kept` are left."""
    account = ranked.account
    if account is None or account.groups is None:
        return account
    groups = without_lost(account.groups, [row[0] for row, _ in ranked.rows], kept)
    return msgspec.structs.replace(account, groups=groups)


def _by_shard(ranked: RankedAnswer) -> dict[str, int]:
    counts = dict.fromkeys(ranked.reports, 0)
    for _, shard in ranked.rows:
        counts[shard] += 1
    return counts


def _answer(
    query: SearchQuery,
    ranked: RankedAnswer,
    pieces: Sequence[bytes],
    counts: Mapping[str, int],
    reservation: Reservation | None = None,
) -> Answer:
    """`pieces` are the hits, `counts` how many there are of each shard."""
    count = sum(counts.values())
    return Answer(
        hits=msgspec.Raw(pieces[0]),
        count=count,
        coverage=ranked.coverage,
        short=shortfall(query, count, ranked),
        reports=tuple(
            [msgspec.structs.replace(one, kept=counts[one.shard]) for one in ranked.reports.values()]
        ),
        cacheable=ranked.cacheable,
        more=tuple(pieces[1:]),
        reservation=reservation,
        unsettled=ranked.unsettled,
        account=ranked.account,
    )
