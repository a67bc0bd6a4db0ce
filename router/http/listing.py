"""Reading many documents: by their ids, and all of them page by page."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

import msgspec
from msgspec import UNSET

from router.decode import listing_cursor
from router.decode.bodies import GetBody
from router.decode.body import Decoder
from router.http.answers import coverage_view
from router.http.content import read_json
from router.http.document_answers import DocumentListView, DocumentPageView
from router.http.message import Reply, Request
from router.http.parameters import checked_ids, included, included_names, query_filter, vector_format
from router.query import filter as filters
from router.query.answer import faults_of
from router.query.errors import InvalidError, Problem, invalid
from router.query.filter import Filter
from router.settings import Settings
from shard_config.model import Collection

__all__ = ["CURSOR_HEADER", "Listings"]

# Of a page of lines, which have no place for a cursor.
CURSOR_HEADER = "X-Next-Cursor"
_LINES = b"application/x-ndjson"

_PAGE = 100
_NUMBER = re.compile(r"[0-9]{1,15}")
_NONE = msgspec.Raw(b"[]")
# What is copied into one piece.
_JOINED_BYTES = 1 << 18


class Listings:
    """The handlers of reads of many documents."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._decoder = Decoder(GetBody)

    async def get(self, request: Request) -> Reply:
        collection = request.collection
        body = self._decoder.decode(await read_json(request, self._settings))
        problems: list[Problem] = []
        ids: list[object] = []
        include: frozenset[str] = frozenset()
        try:
            ids = checked_ids(body.ids, collection, self._settings.max_documents)
        except InvalidError as exc:
            problems.extend(exc.problems)
        try:
            include = included_names(None if body.include is UNSET else body.include, collection)
        except InvalidError as exc:
            problems.extend(exc.problems)
        if problems:
            raise invalid(problems)
        deadline = _deadline(collection)
        answer = await request.backend.get(collection, ids, include, deadline, body.vector_format)
        coverage = coverage_view(answer.coverage, inside=request.inside)
        unread = list(answer.unread) or UNSET
        reply = _reply(DocumentListView(_NONE, list(answer.missing), coverage, unread), answer.pieces)
        reply.reservation, reply.faults = answer.reservation, faults_of(answer.coverage)
        return reply

    async def page(self, request: Request) -> Reply:
        collection = request.collection
        tree = query_filter(request)
        filter_, include, limit = self._checked(request, collection, tree)
        after = None
        if (given := request.query.get("cursor")) is not None:
            after = listing_cursor.after(given, collection, tree)
        lines = _LINES in request.headers.get(b"accept", b"")
        answer = await request.backend.page(
            collection,
            filter_,
            after,
            limit,
            include,
            _deadline(collection),
            vector_format(request),
            primary_only=_strong(request),
            lines=lines,
        )
        cursor = None if answer.last is None else listing_cursor.cursor(collection, answer.last, tree)
        coverage = coverage_view(answer.coverage, inside=request.inside)
        if lines:
            reply = _joined(answer.pieces)
            reply.content_type = _LINES
            reply.headers = [] if cursor is None else [(CURSOR_HEADER.lower().encode(), cursor.encode())]
        else:
            reply = _reply(DocumentPageView(_NONE, cursor, coverage), answer.pieces)
        reply.reservation = answer.reservation
        return reply

    def _checked(
        self, request: Request, collection: Collection, tree: dict[str, object] | None
    ) -> tuple[Filter | None, frozenset[str], int]:
        """
        Raises:
            InvalidError
        """
        filter_ = None if tree is None else filters.parse(collection, tree, self._settings)
        most, given = self._settings.max_page, request.query.get("limit")
        limit = min(_PAGE, most) if given is None else int(given) if _NUMBER.fullmatch(given) else 0
        if not 1 <= limit <= most:
            message = f"limit={str(given)[:80]} is not a whole number from 1 to {most} (--max-page)"
            raise InvalidError.at("limit", message)
        return filter_, included(request.query.get("include"), collection), limit


def _strong(request: Request) -> bool:
    value = request.query.get("consistency", "eventual")
    if value not in ("eventual", "strong"):
        raise InvalidError.at("consistency", f"expected one of eventual, strong, got {value[:80]!r}")
    return value == "strong"


def _deadline(collection: Collection) -> float:
    return asyncio.get_running_loop().time() + collection.search.timeout


def _reply(view: DocumentListView | DocumentPageView, pieces: Sequence[bytes]) -> Reply:
    """`view`, with `pieces` for its documents, which come first in it."""
    before, after = msgspec.json.encode(view).split(_NONE, 1)
    return _joined([before, *pieces, after])


def _joined(pieces: Sequence[bytes]) -> Reply:
    """All in one piece, unless that is large."""
    if sum(map(len, pieces)) <= _JOINED_BYTES:
        return Reply(b"".join(pieces))
    return Reply(pieces[0], more=pieces[1:])
