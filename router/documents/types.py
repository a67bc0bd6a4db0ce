"""Documents and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from router.query.facets import Facet
from router.query.types import Coverage, Hit

__all__ = [
    "CountAnswer",
    "DeleteOutcome",
    "Document",
    "DocumentFailure",
    "DocumentList",
    "DocumentPage",
    "FacetsAnswer",
    "PatchOutcome",
    "ReadAnswer",
    "ShardWrite",
    "TextDocument",
    "UpsertOutcome",
    "WriteFailure",
]

WriteFailure: TypeAlias = Literal["conflict", "unavailable", "denied", "misconfigured", "unknown"]


class Document(msgspec.Struct, frozen=True):
    """A checked document.

    Attributes:
        index: its place in the request, from 0.
        vector: float32 components as little-endian bytes.
        metadata: encoded JSON, or None.
        columns: values by column name as asyncpg binds them; missing ones get the table's default.
    """

    index: int
    id: int | str | object
    vector: bytes
    content: str | None
    metadata: str | None
    columns: dict[str, object]


class TextDocument(msgspec.Struct, frozen=True):
    """A checked document that came without a vector, and so cannot be stored yet.

    Attributes:
        text: what its vector is to be made of; not blank.

    The others are as of `Document`.
    """

    index: int
    id: int | str | object
    text: str
    content: str | None
    metadata: str | None
    columns: dict[str, object]

    def with_vector(self, vector: bytes) -> Document:
        return Document(self.index, self.id, vector, self.content, self.metadata, self.columns)


class DocumentFailure(msgspec.Struct, frozen=True):
    """A document that was not stored.

    `invalid`; `conflict`; `unavailable`, which is also one whose text was not turned into a vector; `denied`
    (the router's role may not write there); `misconfigured` (its shard, or the model of its text, refuses
    everything until somebody mends it) or `unknown` (the commit's outcome could not be learned; sending it
    again is safe).
    """

    index: int
    id: object
    reason: Literal["invalid"] | WriteFailure
    message: str
    shard: str | None = None


class ShardWrite(msgspec.Struct, frozen=True):
    """One shard's transaction: rows it changed, or why it did not; if `unknown`, perhaps it did.

    `reason` says what may be done about it; a transaction that a constraint or a trigger refused as a whole
    is a `conflict`.
    """

    shard: str
    ok: bool
    rows: int
    error: str | None = None
    unknown: bool = False
    reason: WriteFailure | None = None


class UpsertOutcome(msgspec.Struct, frozen=True):
    stored: int
    shards: tuple[ShardWrite, ...]
    failures: tuple[DocumentFailure, ...]


class DeleteOutcome(msgspec.Struct, frozen=True):
    deleted: int
    shards: tuple[ShardWrite, ...]


class PatchOutcome(msgspec.Struct, frozen=True):
    """Documents found on the shards whose transactions are known to be committed, and changed there."""

    matched: int
    patched: int
    shards: tuple[ShardWrite, ...]


class ReadAnswer(msgspec.Struct, frozen=True):
    """A document as it is stored on one shard.

    `stale` names that shard if the node that was read is behind, as `Coverage.stale` does for searches.
    `reservation` keeps the memory of a large one reserved.
    """

    document: Hit
    stale: str | None = None
    reservation: object = None


class CountAnswer(msgspec.Struct, frozen=True):
    count: int
    coverage: Coverage


class DocumentList(msgspec.Struct, frozen=True):
    """Documents of given ids.

    Attributes:
        pieces: a JSON array of them, in the order of the ids.
        missing: ids that no document has.
        unread: ids that a document may have, on a shard that did not answer or was read from a node that is
            behind.
        reservation: keeps the memory of a large answer reserved.
    """

    pieces: Sequence[bytes]
    missing: tuple[object, ...]
    unread: tuple[object, ...]
    coverage: Coverage
    reservation: object = None


class DocumentPage(msgspec.Struct, frozen=True):
    """Some of all documents, as a JSON array in `pieces`, in the order of their ids.

    `last` is the id up to which the page goes, and None where there is nothing beyond. `reservation` is as of
    `DocumentList`.
    """

    pieces: Sequence[bytes]
    last: object
    coverage: Coverage
    reservation: object = None


class FacetsAnswer(msgspec.Struct, frozen=True):
    facets: tuple[Facet, ...]
    coverage: Coverage
