"""The bodies of replies about documents: what was stored, changed, deleted, read and counted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from router.documents.types import DocumentFailure
from router.http.answers import CoverageView
from router.http.problems import ProblemBody

__all__ = [
    "CountView",
    "DeleteAnswer",
    "DocumentListView",
    "DocumentPageView",
    "FacetValueView",
    "FacetView",
    "FacetsView",
    "Fields",
    "PatchAnswer",
    "ShardOutcome",
    "UpsertAnswer",
    "UpsertProblem",
]


class Fields(msgspec.Struct):
    """A document: its id, and of content, metadata, vector and columns what was asked for."""

    id: Any


class ShardOutcome(msgspec.Struct, frozen=True):
    """One shard's transactions: rows changed, and the first error.

    `unknown` is there only if it is not known of one of them whether it was committed.
    """

    ok: bool
    rows: int
    error: str | None = None
    unknown: bool | UnsetType = UNSET


class UpsertAnswer(msgspec.Struct, frozen=True):
    """What was stored where, and every document that was not, up to a bound for streams.

    `unlisted` counts failed documents beyond that bound.
    """

    stored: int
    failed: int
    shards: dict[str, ShardOutcome]
    failures: tuple[DocumentFailure, ...]
    unlisted: int = 0
    embedded: int | UnsetType = UNSET


class UpsertProblem(ProblemBody, frozen=True):
    """A problem that also says what had been stored before it, and what had not."""

    stored: int
    failed: int
    shards: dict[str, ShardOutcome]
    failures: tuple[DocumentFailure, ...]
    unlisted: int = 0
    embedded: int | UnsetType = UNSET


class DeleteAnswer(msgspec.Struct, frozen=True):
    """Rows deleted, as far as is known; a shard that is not `ok` may still hold matching rows."""

    deleted: int
    shards: dict[str, ShardOutcome]


class CountView(msgspec.Struct, frozen=True):
    """The count over the shards that answered."""

    count: int
    coverage: CoverageView


class PatchAnswer(msgspec.Struct, frozen=True):
    """Documents found, and of these changed, as far as is known; one that is as wanted already is left alone.

    A shard that is not `ok` may still hold matching documents that are as they were.
    """

    matched: int
    patched: int
    shards: dict[str, ShardOutcome]
    vectors: Literal["kept"] | UnsetType = UNSET


_Documents = Annotated[
    msgspec.Raw,
    Meta(extra_json_schema={"type": "array", "items": {"$ref": "#/components/schemas/Fields"}}),
]
_Ids = Annotated[
    list[Any], Meta(extra_json_schema={"items": {"description": "Of the collection's id type."}})
]


class DocumentListView(msgspec.Struct, frozen=True):
    """The documents found, in the order of the ids.

    `unread` is there only if shards did not answer, or are behind.
    """

    documents: _Documents
    missing: _Ids
    coverage: CoverageView
    unread: _Ids | UnsetType = UNSET


class DocumentPageView(msgspec.Struct, frozen=True):
    """Some of all documents, in the order of their ids. Without a cursor it is the last page."""

    documents: _Documents
    cursor: str | None
    coverage: CoverageView


class FacetValueView(msgspec.Struct, frozen=True):
    """A value, and how many documents have it."""

    value: Any
    count: int


class FacetView(msgspec.Struct, frozen=True):
    """The values of one field that most documents have, equal counts by value.

    `undercount` is there only if the counts are not `exact`, and `too_long` only if there are such values.
    """

    field: str
    values: list[FacetValueView]
    missing: int
    exact: bool
    more: int | None
    undercount: int | UnsetType = UNSET
    too_long: int | UnsetType = UNSET


class FacetsView(msgspec.Struct, frozen=True):
    """One for each field, in the order of the fields, over the shards that answered."""

    facets: list[FacetView]
    coverage: CoverageView
