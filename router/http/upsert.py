"""Storing documents: one JSON body, all or none of it valid, or a stream of any length.

A JSON body is checked as a whole before anything is stored. A stream cannot be: it is stored in
batches as it comes, reading no further while a batch is being written, and answers at its end with
what became of it. Documents without a vector are embedded once they are checked; while a stream's batch is
written, the texts of the next one may be embedded, and no more than that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from router.decode.bodies import DocumentsBody
from router.decode.body import Decoder
from router.decode.document import DocumentReader, Readers
from router.documents.types import Document, DocumentFailure, TextDocument, UpsertOutcome
from router.http.content import media_type, read_json
from router.http.embedding import embed_documents
from router.http.message import Reply, Request
from router.http.ndjson import Line, Lines
from router.http.outcomes import Tally
from router.models.repeated import EmbedTexts
from router.query.errors import InvalidError, Problem, RequestError, RouterError, TooLargeError
from router.settings import Settings
from shard_config.model import Collection

__all__ = ["Upserts"]

# Large enough to spread the cost of a transaction, small enough that a document waits only briefly for
# others, and that few fail together.
_BATCH_DOCUMENTS = 500
_LISTED_FAILURES = 1000
# Checking a document takes tens of microseconds; others get a turn after this many.
_DOCUMENTS_PER_TURN = 64


class Upserts:
    """The handler of PUT …/documents."""

    def __init__(self, settings: Settings, embed: EmbedTexts) -> None:
        self._settings = settings
        self._embed = embed
        self._readers = Readers()
        self._decoder = Decoder(DocumentsBody)

    async def upsert(self, request: Request) -> Reply:
        collection = request.collection
        reader = self._readers.of(collection)
        if media_type(request, ndjson=True) == "ndjson":
            return await _Stream(self._settings, request, collection, reader, self._embed).run()
        data = await read_json(request, self._settings)
        raw = self._decoder.decode(data).documents
        if len(raw) > self._settings.max_documents:
            most = self._settings.max_documents
            raise InvalidError.at("documents", f"{len(raw)} documents exceed {most} per request")
        documents = await _read_all(reader, raw)
        tally = Tally(collection.name, listed=len(raw), inside=request.inside)
        if documents:
            deadline = asyncio.get_running_loop().time() + self._settings.write_timeout
            made = await embed_documents(
                collection,
                documents,
                self._embed,
                deadline,
                self._settings.model_patience,
                inside=request.inside,
            )
            tally.add_embedded(made)
            if made.documents:
                tally.add(await request.backend.upsert(collection, made.documents, deadline))
        return tally.reply(request.id)


async def _read_all(reader: DocumentReader, raw: list[msgspec.Raw]) -> list[Document | TextDocument]:
    """
    Raises:
        InvalidError: with one problem per document that is wrong or repeats an id.
    """
    documents: list[Document | TextDocument] = []
    problems = []
    first: dict[object, int] = {}
    for i, data in enumerate(raw):
        if i % _DOCUMENTS_PER_TURN == _DOCUMENTS_PER_TURN - 1:
            await asyncio.sleep(0)
        path = f"documents[{i}]"
        try:
            document = reader.read(data, i, path)
        except RequestError as exc:
            problems.append(exc.problems[0] if exc.problems else Problem(path, exc.detail))
            continue
        before = first.setdefault(document.id, i)
        if before != i:
            problems.append(Problem(f"{path}.id", f"the id of documents[{before}] again"))
        documents.append(document)
    if problems:
        detail = f"{len(problems)} of {len(raw)} documents are invalid, so none was stored; "
        raise InvalidError(f"{detail}the first: {problems[0].path}: {problems[0].message}", problems)
    return documents


class _Stream:
    """One NDJSON upload: lines in, batches out."""

    def __init__(
        self,
        settings: Settings,
        request: Request,
        collection: Collection,
        reader: DocumentReader,
        embed: EmbedTexts,
    ) -> None:
        self._settings = settings
        self._request = request
        self._collection = collection
        self._reader = reader
        self._embed = embed
        self._tally = Tally(collection.name, listed=_LISTED_FAILURES, inside=request.inside)
        self._index = 0
        self._batch: dict[object, Document | TextDocument] = {}
        self._batch_bytes = 0
        self._storing: asyncio.Task[UpsertOutcome] | None = None

    async def run(self) -> Reply:
        try:
            await self._store_all()
        except RouterError as exc:
            perhaps = f", and {self._tally.unknown} more may have been" if self._tally.unknown else ""
            stored = f"; {self._tally.stored} documents were stored before that{perhaps}"
            exc.detail += stored
            if exc.outside is not None:
                exc.outside = (exc.outside[0] + stored, exc.outside[1])
            return self._tally.reply(self._request.id, stopped=exc)
        finally:
            if self._storing is not None:  # this request is cancelled
                self._storing.cancel()
                await asyncio.gather(self._storing, return_exceptions=True)
        return self._tally.reply(self._request.id)

    async def _store_all(self) -> None:
        try:
            self._request.check_length(self._settings.max_stream_bytes)
            async for line in self._lines():
                await self._take(line)
            await self._flush()
        except Exception:
            await self._stored()  # what is under way is told of as well, if anybody is there
            raise
        await self._stored()

    async def _lines(self) -> AsyncIterator[Line]:
        lines = Lines(self._settings.max_line_bytes)
        received = 0
        async for piece in self._request.chunks(self._settings.write_timeout):
            received += len(piece)
            if received > self._settings.max_stream_bytes:
                raise TooLargeError(f"the stream is larger than {self._settings.max_stream_bytes} bytes")
            for line in lines.feed(piece):
                yield line
        for line in lines.finish():
            yield line

    async def _take(self, line: Line) -> None:
        if line.data is None:
            self._fail(line, None, f"longer than {self._settings.max_line_bytes} bytes")
            return
        data = line.data.strip()
        if not data:
            return
        try:
            document = self._reader.read(data, self._index, "")
        except RequestError as exc:
            self._fail(line, None, exc.detail)
            return
        # The same id again: the first is stored before the second, which then replaces it. One statement
        # cannot store two rows of one id.
        if document.id in self._batch:
            await self._flush()
        self._index += 1
        self._batch[document.id] = document
        self._batch_bytes += len(data)
        if len(self._batch) >= _BATCH_DOCUMENTS or self._batch_bytes >= self._settings.max_body_bytes:
            await self._flush()

    def _fail(self, line: Line, id_: object, message: str) -> None:
        text = f"line {line.number}: {message}"
        self._tally.fail(DocumentFailure(self._index, id_, "invalid", text))
        self._index += 1

    async def _flush(self) -> None:
        if not self._batch:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.write_timeout
        batch, self._batch, self._batch_bytes = list(self._batch.values()), {}, 0
        made = await embed_documents(
            self._collection,
            batch,
            self._embed,
            deadline,
            self._settings.model_patience,
            inside=self._request.inside,
        )
        left = deadline - loop.time()
        # One batch after the other: of two documents with one id the later one stays.
        await self._stored()
        self._tally.add_embedded(made)
        if made.documents:
            upsert = self._request.backend.upsert(self._collection, made.documents, loop.time() + left)
            self._storing = asyncio.create_task(upsert, name="upsert of a stream")
        if not made.count:
            await self._stored()

    async def _stored(self) -> None:
        """Wait for the batch that is being written, if one is."""
        storing, self._storing = self._storing, None
        if storing is not None:
            self._tally.add(await storing)
