"""Reads the columns of ranked rows that did not come along with them.

They are read by id, of rows that still match the filter, from nodes that are as new as those that ranked
them. A shard that fails meanwhile loses the rows that were still to be read, and its report says so. Bounds
on how much is read at once are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from router.freshness.freshness import Freshness
from router.postgres import sql
from router.query.answer import joined
from router.query.ranked import Ranked, RankedAnswer
from router.query.sizes import variable_columns
from router.query.types import Consistency, Probe, Row, SearchQuery, Shape, ShardReport, ShardState, Work
from router.stages.fanout import Fanout

__all__ = ["ColumnReader", "PendingRow", "RowsChangedError", "pending"]


class RowsChangedError(Exception):
    """A ranked row was deleted, or no longer matches, before its columns were read."""


class PendingRow(msgspec.Struct):
    """A row of an answer that is being completed: (id, distance, *columns), or without columns yet.

    `size_bytes` is what its columns of variable length take, as far as known.
    """

    row: Row
    shard: str
    complete: bool
    size_bytes: int = 0


def pending(answer: RankedAnswer) -> list[PendingRow]:
    """The rows of `answer`, without what their statements said beside columns."""
    fits = answer.layout.fits_at
    if fits is None:
        # Whoever asks has found columns missing, which without that mark are missing everywhere.
        return [PendingRow(row[:2], shard, complete=False) for row, shard in answer.rows]
    return [
        PendingRow(
            row[:fits],
            shard,
            complete=row[fits],
            size_bytes=sum([len(value) for value in row[2:fits] if isinstance(value, str)]),
        )
        for row, shard in answer.rows
    ]


class ColumnReader:
    """Asks shards for columns by id; `reports` are brought up to date with what each answered."""

    def __init__(self, fanout: Fanout, freshness: Freshness) -> None:
        self._fanout = fanout
        self._freshness = freshness

    def __repr__(self) -> str:
        return f"<ColumnReader {self._fanout!r}>"

    async def measure(
        self, query: SearchQuery, rows: Sequence[PendingRow], reports: dict[str, ShardReport], stop: float
    ) -> None:
        """Find out how long the columns of variable length are.

        Raises:
            OverloadedError, RowsChangedError
        """
        if not variable_columns(query.collection, query.include):
            return
        sizes = await self._by_id(sql.sizes_by_ids, query, rows, reports, stop)
        for one in rows:
            if not one.complete and one.shard in sizes:
                one.size_bytes = sizes[one.shard][one.row[0]][1]

    async def read(
        self, query: SearchQuery, rows: Sequence[PendingRow], reports: dict[str, ShardReport], stop: float
    ) -> list[Ranked]:
        """`rows` in their order and with all columns, but for those of shards that have failed.

        Raises:
            OverloadedError, RowsChangedError
        """
        found = await self._by_id(sql.select_by_ids, query, rows, reports, stop)
        completed: list[Ranked] = []
        for one in rows:
            if one.complete:
                completed.append((one.row, one.shard))
            elif one.shard in found:
                id_, *columns = found[one.shard][one.row[0]]
                completed.append(((id_, one.row[1], *columns), one.shard))
        return completed

    async def present(
        self, query: SearchQuery, rows: Sequence[Ranked], reports: dict[str, ShardReport], stop: float
    ) -> list[int | None]:
        """Of each row the bytes of its columns of variable length; None if it is gone, or its shard failed.

        Raises:
            OverloadedError
        """
        asked = [PendingRow(row, shard, complete=False) for row, shard in rows]
        found = await self._by_id(sql.sizes_by_ids, query, asked, reports, stop, may_lack=True)
        sizes = [found.get(one.shard, {}).get(one.row[0]) for one in asked]
        return [None if one is None else one[1] for one in sizes]

    async def look_up(
        self,
        statement: Callable[[Sequence[object]], sql.Statement],
        query: SearchQuery,
        places: Sequence[tuple[object, str]],
        reports: Mapping[str, ShardReport],
        stop: float,
    ) -> tuple[dict[object, Row], dict[str, ShardReport]]:
        """What `statement` says of the rows at `places`, by id, and what became of each shard.

        Rows that are gone, and those of shards that do not answer, are missing. `reports` are of the search
        that has found the rows.

        Raises:
            OverloadedError
        """
        ids: dict[str, list[object]] = {}
        for id_, shard in places:
            ids.setdefault(shard, []).append(id_)
        probes = {
            shard: self._probe(query, statement(part), part, reports[shard]) for shard, part in ids.items()
        }
        answers = await self._fanout.fetch(probes, stop)
        found = {
            row[0]: row
            for answer in answers.values()
            if answer.report.state is ShardState.OK
            for row in answer.rows
        }
        return found, {shard: answer.report for shard, answer in answers.items()}

    async def _by_id(
        self,
        statement: Callable[..., sql.Statement],
        query: SearchQuery,
        rows: Sequence[PendingRow],
        reports: dict[str, ShardReport],
        stop: float,
        *,
        may_lack: bool = False,
    ) -> dict[str, dict[object, Row]]:
        """What `statement` says of the rows that are not complete yet, by shard and id.

        A shard that did not answer, now or before, is not among them. A row that is gone is none of them
        where rows `may_lack`.

        Raises:
            OverloadedError, RowsChangedError
        """
        ids: dict[str, list[object]] = {}
        for one in rows:
            if not one.complete and reports[one.shard].state is ShardState.OK:
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
            before = reports[shard]
            # Of a kept ranking's shard nothing was asked before in this search: the account is of this.
            both = (before, answer.report) if before.attempts else (answer.report, before)
            reports[shard] = joined(*both)
            if answer.report.state is ShardState.OK:
                found[shard] = {row[0]: row for row in answer.rows}
                if len(found[shard]) < len(ids[shard]) and not may_lack:
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
