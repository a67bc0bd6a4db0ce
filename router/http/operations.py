"""The table of everything that can be called, with the handlers that answer."""

from __future__ import annotations

from router.decode.bodies import (
    BatchBody,
    DeleteBody,
    DocumentsBody,
    FacetsBody,
    GetBody,
    PatchBody,
    PatchManyBody,
    SearchBody,
)
from router.http.answers import (
    BatchAnswer,
    CollectionList,
    CollectionView,
    Health,
    Live,
    Location,
    NodeList,
    Ready,
    SearchAnswer,
)
from router.http.backend import Embed
from router.http.document_answers import (
    CountView,
    DeleteAnswer,
    DocumentListView,
    DocumentPageView,
    FacetsView,
    Fields,
    PatchAnswer,
    UpsertAnswer,
    UpsertProblem,
)
from router.http.documents import STALE_HEADER, Documents
from router.http.facets import FacetCounts
from router.http.inspect import Inspection
from router.http.keys import Scope
from router.http.listing import CURSOR_HEADER, Listings
from router.http.pages import Pages
from router.http.patch import Patches
from router.http.routes import Answer, Handler, Operation, Parameter
from router.http.search import Searches
from router.http.upsert import Upserts
from router.models.repeated import EmbedTexts
from router.settings import Settings

__all__ = ["operations"]

_JSON = "application/json"
_C = "/v1/collections/{collection}"
_READ_ERRORS = frozenset({503, 504})
_WRITE_ERRORS = frozenset({409, 503, 504})
_FILTER = Parameter("filter", "A filter as a JSON object; all documents if absent.", '{"price": {"$lt": 10}}')
_INCLUDE = Parameter(
    "include", "Names joined by commas; everything but the vector if absent.", "content,price"
)
_VECTOR_FORMAT = Parameter(
    "vector_format",
    "How the vector is written: `float` (default), or `base64` of little-endian float32.",
    "base64",
)
_CURSOR = Parameter(
    "cursor",
    "That of the page before; the first page if absent.",
    "eyJ2IjoxLCJjIjoiZG9jdW1lbnRzIiwiaSI6NDEsImYiOiJlODdhMzc0MmM3OTc5YmRhMGEifQ",
)
_LIMIT = Parameter("limit", "How many documents at most; 100 if absent.", "100")
_CONSISTENCY = Parameter(
    "consistency", "`eventual` (default), or `strong` to read from primaries only.", "strong"
)
_STALE = "The document's shard, if it was read from a node that may be behind."
_NEXT = (
    "With `Accept: application/x-ndjson`, for which the answer has one document per line: the cursor, if"
    " there is a next page."
)
_KEY = Parameter("key", "A value of the sharding key.", "42", required=True)


def operations(
    settings: Settings, embed: Embed, embed_texts: EmbedTexts, inspection: Inspection, pages: Pages
) -> list[Operation]:
    """All operations; the busiest come first, because paths are tried in this order."""
    return [
        *_search(Searches(settings, embed)),
        *_documents(Upserts(settings, embed_texts), Documents(settings)),
        *_many_documents(Patches(settings), Listings(settings), FacetCounts(settings)),
        *_inspection(inspection),
        *_pages(pages),
    ]


def _search(handlers: Searches) -> list[Operation]:
    return [
        Operation(
            "POST",
            f"{_C}/search",
            "read",
            handlers.search,
            "search",
            "search",
            "Search by vector or text.",
            {200: SearchAnswer},
            body=SearchBody,
            errors=_READ_ERRORS | {410},
        ),
        Operation(
            "POST",
            f"{_C}/search/batch",
            "read",
            handlers.batch,
            "search_batch",
            "search",
            "Many searches at once, each answered or refused on its own.",
            {200: BatchAnswer},
            body=BatchBody,
        ),
    ]


def _documents(upserts: Upserts, handlers: Documents) -> list[Operation]:
    return [
        Operation(
            "PUT",
            f"{_C}/documents",
            "write",
            upserts.upsert,
            "upsert_documents",
            "documents",
            "Insert or replace documents.",
            {200: UpsertAnswer, **dict.fromkeys((409, 413, 422, 429, 500, 503, 504), UpsertProblem)},
            body=DocumentsBody,
            stream=True,
        ),
        Operation(
            "POST",
            f"{_C}/documents/delete",
            "write",
            handlers.delete_many,
            "delete_documents",
            "documents",
            "Delete by ids, or by a filter that is not empty.",
            {200: DeleteAnswer},
            body=DeleteBody,
            errors=_WRITE_ERRORS,
        ),
        Operation(
            "GET",
            f"{_C}/documents/{{id:path}}",
            "read",
            handlers.read,
            "get_document",
            "documents",
            "Read one document.",
            {200: Fields},
            query=(_INCLUDE, _VECTOR_FORMAT),
            errors=_READ_ERRORS,
            headers={STALE_HEADER: _STALE},
        ),
        Operation(
            "DELETE",
            f"{_C}/documents/{{id:path}}",
            "write",
            handlers.delete_one,
            "delete_document",
            "documents",
            "Delete one document.",
            {200: DeleteAnswer},
            errors=_WRITE_ERRORS,
        ),
        Operation(
            "GET",
            f"{_C}/count",
            "read",
            handlers.count,
            "count_documents",
            "documents",
            "Count documents.",
            {200: CountView},
            query=(_FILTER,),
            errors=_READ_ERRORS,
        ),
    ]


def _many_documents(patches: Patches, listings: Listings, facets: FacetCounts) -> list[Operation]:
    return [
        Operation(
            "PATCH",
            f"{_C}/documents/{{id:path}}",
            "write",
            patches.patch_one,
            "patch_document",
            "documents",
            "Change fields of one document.",
            {200: PatchAnswer},
            body=PatchBody,
            errors=_WRITE_ERRORS,
        ),
        Operation(
            "POST",
            f"{_C}/documents/patch",
            "write",
            patches.patch_many,
            "patch_documents",
            "documents",
            "Change fields of many documents, by ids or by a filter that is not empty.",
            {200: PatchAnswer},
            body=PatchManyBody,
            errors=_WRITE_ERRORS,
        ),
        Operation(
            "POST",
            f"{_C}/documents/get",
            "read",
            listings.get,
            "get_documents",
            "documents",
            "Read many documents by their ids.",
            {200: DocumentListView},
            body=GetBody,
            errors=_READ_ERRORS,
        ),
        Operation(
            "GET",
            f"{_C}/documents",
            "read",
            listings.page,
            "list_documents",
            "documents",
            "Read all documents, page by page in the order of their ids.",
            {200: DocumentPageView},
            query=(_CURSOR, _FILTER, _INCLUDE, _LIMIT, _VECTOR_FORMAT, _CONSISTENCY),
            errors=_READ_ERRORS,
            headers={CURSOR_HEADER: _NEXT},
        ),
        Operation(
            "POST",
            f"{_C}/facets",
            "read",
            facets.count,
            "count_facets",
            "documents",
            "Count documents by the values of fields.",
            {200: FacetsView},
            body=FacetsBody,
            errors=_READ_ERRORS,
        ),
    ]


def _inspection(handlers: Inspection) -> list[Operation]:
    def looking(
        path: str, scope: Scope, handler: Handler, id: str, tag: str, summary: str, answer: Answer
    ) -> Operation:
        return Operation("GET", path, scope, handler, id, tag, summary, {200: answer})

    return [
        looking(
            "/v1/collections",
            "read",
            handlers.collections,
            "list_collections",
            "collections",
            "All collections.",
            CollectionList,
        ),
        looking(
            _C,
            "read",
            handlers.collection,
            "get_collection",
            "collections",
            "One collection.",
            CollectionView,
        ),
        Operation(
            "GET",
            f"{_C}/locate",
            "read",
            handlers.locate,
            "locate",
            "collections",
            "The shard of a sharding key.",
            {200: Location},
            query=(_KEY,),
        ),
        looking(
            "/v1/shard-map",
            "admin",
            handlers.shard_map,
            "get_shard_map",
            "cluster",
            "The shard map, without passwords.",
            _JSON,
        ),
        looking(
            "/v1/nodes",
            "admin",
            handlers.nodes,
            "list_nodes",
            "cluster",
            "Every node and its state.",
            NodeList,
        ),
        looking("/livez", "open", handlers.live, "livez", "health", "Whether the process runs.", Live),
        Operation(
            "GET",
            "/readyz",
            "open",
            handlers.ready,
            "readyz",
            "health",
            "Whether searches can be answered.",
            {200: Ready, 503: Ready},
        ),
        looking(
            "/health",
            "read",
            handlers.health,
            "get_health",
            "health",
            "State of shards, nodes and caches.",
            Health,
        ),
    ]


def _pages(handlers: Pages) -> list[Operation]:
    def page(path: str, scope: Scope, handler: Handler, id: str, summary: str, media_type: str) -> Operation:
        return Operation("GET", path, scope, handler, id, "about", summary, {200: media_type})

    return [
        page("/metrics", "admin", handlers.metrics, "get_metrics", "Metrics for Prometheus.", "text/plain"),
        page("/openapi.json", "open", handlers.openapi, "get_openapi", "This description.", _JSON),
        page("/docs", "open", handlers.docs, "get_docs", "This description, to read.", "text/html"),
    ]
