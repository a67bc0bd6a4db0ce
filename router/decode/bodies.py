"""The bodies that requests bring; OpenAPI is generated from them.

Types alone are enforced while decoding. Bounds stand in the schema only: they are checked together
with what depends on the collection, so that one answer names all that is wrong.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from router.query.paging import MAX_CURSOR

__all__ = [
    "BatchBody",
    "DeleteBody",
    "DiversityBody",
    "DocumentShape",
    "DocumentsBody",
    "FacetsBody",
    "FusionBody",
    "GetBody",
    "GroupByBody",
    "LikeBody",
    "PatchBody",
    "PatchManyBody",
    "QueryBody",
    "RerankBody",
    "SearchBody",
]

MAX_TEXT = 8192
MAX_FACET_FIELDS = 16

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


_Text = Annotated[str, Meta(extra_json_schema={"maxLength": MAX_TEXT})]
_Candidates = Annotated[int, Meta(extra_json_schema={"minimum": 1})]


class LikeBody(msgspec.Struct, forbid_unknown_fields=True, rename={"not_": "not"}):
    """Documents that hits are to be like, by their stored vectors; they are no hits themselves."""

    ids: Annotated[
        list[Any],
        Meta(extra_json_schema={"items": {"description": "Of the collection's id type."}, "minItems": 1}),
    ]
    not_: Annotated[
        list[Any],
        Meta(
            description="Documents that hits are not to be like.",
            extra_json_schema={"items": {"description": "Of the collection's id type."}},
        ),
    ] = []


class QueryBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One ranked list of a search: by `text`, `vector` or `like`."""

    text: _Text | UnsetType = UNSET
    vector: _Vector | UnsetType = UNSET
    like: LikeBody | UnsetType = UNSET
    mode: Annotated[
        Literal["vector", "fulltext"],
        Meta(description="Whether a text is searched for by its meaning or by its words."),
    ] = "vector"
    match: (
        Annotated[
            Literal["all", "any"],
            Meta(
                description="Of mode `fulltext`: whether a document holds `all` of the text's words, or `any`"
                " of them, and then those that hold more come first; `all` if absent."
            ),
        ]
        | UnsetType
    ) = UNSET
    weight: Annotated[
        float,
        Meta(description="How much the list counts in the fused one.", extra_json_schema={"minimum": 0}),
    ] = 1.0
    filter: _Filter | None = None
    name: (
        Annotated[
            str,
            Meta(
                description="What the answer calls the list; its mode, and a number, if absent.",
                extra_json_schema={"minLength": 1, "maxLength": 64},
            ),
        ]
        | UnsetType
    ) = UNSET


class FusionBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How ranked lists become one."""

    method: Annotated[
        Literal["rrf", "scores"],
        Meta(description="By reciprocal ranks, or by scores scaled to 0..1 in each list."),
    ] = "rrf"
    k: Annotated[
        float,
        Meta(
            description="Of `rrf`: the larger, the less the first ranks count.",
            extra_json_schema={"minimum": 0, "maximum": 10000},
        ),
    ] = 60.0
    weights: Annotated[
        dict[str, float],
        Meta(description="Of the lists `vector` and `fulltext` of a hybrid search; 1 if absent."),
    ] = {}


class RerankBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Have a model order the best candidates."""

    model: Annotated[str, Meta(description="One of the shard map's `rerankers`.")]
    candidates: Annotated[_Candidates, Meta(description="How many of the best it is given.")] = 50
    text: Annotated[_Text, Meta(description="What it compares them with; the search's text, if absent.")] | (
        UnsetType
    ) = UNSET


class DiversityBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, rename={"weight": "lambda"}):
    """Choose hits that differ from each other, by maximal marginal relevance."""

    weight: Annotated[
        float,
        Meta(
            description="1 for relevance alone, 0 for difference alone.",
            extra_json_schema={"minimum": 0, "maximum": 1},
        ),
    ] = 0.5
    candidates: Annotated[_Candidates, Meta(description="Among how many of the best they are chosen.")] = 50


class GroupByBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Find k groups of documents that share a value, instead of k documents."""

    field: Annotated[str, Meta(description="A column, or a path into the metadata.", examples=["category"])]
    size: Annotated[int, Meta(description="Hits per group at most.", extra_json_schema={"minimum": 1})] = 1


class SearchBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A search: by `vector`, by `text`, by examples (`like`), or by several of these (`queries`)."""

    vector: _Vector | UnsetType = UNSET
    text: _Text | UnsetType = UNSET
    mode: Annotated[
        Literal["vector", "fulltext", "hybrid"],
        Meta(
            description="`vector` finds what is nearest to the vector, the examples or the text's vector;"
            " `fulltext` what holds the text's words, where the collection has a full text; `hybrid` both."
        ),
    ] = "vector"
    match: (
        Annotated[
            Literal["all", "any"],
            Meta(
                description="Which of the text's words a document must hold: `all` of them, or `any`, and"
                " then those that hold more come first; `all` if absent. Quoted phrases and -words are"
                " conditions in both."
            ),
        ]
        | UnsetType
    ) = UNSET
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
    like: LikeBody | UnsetType = UNSET
    queries: (
        Annotated[
            list[QueryBody],
            Meta(description="Ranked lists that are fused into one.", extra_json_schema={"minItems": 1}),
        ]
        | UnsetType
    ) = UNSET
    candidates: (
        Annotated[
            _Candidates,
            Meta(
                description="How deep each ranked list goes, at least; 50 if absent, and offset + k at least."
            ),
        ]
        | UnsetType
    ) = UNSET
    fusion: FusionBody | UnsetType = UNSET
    rerank: RerankBody | UnsetType = UNSET
    diversity: DiversityBody | UnsetType = UNSET
    group_by: GroupByBody | UnsetType = UNSET
    cursor: (
        Annotated[
            str,
            Meta(
                description="`*` has the ranking kept for further pages; the `cursor` of a page brings the "
                "next one, and with it only `k`, `include`, `vector_format`, `timeout_ms`, `allow_partial`, "
                "`consistency` and `explain` may be said.",
                extra_json_schema={"maxLength": MAX_CURSOR},
            ),
        ]
        | None
    ) = None


class BatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """Searches answered independently of each other, in the order given."""

    searches: list[
        Annotated[msgspec.Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/SearchBody"})]
    ]


class DocumentShape(msgspec.Struct):
    """A document; further fields are the collection's declared columns."""

    id: Annotated[Any, Meta(description="Of the collection's id type.")]
    vector: (
        Annotated[
            list[float] | bytes,
            Meta(
                description="Components, or base64 of little-endian float32. If left out, where the"
                " collection has an embedder, it is made of the content, or of what the template says."
            ),
        ]
        | None
    ) = None
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


# Kept as they come: numbers in metadata have digits that a float would lose.
_Set = Annotated[
    dict[str, msgspec.Raw],
    Meta(
        description="Values by field: `content`, a column, `metadata`, or a path into it such as"
        " `metadata.author.name`. null is stored as NULL, and within the metadata as null.",
        extra_json_schema={"additionalProperties": {"description": "As documents have it."}},
        examples=[{"price": 3, "metadata.lang": "en"}],
    ),
]
_Unset = Annotated[
    list[str],
    Meta(description="Fields to take away: a column gets its default, a member of the metadata is gone."),
]


class PatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """What to change of a document; all else stays, its vector too. At least one field is set or unset."""

    set: _Set = {}
    unset: _Unset = []


class PatchManyBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The same change of many documents: of those with `ids`, or what matches a non-empty `filter`."""

    ids: (
        Annotated[
            list[Any],
            Meta(extra_json_schema={"items": {"description": "Of the collection's id type."}}),
        ]
        | UnsetType
    ) = UNSET
    filter: _Filter | UnsetType = UNSET
    set: _Set = {}
    unset: _Unset = []


class GetBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Documents to read, by their ids."""

    ids: Annotated[
        list[Any], Meta(extra_json_schema={"items": {"description": "Of the collection's id type."}})
    ]
    include: (
        Annotated[
            list[str],
            Meta(
                description="Of content, metadata, vector and the collection's columns;"
                " everything but the vector if absent."
            ),
        ]
        | UnsetType
    ) = UNSET
    vector_format: Annotated[
        Literal["float", "base64"],
        Meta(description="How included vectors are written; `base64` is of little-endian float32."),
    ] = "float"


class FacetsBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What to count by: one `field`, or several `fields`."""

    field: (
        Annotated[str, Meta(description="A column, or a path into the metadata such as `metadata.lang`.")]
        | UnsetType
    ) = UNSET
    fields: (
        Annotated[
            list[str],
            Meta(
                description="The same of several fields.",
                extra_json_schema={"minItems": 1, "maxItems": MAX_FACET_FIELDS},
            ),
        ]
        | UnsetType
    ) = UNSET
    filter: Annotated[_Filter, Meta(description="Which documents to count; all if absent.")] | None = None
    limit: (
        Annotated[
            int,
            Meta(
                description="How many values of each field; 100 if absent.", extra_json_schema={"minimum": 1}
            ),
        ]
        | None
    ) = None
    timeout_ms: (
        Annotated[
            float,
            Meta(
                description="For the whole count; the collection's time for a search if absent.",
                extra_json_schema={"minimum": 1},
            ),
        ]
        | None
    ) = None
