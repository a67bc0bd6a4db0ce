"""Reading, deleting and counting documents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from msgspec import UNSET

from router.decode.bodies import DeleteBody
from router.decode.body import Decoder
from router.http.answers import coverage_view
from router.http.content import read_json
from router.http.document_answers import CountView
from router.http.message import Reply, Request
from router.http.outcomes import delete_reply
from router.http.parameters import (
    check_filter,
    checked_ids,
    included,
    no_document,
    path_id,
    query_filter,
    vector_format,
)
from router.query import filter as filters
from router.query.answer import faults_of
from router.query.errors import InvalidError
from router.query.hits import pieces_of
from router.settings import Settings
from router.stages.answer_memory import too_large
from router.stages.json_pieces import write_yielding

__all__ = ["STALE_HEADER", "Documents"]

# Not in the body, where any name may be that of a column.
STALE_HEADER = "X-Stale-Shard"


class Documents:
    """The handlers of single documents, deletes and counts."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._decoder = Decoder(DeleteBody, exact=True)
        self._encoder = msgspec.json.Encoder(decimal_format="number")

    async def read(self, request: Request) -> Reply:
        collection = request.collection
        include = included(request.query.get("include"), collection)
        id_ = path_id(request, collection)
        deadline = asyncio.get_running_loop().time() + collection.search.timeout
        answer = await request.backend.read(collection, id_, include, deadline, vector_format(request))
        if answer is None:
            raise no_document(request, collection)
        reply = Reply(b"", reservation=answer.reservation)
        if answer.reservation is None:
            reply.body = self._encoder.encode(answer.document)
        else:
            pieces: list[bytes] = []
            reply.more = pieces
            await write_yielding(pieces_of(answer.document), self._within(pieces))
        if answer.stale is not None:
            reply.headers = [(STALE_HEADER.lower().encode(), answer.stale.encode())]
        return reply

    async def delete_one(self, request: Request) -> Reply:
        collection = request.collection
        id_ = path_id(request, collection)
        outcome = await request.backend.delete(collection, [id_], self._write_deadline())
        if not outcome.deleted and all(write.ok for write in outcome.shards):
            raise no_document(request, collection)
        return delete_reply(collection.name, outcome, request.id, inside=request.inside)

    async def delete_many(self, request: Request) -> Reply:
        collection = request.collection
        body = self._decoder.decode(await read_json(request, self._settings))
        if (body.ids is UNSET) == (body.filter is UNSET):
            raise InvalidError.at("", "a delete takes ids or a filter, one of the two")
        if body.ids is not UNSET:
            ids = checked_ids(body.ids, collection, self._settings.max_documents)
            outcome = await request.backend.delete(collection, ids, self._write_deadline())
        else:
            assert body.filter is not UNSET
            filter_ = check_filter(body.filter, collection, self._settings)
            outcome = await request.backend.delete_matching(collection, filter_, self._write_deadline())
        return delete_reply(collection.name, outcome, request.id, inside=request.inside)

    async def count(self, request: Request) -> Reply:
        collection = request.collection
        tree = query_filter(request)
        filter_ = None if tree is None else filters.parse(collection, tree, self._settings)
        deadline = asyncio.get_running_loop().time() + collection.search.timeout
        answer = await request.backend.count(collection, filter_, deadline)
        coverage = coverage_view(answer.coverage, inside=request.inside)
        reply = Reply(self._encoder.encode(CountView(answer.count, coverage)))
        reply.faults = faults_of(answer.coverage)
        return reply

    def _within(self, pieces: list[bytes]) -> Callable[[bytes], None]:
        """Adds to `pieces` up to the limit; a text takes up to six times its bytes when it is escaped."""
        size, most = 0, self._settings.max_answer_bytes

        def take(piece: bytes) -> None:
            nonlocal size
            size += len(piece)
            if size > most:
                raise too_large(size, most, most)
            pieces.append(piece)

        return take

    def _write_deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._settings.write_timeout
