"""A file of documents, one JSON object to a line, as the router takes them: with a vector or as text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import msgspec

from router.bulk.batch import Chunk, Refused, Unembedded, Wanted
from router.bulk.errors import SourceError
from router.bulk.fingerprint import fingerprint
from router.bulk.rows import batch_of
from router.decode.document import DocumentReader
from router.documents.types import Document, TextDocument
from router.query.errors import RequestError
from shard_config.model import Collection

__all__ = ["LineSource", "open_lines"]

# Sixteen thousand dimensions written out take a third of it; what is longer is no line of documents.
_LINE_BYTES = 16 << 20


class LineSource:
    """Documents of a `.jsonl` file. Lines count from 1; empty ones are passed over."""

    def __init__(self, path: Path, collection: Collection, limit: int | None) -> None:
        """
        Raises:
            OSError
        """
        with path.open("rb") as file:
            self.fingerprint = fingerprint(file)
        self.path = str(path)
        self.extent = path.stat().st_size
        self.as_text = collection.embedder is not None and _begins_as_text(path)
        self._collection = collection
        self._limit = limit

    def __repr__(self) -> str:
        return f"<LineSource {self.path}: {self.extent} bytes>"

    def chunks(self, rows: int, wanted: Wanted) -> Iterator[Chunk]:
        reader = DocumentReader(self._collection)
        try:
            with open(self.path, "rb") as file:
                lines = islice(_lines(file), self._limit)
                number = 0
                while chunk := self._chunk(reader, number, list(islice(lines, rows)), wanted(number)):
                    yield chunk
                    number += 1
        except OSError as exc:
            raise SourceError(f"{self.path}: cannot be read: {exc.strerror or exc}") from exc

    def place(self, row: int) -> str:
        return f"line {row}"

    def _chunk(
        self, reader: DocumentReader, number: int, lines: list[tuple[int, bytes]], wanted: bool
    ) -> Chunk | None:
        if not lines:
            return None
        extent = sum(len(line) for _, line in lines)
        if not wanted:
            return Chunk(number, extent, None)
        documents: list[Document | TextDocument] = []
        refused = []
        for row, line in lines:
            if len(line) > _LINE_BYTES:
                refused.append(Refused(row, f"longer than {_LINE_BYTES} bytes"))
                continue
            try:
                documents.append(reader.read(line, row, ""))
            except RequestError as exc:
                refused.append(Refused(row, exc.detail))
        complete = [document for document in documents if isinstance(document, Document)]
        if len(complete) < len(documents):
            return Chunk(number, extent, Unembedded(documents, tuple(refused)))
        return Chunk(number, extent, batch_of(self._collection, complete, refused))


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines that are not empty, with their numbers; of a line that is too long, its beginning."""
    number = 0
    while line := file.readline(_LINE_BYTES + 1):
        number += 1
        rest = line
        while len(rest) > _LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(_LINE_BYTES + 1)
        if line.strip():
            yield number, line


def _begins_as_text(path: Path) -> bool:
    """Whether the first document has no vector; the others may differ."""
    with path.open("rb") as file:
        first = next(_lines(file), None)
    try:
        members = msgspec.json.decode(b"" if first is None else first[1], type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return bytes(members.get("vector", b"null")) == b"null"


def open_lines(path: Path, collection: Collection, limit: int | None) -> LineSource:
    """
    Raises:
        SourceError
    """
    try:
        return LineSource(path, collection, limit)
    except OSError as exc:
        raise SourceError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
