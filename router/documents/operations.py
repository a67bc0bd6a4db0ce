"""All that a router can do with documents, for the collections that it may serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from router.documents.facets import Facets
from router.documents.listing import Listing
from router.documents.reader import Reader
from router.documents.types import (
    CountAnswer,
    DeleteOutcome,
    Document,
    DocumentList,
    DocumentPage,
    FacetsAnswer,
    PatchOutcome,
    ReadAnswer,
    UpsertOutcome,
)
from router.documents.vectors import StoredVectors
from router.documents.writer import Writer
from router.query.facets import FacetField
from router.query.filter import Filter
from router.query.patch import Patch
from router.query.types import Consistency, VectorFormat
from shard_config.model import Collection

__all__ = ["DocumentOperations"]


class DocumentOperations:
    """Writes and reads of one shard map; `require` raises where a collection must not be touched."""

    def __init__(
        self,
        writer: Writer,
        reader: Reader,
        vectors: StoredVectors,
        listing: Listing,
        facets: Facets,
        require: Callable[[str], None],
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._vectors = vectors
        self._listing = listing
        self._facets = facets
        self._require = require

    async def upsert(
        self, collection: Collection, documents: Sequence[Document], deadline: float
    ) -> UpsertOutcome:
        self._require(collection.name)
        return await self._writer.upsert(collection, documents, deadline)

    async def read(
        self,
        collection: Collection,
        id: object,
        include: frozenset[str],
        deadline: float,
        vector_format: VectorFormat = "float",
    ) -> ReadAnswer | None:
        self._require(collection.name)
        return await self._reader.read(collection, id, include, deadline, vector_format)

    async def vectors(
        self, collection: Collection, ids: Sequence[object], consistency: Consistency, deadline: float
    ) -> dict[object, bytes | None]:
        self._require(collection.name)
        return await self._vectors.read(collection, ids, consistency, deadline)

    async def delete(self, collection: Collection, ids: Sequence[object], deadline: float) -> DeleteOutcome:
        self._require(collection.name)
        return await self._writer.delete(collection, ids, deadline)

    async def delete_matching(self, collection: Collection, filter: Filter, deadline: float) -> DeleteOutcome:
        self._require(collection.name)
        return await self._writer.delete_matching(collection, filter, deadline)

    async def count(self, collection: Collection, filter: Filter | None, deadline: float) -> CountAnswer:
        self._require(collection.name)
        return await self._reader.count(collection, filter, deadline)

    async def patch(
        self, collection: Collection, ids: Sequence[object], patch: Patch, deadline: float
    ) -> PatchOutcome:
        self._require(collection.name)
        return await self._writer.patch(collection, ids, patch, deadline)

    async def patch_matching(
        self, collection: Collection, filter: Filter, patch: Patch, deadline: float
    ) -> PatchOutcome:
        self._require(collection.name)
        return await self._writer.patch_matching(collection, filter, patch, deadline)

    async def get(
        self,
        collection: Collection,
        ids: Sequence[object],
        include: frozenset[str],
        deadline: float,
        vector_format: VectorFormat = "float",
    ) -> DocumentList:
        self._require(collection.name)
        return await self._listing.get(collection, ids, include, deadline, vector_format)

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
        self._require(collection.name)
        return await self._listing.page(
            collection,
            filter,
            after,
            limit,
            include,
            deadline,
            vector_format,
            primary_only=primary_only,
            lines=lines,
        )

    async def facets(
        self,
        collection: Collection,
        fields: Sequence[FacetField],
        filter: Filter | None,
        limit: int,
        deadline: float,
    ) -> FacetsAnswer:
        self._require(collection.name)
        return await self._facets.count(collection, fields, filter, limit, deadline)
