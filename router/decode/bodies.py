"""The bodies that requests bring; OpenAPI is generated from them.

Types alone are enforced while decoding. Bounds stand in the schema only: they are checked together
with what depends on the collection, so that one answer names all that is wrong.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

__all__ = ["BatchBody", "DeleteBody", "DocumentShape", "DocumentsBody", "SearchBody"]

MAX_TEXT = 8192

# msgspec reads base64 in a third of the time that binascii takes.
_Vector = Annotated[
    list[float] | bytes,
    Meta(description="Components, or base64 of little-endian float32."),
]
_Filter = Annotated[
    dict[str, Any],
    Meta(
        description="Conditions on columns, content and metadata paths.",
        examples=[{"category": "tech", "price": {"$gte": 3, "$lt": 10}}],
    ),
]


class SearchBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A search: by `vector`, or by `text`, whose meaning or whose words are searched for."""

    vector: _Vector | UnsetType = UNSET
    text: Annotated[str, Meta(extra_json_schema={"maxLength": MAX_TEXT})] | UnsetType = UNSET
    mode: Annotated[
        Literal["vector", "fulltext"],
        Meta(
            description="`vector` finds what is nearest to the vector, or to the text's; `fulltext` what"
            " holds the text's words, where the collection has a full text."
        ),
    ] = "vector"
    k: Annotated[int, Meta(description="How many hits.", extra_json_schema={"minimum": 1})] = 10
    filter: _Filter | None = None
    include: Annotated[
        list[str], Meta(description="Of content, metadata, vector and the collection's columns.")
    ] = []
    vector_format: Annotated[
        Literal["float", "base64"],
        Meta(description="How included vectors are written; `base64` is of little-endian float32."),
    ] = "float"
    offset: Annotated[int, Meta(description="Hits to skip.", extra_json_schema={"minimum": 0})] = 0
    max_distance: Annotated[float, Meta(description="Leave out what is further away.")] | None = None
    ef_search: (
        Annotated[
            int,
            Meta(
                description="Candidates per index scan; the collection's default if absent.",
                extra_json_schema={"minimum": 1, "maximum": 1000},
            ),
        ]
        | None
    ) = None
    exact: Annotated[bool, Meta(description="Read every row instead of the index.")] = False
    timeout_ms: (
        Annotated[
            float,
            Meta(
                description="For the whole search; the collection's default if absent.",
                extra_json_schema={"minimum": 1},
            ),
        ]
        | None
    ) = None
    allow_partial: Annotated[bool, Meta(description="Whether an answer without some shards will do.")] = True
    consistency: Annotated[
        Literal["eventual", "strong"],
        Meta(description="`strong` reads from primaries only, past all caches."),
    ] = "eventual"
    cache: Annotated[bool, Meta(description="Whether a cached answer will do.")] = True
    explain: Annotated[bool, Meta(description="Report what happened on each shard.")] = False
    explain_plan: Annotated[bool, Meta(description="Also bring each shard's statement plan.")] = False


class BatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """Searches answered independently of each other, in the order given."""

    searches: list[
        Annotated[msgspec.Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/SearchBody"})]
    ]


class DocumentShape(msgspec.Struct):
    """A document; further fields are the collection's declared columns."""

    id: Annotated[Any, Meta(description="Of the collection's id type.")]
    vector: _Vector
    content: str | None = None
    metadata: dict[str, Any] | None = None


class DocumentsBody(msgspec.Struct, forbid_unknown_fields=True):
    """Documents to insert, or to replace where the id exists. All are checked before any is stored."""

    documents: list[
        Annotated[msgspec.Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/DocumentShape"})]
    ]


class DeleteBody(msgspec.Struct, forbid_unknown_fields=True):
    """What to delete: `ids`, or what matches a non-empty `filter`; one of the two."""

    ids: (
        Annotated[
            list[Any],
            Meta(extra_json_schema={"items": {"description": "Of the collection's id type."}}),
        ]
        | UnsetType
    ) = UNSET
    filter: _Filter | UnsetType = UNSET
