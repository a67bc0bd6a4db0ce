"""Single documents and counts, from the same replica sets that searches use."""

from __future__ import annotations

import asyncio

from router.documents.types import CountAnswer, ReadAnswer
from router.freshness.freshness import Freshness
from router.policy.deadline import stop_before
from router.postgres import sql
from router.query.answer import coverage_of, raise_if_stale, raise_if_unanswered
from router.query.errors import NotFoundError
from router.query.filter import Filter
from router.query.hits import field_values, fields_of
from router.query.plan import targets
from router.query.types import Probe, Shape, ShardRows, VectorFormat, Work
from router.stages.answer_memory import AnswerMemory, too_large
from router.stages.fanout import Fanout
from shard_config.model import Collection, ShardMap
from shard_config.partition import NoPlaceError, locate

__all__ = ["Reader"]

# A document whose columns of variable length take more is read again, once there is memory for it.
_INLINE_BYTES = 1 << 20


class Reader:
    """Reads of one shard map; fresh with regard to writes through this router's workers."""

    def __init__(
        self, shard_map: ShardMap, fanout: Fanout, freshness: Freshness, memory: AnswerMemory
    ) -> None:
        self._map = shard_map
        self._fanout = fanout
        self._freshness = freshness
        self._memory = memory

    def __repr__(self) -> str:
        return f"<Reader map {self._map.version}>"

    async def read(
        self,
        collection: Collection,
        id_: object,
        include: frozenset[str],
        deadline: float,
        vector_format: VectorFormat = "float",
    ) -> ReadAnswer | None:
        """The document with this id, or None if no shard holds it.

        Raises:
            AnswerTooLargeError, OverloadedError: the document is, or there is no memory for it.
            NotFoundError: it is not there, and may have been lost.
            UnavailableError, DeadlineError: a shard that may hold it did not answer, or was read from a node
                that is behind, which cannot prove that it is not there.
        """
        shards = self._map.shards_of(collection)
        if collection.sharded_by_id:
            try:
                shards = (locate(collection.sharding, id_),)
            except NoPlaceError:
                return None
        statement = sql.select_by_id(collection, id_, include, _INLINE_BYTES)
        parts = await self._fetch(statement, Work.LOOKUP, shards, deadline)
        names = [name for name, _ in sql.result_columns(collection, include)]
        fields = fields_of(collection, names, vector_format)
        # A node that is behind may still show the document where it was before it moved.
        for shard, part in sorted(parts.items(), key=lambda item: item[1].report.stale):
            rows, reservation, stale = part.rows, None, part.report.stale
            if rows and (size := rows[0][1 + len(names)]) > _INLINE_BYTES:
                if size > self._memory.most_each:
                    raise too_large(size, self._memory.most_each, self._memory.most_each)
                # While it becomes JSON it is held as the driver's bytes, as text and as what is sent.
                reservation = await self._memory.take(3 * size, deadline)
                again = sql.select_by_ids(collection, [id_], include)
                part = (await self._fetch(again, Work.COLUMNS, (shard,), deadline))[shard]
                raise_if_unanswered(coverage_of([part.report], 1), [part.report], allow_partial=False)
                rows, stale = part.rows, stale or part.report.stale
            for row in rows:
                document = {"id": row[0], "shard": shard}
                document |= field_values(row, 1, fields)
                return ReadAnswer(document, shard if stale else None, reservation)
        reports = [part.report for part in parts.values()]
        raise_if_unanswered(coverage_of(reports, len(shards)), reports, allow_partial=False)
        raise_if_stale(reports, "the document was not found, but may be there by now")
        if lost := [report.shard for report in reports if report.lost]:
            raise NotFoundError(
                f"no document with this id; {', '.join(lost)} has lost writes that were acknowledged"
            )
        return None

    async def count(self, collection: Collection, filter: Filter | None, deadline: float) -> CountAnswer:
        """How many documents match, on the shards that answered.

        Raises:
            UnavailableError, DeadlineError: none of them did.
        """
        statement = sql.count(collection, filter)
        shards = targets(filter, collection, self._map)
        parts = await self._fetch(statement, Work.COUNT, shards, deadline)
        reports = [part.report for part in parts.values()]
        coverage = coverage_of(reports, len(self._map.shards_of(collection)))
        raise_if_unanswered(coverage, reports, allow_partial=True)
        return CountAnswer(sum(row[0] for part in parts.values() for row in part.rows), coverage)

    async def _fetch(
        self, statement: sql.Statement, work: Work, shards: tuple[str, ...], deadline: float
    ) -> dict[str, ShardRows]:
        stop = stop_before(deadline, asyncio.get_running_loop().time())
        shape = Shape(statement.sql)
        probes = {
            shard: Probe(shape, statement.args, 1, 1, min_lsn=self._freshness.position(shard), work=work)
            for shard in shards
        }
        return await self._fanout.fetch(probes, stop)
