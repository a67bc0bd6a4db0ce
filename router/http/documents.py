"""Reading, deleting and counting documents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast, get_args

import msgspec
from msgspec import UNSET

from router.decode.bodies import DeleteBody
from router.decode.body import Decoder, decode_object
from router.decode.document import checked
from router.decode.queries import includable
from router.http.answers import CountView, coverage_view
from router.http.content import read_json
from router.http.message import Reply, Request
from router.http.outcomes import delete_reply
from router.query import filter as filters
from router.query.answer import faults_of
from router.query.errors import InvalidError, NotFoundError, Problem, invalid
from router.query.hits import pieces_of
from router.query.types import VectorFormat
from router.settings import Settings
from router.stages.answer_memory import too_large
from router.stages.json_pieces import write_yielding
from shard_config.model import Collection
from shard_config.values import from_text

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
        include = _included(request.query.get("include"), collection)
        id_ = _path_id(request, collection)
        deadline = asyncio.get_running_loop().time() + collection.search.timeout
        answer = await request.backend.read(collection, id_, include, deadline, _vector_format(request))
        if answer is None:
            raise _no_document(request, collection)
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
        id_ = _path_id(request, collection)
        outcome = await request.backend.delete(collection, [id_], self._write_deadline())
        if not outcome.deleted and all(write.ok for write in outcome.shards):
            raise _no_document(request, collection)
        return delete_reply(collection.name, outcome, request.id, inside=request.inside)

    async def delete_many(self, request: Request) -> Reply:
        collection = request.collection
        body = self._decoder.decode(await read_json(request, self._settings))
        if (body.ids is UNSET) == (body.filter is UNSET):
            raise InvalidError.at("", "a delete takes ids or a filter, one of the two")
        if body.ids is not UNSET:
            ids = self._ids(body.ids, collection)
            outcome = await request.backend.delete(collection, ids, self._write_deadline())
        else:
            assert body.filter is not UNSET
            filter_ = filters.parse(collection, body.filter, self._settings)
            if filters.constant(filter_) is True:
                message = "it matches every document, whatever they hold; that is refused"
                raise InvalidError.at("filter", message)
            outcome = await request.backend.delete_matching(collection, filter_, self._write_deadline())
        return delete_reply(collection.name, outcome, request.id, inside=request.inside)

    async def count(self, request: Request) -> Reply:
        collection = request.collection
        raw = request.query.get("filter")
        filter_ = None
        if raw is not None:
            tree = decode_object(raw.encode(), "filter", exact=True)
            filter_ = filters.parse(collection, tree, self._settings)
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

    def _ids(self, raw: list[object], collection: Collection) -> list[object]:
        most = self._settings.max_documents
        if len(raw) > most:
            raise InvalidError.at("ids", f"{len(raw)} ids exceed {most} per request")
        ids: dict[object, None] = {}
        problems: list[Problem] = []
        for i, value in enumerate(raw):
            try:
                ids[checked(collection.id, value, f"ids[{i}]")] = None
            except InvalidError as exc:
                problems.extend(exc.problems)
        if problems:
            raise invalid(problems)
        return list(ids)


def _path_id(request: Request, collection: Collection) -> object:
    try:
        return from_text(collection.id.type, request.params["id"])
    except ValueError as exc:
        raise InvalidError.at("id", str(exc)) from exc


def _vector_format(request: Request) -> VectorFormat:
    value = request.query.get("vector_format", "float")
    for known in get_args(VectorFormat):
        if value == known:
            return cast(VectorFormat, value)
    expected = ", ".join(get_args(VectorFormat))
    raise InvalidError.at("vector_format", f"expected one of {expected}, got {value[:80]!r}")


def _included(names: str | None, collection: Collection) -> frozenset[str]:
    """What to read: the names listed, or all but the vector, which is long."""
    known = includable(collection)
    if names is None:
        return frozenset(known) - {"vector"}
    wanted = [name for name in names.split(",") if name]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        shown = f"unknown field {unknown[0][:80]!r}; {collection.name} has {', '.join(known)}"
        raise InvalidError.at("include", shown)
    return frozenset(wanted)


def _no_document(request: Request, collection: Collection) -> NotFoundError:
    shown = request.params["id"]
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return NotFoundError(f"no document {shown!r} in collection {collection.name}")
