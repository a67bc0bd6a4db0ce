"""Many documents at once: those of given ids, and page by page all that there are, in the order of ids.

Columns come along with a row where they are short, and are read by id, a bounded number of bytes at a time,
where they are not; so an answer takes no more memory than is reserved for it. Invariants: an id is called
missing only if each shard that may hold it has said so, from a node that is not behind; a page is whole or an
error, so that whoever goes on from page to page leaves no shard out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import msgspec

from router.documents.types import DocumentList, DocumentPage
from router.freshness.freshness import Freshness
from router.policy.deadline import stop_before
from router.postgres import sql
from router.postgres.listing import many_by_id, next_ids
from router.query.answer import coverage_of, joined, raise_if_stale, raise_if_unanswered
from router.query.filter import Filter
from router.query.hits import Fields, encode_document, field_values, fields_of, pieces_of
from router.query.merge import merge_by_id
from router.query.plan import ids_by_shard, targets
from router.query.sizes import expected_bytes, fixed_bytes, least_bytes, runs
from router.query.types import (
    Coverage,
    Probe,
    Row,
    Shape,
    ShardReport,
    ShardRows,
    ShardState,
    VectorFormat,
    Work,
)
from router.stages.answer_memory import AnswerMemory, Reservation, too_large
from router.stages.fanout import Fanout
from router.stages.json_pieces import SLICE_BYTES, array_of
from shard_config.model import Collection, ShardMap

__all__ = ["Listing"]

# What all shards together may send along with the rows, what is then read at once, and what an answer may
# take without memory being reserved for it.
_INLINE_BYTES = 1 << 20
# A page ends early that is expected to take more: a client that exports has to hold it as well.
_PAGE_BYTES = 16 << 20
# A document that takes more becomes JSON piece by piece.
_WIDE_BYTES = 1 << 18
# Twice the documents after which everybody else has a turn: 0.5 ms.
_SLICE_PIECES = 200


class _Listed(msgspec.Struct):
    """A row (id, *columns), or (id,) as long as its columns have not been read."""

    row: Row
    shard: str
    complete: bool
    size_bytes: int


class _Wanted(msgspec.Struct, frozen=True):
    """What is wanted of each document."""

    collection: Collection
    include: frozenset[str]
    vector_format: VectorFormat
    primary_only: bool = False


class Listing:
    """Reads of one shard map; fresh with regard to writes through this router's workers."""

    def __init__(
        self, shard_map: ShardMap, fanout: Fanout, freshness: Freshness, memory: AnswerMemory
    ) -> None:
        self._map = shard_map
        self._fanout = fanout
        self._freshness = freshness
        self._memory = memory

    def __repr__(self) -> str:
        return f"<Listing map {self._map.version}>"

    async def get(
        self,
        collection: Collection,
        ids: Sequence[object],
        include: frozenset[str],
        deadline: float,
        vector_format: VectorFormat = "float",
    ) -> DocumentList:
        """The documents with these ids, which do not repeat, in the order of the ids.

        Raises:
            AnswerTooLargeError, OverloadedError: they are, or there is no memory for them.
            UnavailableError, DeadlineError: no shard answered.
        """
        stop = stop_before(deadline, asyncio.get_running_loop().time())
        wanted = _Wanted(collection, include, vector_format)
        groups = ids_by_shard(ids, collection, self._map)
        most = _room(collection, include, len(ids))
        parts = await self._fetch(
            wanted,
            {shard: many_by_id(collection, part, include, most) for shard, part in groups.items()},
            {shard: len(part) for shard, part in groups.items()},
            Work.COLUMNS,
            stop,
        )
        reports = {shard: part.report for shard, part in parts.items()}
        total = len(self._map.shards_of(collection))
        raise_if_unanswered(coverage_of([*reports.values()], total), [*reports.values()], allow_partial=True)
        found: dict[object, _Listed] = {}
        # A node that is behind may still show a document where it was before it moved.
        for shard, part in sorted(parts.items(), key=lambda item: item[1].report.stale):
            for row in part.rows:
                found.setdefault(row[0], _listed(row, shard, most))
        rows = [found[id_] for id_ in ids if id_ in found]
        written = await self._written(wanted, rows, reports, stop, cut=False)
        silent = [shard for shard, one in reports.items() if one.state is not ShardState.OK or one.stale]
        unsure = {id_ for shard in silent for id_ in groups[shard]}
        rest = [id_ for id_ in ids if id_ not in written.ids]
        return DocumentList(
            array_of(written.pieces),
            missing=tuple(id_ for id_ in rest if id_ not in unsure),
            unread=tuple(id_ for id_ in rest if id_ in unsure),
            coverage=coverage_of([*reports.values()], total),
            reservation=written.reservation,
        )

    async def page(
        self,
        collection: Collection,
        filter: Filter | None,
        after: object,
        limit: int,
        include: frozenset[str],
        deadline: float,
        vector_format: VectorFormat = "float",
        *,
        primary_only: bool = False,
        lines: bool = False,
    ) -> DocumentPage:
        """Of the documents that match, the `limit` that have the lowest ids above `after`, or fewer.

        With `lines` its pieces are documents that each end with a newline, instead of an array.

        Raises:
            AnswerTooLargeError: the first of them is.
            OverloadedError: there is no memory for them.
            UnavailableError, DeadlineError: a shard did not answer, or was read from a node that is behind.
        """
        stop = stop_before(deadline, asyncio.get_running_loop().time())
        wanted = _Wanted(collection, include, vector_format, primary_only)
        shards = targets(filter, collection, self._map)
        most = _room(collection, include, (limit + 1) * len(shards))
        # One more than wanted tells whether there are more.
        statement = next_ids(collection, filter, after, limit + 1, include, most)
        parts = await self._fetch(
            wanted,
            dict.fromkeys(shards, statement),
            dict.fromkeys(shards, limit + 1),
            Work.PAGE,
            stop,
        )
        reports = {shard: part.report for shard, part in parts.items()}
        self._whole(collection, reports)
        merged = merge_by_id({shard: part.rows for shard, part in parts.items()}, limit + 1)
        rows = _first([_listed(row, shard, most) for row, shard in merged[:limit]], wanted, self._page_bytes)
        written = await self._written(wanted, rows, reports, stop, cut=True, lines=lines)
        try:
            # A shard may have failed since it listed its rows.
            coverage = self._whole(collection, reports)
        except BaseException:
            if written.reservation is not None:
                written.reservation.release()
            raise
        last = rows[written.considered - 1].row[0] if written.considered else None
        return DocumentPage(
            written.pieces if lines else array_of(written.pieces),
            last=last if written.considered < len(merged) else None,
            coverage=coverage,
            reservation=written.reservation,
        )

    @property
    def _page_bytes(self) -> int:
        return min(_PAGE_BYTES, self._memory.most_each)

    def _whole(self, collection: Collection, reports: Mapping[str, ShardReport]) -> Coverage:
        """The coverage of a page, which lacks nothing.

        Raises:
            UnavailableError, DeadlineError, MisconfiguredError, InvalidError
        """
        every = [*reports.values()]
        coverage = coverage_of(every, len(self._map.shards_of(collection)))
        raise_if_unanswered(coverage, every, allow_partial=False)
        raise_if_stale(every, "documents that exist might be left out")
        return coverage

    async def _written(
        self,
        wanted: _Wanted,
        rows: Sequence[_Listed],
        reports: dict[str, ShardReport],
        stop: float,
        *,
        cut: bool,
        lines: bool = False,
    ) -> _Written:
        """The JSON of `rows`, whose columns are read before if they are lacking. It tells `reports` of that.

        A row that is gone by then, or whose shard has failed, is left out. With `cut` the answer ends before
        the document that it has no room for, if that is not the first.
        """
        collection = wanted.collection
        fixed = fixed_bytes(collection, wanted.include)
        widths = [fixed + one.size_bytes for one in rows]
        reservation = None
        if sum(widths) > _INLINE_BYTES:
            sizes = [one.size_bytes for one in rows]
            args = collection, wanted.include, sizes, wanted.vector_format
            expected, most = expected_bytes(*args), self._memory.most_each
            if not cut and least_bytes(*args) > most:
                raise too_large(expected, most, most)
            # The widest is held as the driver's bytes and as text while it becomes JSON.
            size = min(expected, most) + 2 * max(widths)
            reservation = await self._memory.take(size, stop)
        names = [name for name, _ in sql.result_columns(collection, wanted.include)]
        fields = fields_of(collection, names, wanted.vector_format)
        written = _Written(self._memory.most_each, cut=cut, end=b"\n" if lines else b",")
        try:
            for run in runs(widths, SLICE_BYTES, _INLINE_BYTES):
                part = [rows[i] for i in run]
                await self._complete(wanted, part, reports, stop)
                for i, one in zip(run, part, strict=True):
                    if one.complete and not await written.add(one, fields, widths[i]):
                        break
                    one.row = one.row[:1]  # the rest is in the answer, and not to be held twice
                    written.considered += 1
                if written.considered <= run[-1]:
                    break
        except BaseException:
            if reservation is not None:
                reservation.release()
            raise
        written.flush()
        if reservation is not None:
            reservation.resize(written.size)
            written.reservation = reservation
        return written

    async def _complete(
        self, wanted: _Wanted, rows: Sequence[_Listed], reports: dict[str, ShardReport], stop: float
    ) -> None:
        """Read the columns of `rows` that have not come along."""
        lacking: dict[str, dict[object, _Listed]] = {}
        for one in rows:
            if not one.complete and reports[one.shard].state is ShardState.OK:
                lacking.setdefault(one.shard, {})[one.row[0]] = one
        parts = await self._fetch(
            wanted,
            {
                shard: sql.select_by_ids(wanted.collection, list(part), wanted.include)
                for shard, part in lacking.items()
            },
            {shard: len(part) for shard, part in lacking.items()},
            Work.COLUMNS,
            stop,
            reports,
        )
        for shard, part in parts.items():
            reports[shard] = joined(reports[shard], part.report)
            for row in part.rows:
                one = lacking[shard][row[0]]
                one.row, one.complete = row, True

    async def _fetch(
        self,
        wanted: _Wanted,
        statements: Mapping[str, sql.Statement],
        counts: Mapping[str, int],
        work: Work,
        stop: float,
        before: Mapping[str, ShardReport] = {},
    ) -> dict[str, ShardRows]:
        """`counts` are how many rows each shard returns at most; `before` is from where they were found."""
        probes = {}
        for shard, statement in statements.items():
            # An older node might not have the row yet.
            seen = before[shard].lsn if shard in before else 0
            probes[shard] = Probe(
                Shape(statement.sql),
                statement.args,
                counts[shard],
                counts[shard],
                primary_only=wanted.primary_only,
                min_lsn=max(seen, self._freshness.position(shard)),
                work=work,
            )
        return await self._fanout.fetch(probes, stop) if probes else {}


class _Written:
    """Documents as JSON, each with `end` behind it, in pieces.

    Attributes:
        ids: of the documents in it.
        considered: how many rows are in it, or left out for being gone.
    """

    def __init__(self, most: int, *, cut: bool, end: bytes) -> None:
        self.pieces: list[bytes] = []
        self.size = 0
        self.ids: set[object] = set()
        self.considered = 0
        self.reservation: Reservation | None = None
        self._most = most
        self._cut = cut
        self._end = end
        self._slice: list[bytes] = []
        self._slice_bytes = 0

    async def add(self, one: _Listed, fields: Fields, width: int) -> bool:
        """False if there is no room for it, and the answer is to end before it.

        Raises:
            AnswerTooLargeError
        """
        document = {"id": one.row[0], "shard": one.shard} | field_values(one.row, 1, fields)
        pieces: list[bytes] = []
        size = 0
        for piece in pieces_of(document) if width > _WIDE_BYTES else (encode_document(document),):
            pieces.append(piece)
            size += len(piece)
            if self.size + size > self._most:
                if self._cut and self.ids:
                    return False
                raise too_large(self.size + size, self._most, self._most)
            if width > _WIDE_BYTES:
                await asyncio.sleep(0)
        self.ids.add(one.row[0])
        self.size += size + 1
        self._slice += pieces
        self._slice.append(self._end)
        self._slice_bytes += size
        if self._slice_bytes > SLICE_BYTES or len(self._slice) > _SLICE_PIECES:
            self.flush()
            await asyncio.sleep(0)
        return True

    def flush(self) -> None:
        if self._slice:
            self.pieces.append(b"".join(self._slice))
        self._slice, self._slice_bytes = [], 0


def _room(collection: Collection, include: frozenset[str], rows: int) -> int | None:
    """How many bytes of variable length each of so many rows may bring along; None for no columns at all."""
    room = _INLINE_BYTES // max(1, rows) - fixed_bytes(collection, include)
    return room if room >= 0 else None


def _listed(row: Row, shard: str, most: int | None) -> _Listed:
    complete = most is not None and row[-1] <= most
    return _Listed(row[:-1] if complete else row[:1], shard, complete, row[-1])


def _first(rows: list[_Listed], wanted: _Wanted, most: int) -> list[_Listed]:
    """The first rows, as many as are expected to take `most` bytes; one at least."""
    size = 0
    for i, one in enumerate(rows):
        size += expected_bytes(wanted.collection, wanted.include, [one.size_bytes], wanted.vector_format)
        if size > most and i:
            return rows[:i]
    return rows
