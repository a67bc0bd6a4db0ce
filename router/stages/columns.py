"""The hits of an answer that is large, or may be: columns fetched by id where they did not come along, and
JSON in pieces.

The rows were ranked before; their columns are read now, of rows that still match the filter, from nodes
that are as new as those that ranked them. Invariants: no more than a bounded number of bytes of rows is held
beside the answer's own; the answer ends as soon as it is known to be too large; after each piece everybody
else has a turn, as long as the piece took.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from time import perf_counter

import msgspec

from router.freshness.freshness import Freshness
from router.postgres import sql
from router.query.errors import DeadlineError
from router.query.hits import encode_hits, hit_of, json_forms, pieces_of
from router.query.sizes import expected_bytes, fixed_bytes, least_bytes, runs, variable_columns
from router.query.types import (
    Consistency,
    Probe,
    Row,
    SearchQuery,
    Shape,
    ShardReport,
    ShardState,
    Work,
)
from router.stages.answer_memory import AnswerMemory, Held, too_large
from router.stages.fanout import Fanout

__all__ = ["Columns", "Hits", "RankedHit", "RowsChangedError", "hand_over", "write_hits"]

# Of rows that are read together, and of those that become JSON in one turn of the loop: 0.5 ms of vectors.
_READ_BYTES = 1 << 20
_SLICE_BYTES = 1 << 16
# A row of more becomes JSON piece by piece itself.
_WIDE_BYTES = 1 << 18
# What a hit without columns counts as.
_HIT_BYTES = 64
# An answer is given up when this much of it says that it will be too large by this factor.
_SURE_BYTES = 1 << 16
_SURE_FACTOR = 1.1


class RowsChangedError(Exception):
    """A ranked row was deleted, or no longer matches, before its columns were read."""


class RankedHit(msgspec.Struct):
    """A row that the answer keeps: (id, distance, *columns), or (id, distance) where they are to be fetched.

    `size_bytes` is what its columns of variable length take, as far as known.
    """

    row: Row
    shard: str
    fetched: bool
    size_bytes: int = 0


class Hits(msgspec.Struct, frozen=True):
    """The JSON array in pieces, how many hits there are by shard, and the memory that they have reserved."""

    pieces: list[bytes]
    counts: dict[str, int]
    held: Held | None = None


class Columns:
    """Reads the columns of ranked rows, and writes the hits."""

    def __init__(self, fanout: Fanout, freshness: Freshness, memory: AnswerMemory) -> None:
        self._fanout = fanout
        self._freshness = freshness
        self._memory = memory

    def __repr__(self) -> str:
        return f"<Columns {self._memory!r}>"

    async def hits(
        self, query: SearchQuery, ranked: Sequence[RankedHit], reports: dict[str, ShardReport], stop: float
    ) -> Hits:
        """The hits of `ranked`, in their order; `reports` are brought up to date.

        A shard that fails meanwhile loses the hits that were still to be read, and its report says so.

        Raises:
            AnswerTooLargeError, OverloadedError, DeadlineError
            RowsChangedError
        """
        async with AsyncExitStack() as stack:
            if query.room is not None:
                try:
                    async with asyncio.timeout_at(stop):
                        await stack.enter_async_context(query.room)
                except TimeoutError as exc:
                    raise DeadlineError("the large answers of the same batch took all its time") from exc
            await self._measure(query, ranked, reports, stop)
            args = query.collection, query.include, [r.size_bytes for r in ranked], query.vector_format
            expected = expected_bytes(*args)
            if least_bytes(*args) > self._left(query):
                raise too_large(expected, self._left(query), self._memory.most_each)
            # The widest row is held as the driver's bytes and as text while it becomes JSON.
            widest = max((r.size_bytes for r in ranked), default=0)
            # A batch holds what it has made until it is sent, and who holds memory must not wait for more.
            holding = query.room is not None and query.room.left < self._memory.most_each
            until = 0.0 if holding else stop
            held = await self._memory.take(min(expected, self._memory.most_each) + 2 * widest, until)
            try:
                return await self._write(query, ranked, reports, stop, held)
            except BaseException:
                held.release()
                raise

    async def _measure(
        self, query: SearchQuery, ranked: Sequence[RankedHit], reports: dict[str, ShardReport], stop: float
    ) -> None:
        """Ask how long the columns of variable length are."""
        if not variable_columns(query.collection, query.include):
            return
        rows = await self._by_id(sql.sizes_by_ids, query, ranked, reports, stop)
        for one in ranked:
            if not one.fetched and one.shard in rows:
                one.size_bytes = rows[one.shard][one.row[0]][1]

    async def _write(
        self,
        query: SearchQuery,
        ranked: Sequence[RankedHit],
        reports: dict[str, ShardReport],
        stop: float,
        held: Held,
    ) -> Hits:
        fixed = fixed_bytes(query.collection, query.include)
        widths = [fixed + one.size_bytes for one in ranked]
        total, read, size = sum(widths), 0, 0
        pieces: list[bytes] = []
        counts = dict.fromkeys(reports, 0)

        def take(piece: bytes) -> None:
            nonlocal size
            pieces.append(piece)
            size += len(piece)
            if size > self._left(query):
                raise too_large(size, self._left(query), self._memory.most_each)

        # A few rows first: of an answer that is too large, they tell.
        for run in runs(widths, _SLICE_BYTES, _READ_BYTES):
            part = [ranked[i] for i in run]
            found = await self._by_id(sql.select_by_ids, query, part, reports, stop)
            rows = _completed(part, found)
            for _, shard in rows:
                counts[shard] += 1
            await in_slices(query, rows, max(widths[i] for i in run), take)
            read += sum(widths[i] for i in run)
            expected = size * total // read
            if size > _SURE_BYTES and expected > _SURE_FACTOR * self._left(query):
                raise too_large(expected, self._left(query), self._memory.most_each)
        held.resize(size + 1)  # a comma less, and two brackets
        return Hits(_array(pieces), counts, held)

    async def _by_id(
        self,
        statement: Callable[..., sql.Statement],
        query: SearchQuery,
        ranked: Sequence[RankedHit],
        reports: dict[str, ShardReport],
        stop: float,
    ) -> dict[str, dict[object, Row]]:
        """What `statement` says of the rows that are not fetched yet, by shard and id.

        A shard that did not answer, now or before, is not among them.
        """
        ids: dict[str, list[object]] = {}
        for one in ranked:
            if not one.fetched and reports[one.shard].state is ShardState.OK:
                ids.setdefault(one.shard, []).append(one.row[0])
        probes = {
            shard: self._probe(
                query, statement(query.collection, part, query.include, query.filter), part, reports[shard]
            )
            for shard, part in ids.items()
        }
        answers = await self._fanout.fetch(probes, stop)
        found: dict[str, dict[object, Row]] = {}
        for shard, answer in answers.items():
            reports[shard] = both_rounds(reports[shard], answer.report)
            if answer.report.state is ShardState.OK:
                found[shard] = {row[0]: row for row in answer.rows}
                if len(found[shard]) < len(ids[shard]):
                    raise RowsChangedError
        return found

    def _probe(
        self, query: SearchQuery, statement: sql.Statement, ids: list[object], report: ShardReport
    ) -> Probe:
        return Probe(
            Shape(statement.sql),
            statement.args,
            len(ids),
            len(ids),
            caller=query.caller,
            primary_only=query.consistency is Consistency.STRONG,
            # An older node might not have the row yet.
            min_lsn=max(report.lsn, self._freshness.position(report.shard)),
            work=Work.COLUMNS,
        )

    def _left(self, query: SearchQuery) -> int:
        return self._memory.most_each if query.room is None else query.room.left


def _completed(part: Sequence[RankedHit], found: Mapping[str, Mapping[object, Row]]) -> list[tuple[Row, str]]:
    """Rows with their columns, but those of shards that have failed."""
    rows: list[tuple[Row, str]] = []
    for one in part:
        if one.fetched:
            rows.append((one.row, one.shard))
        elif one.shard in found:
            id_, *columns = found[one.shard][one.row[0]]
            rows.append(((id_, one.row[1], *columns), one.shard))
    return rows


def _small(rows: Sequence[object], width: int) -> bool:
    return len(rows) * max(width, _HIT_BYTES) <= _SLICE_BYTES


async def write_hits(query: SearchQuery, rows: Sequence[tuple[Row, str]], width: int) -> list[bytes]:
    """The JSON array of rows that are here, `width` bytes wide each, in as many pieces as it takes turns."""
    if _small(rows, width):
        columns = sql.result_columns(query.collection, query.include)
        return [encode_hits(rows, query.collection, columns, query.vector_format)]
    pieces: list[bytes] = []
    await in_slices(query, rows, width, pieces.append)
    return _array(pieces)


async def in_slices(
    query: SearchQuery, rows: Sequence[tuple[Row, str]], width: int, take: Callable[[bytes], object]
) -> None:
    """Hand the JSON of rows, each and a comma, to `take`; none of them is wider than `width` bytes."""
    collection = query.collection
    columns = sql.result_columns(collection, query.include)
    names = [name for name, _ in columns]
    forms = json_forms(collection, names)
    each = max(1, _SLICE_BYTES // max(width, _HIT_BYTES))
    for start in range(0, len(rows), each):
        part = rows[start : start + each]
        began = perf_counter()
        if width > _WIDE_BYTES:
            hit = hit_of(*part[0], collection, names, forms, query.vector_format)
            await hand_over(pieces_of(hit), take)
            take(b",")
            continue
        array = memoryview(encode_hits(part, collection, columns, query.vector_format))
        take(b"".join((array[1:-1], b",")))
        await asyncio.sleep(perf_counter() - began)


async def hand_over(pieces: Iterable[bytes], take: Callable[[bytes], object]) -> None:
    """Give others a turn after each piece."""
    for piece in pieces:
        take(piece)
        await asyncio.sleep(0)


def _array(pieces: list[bytes]) -> list[bytes]:
    """Rows that each end with a comma, as an array."""
    if pieces:
        pieces[-1] = pieces[-1][:-1]
    return [b"[", *pieces, b"]"]


def both_rounds(one: ShardReport, two: ShardReport) -> ShardReport:
    """A shard's account of two statements of one search; it has failed if the second has."""
    return msgspec.structs.replace(
        one,
        state=two.state,
        error=two.error,
        fault=two.fault,
        attempts=one.attempts + two.attempts,
        queue_ms=one.queue_ms + two.queue_ms,
        execute_ms=one.execute_ms + two.execute_ms,
        total_ms=one.total_ms + two.total_ms,
        stale=one.stale or two.stale,
        lsn=min(one.lsn, two.lsn),
        hedged=one.hedged or two.hedged,
        hedge=two.hedge or one.hedge,
    )
