"""The JSON Schema that editors use, held against the reader that decides."""

from __future__ import annotations

import math
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_config.file import codec, collection, nodes, services, words
from shard_config.file.fields import Field
from shard_config.file.schema import DIALECT, json_schema
from shard_config.model import (
    Cache,
    Collection,
    Column,
    EmbeddingService,
    Fulltext,
    Index,
    LanguageColumn,
    Node,
    RerankingService,
    SearchDefaults,
    Shard,
    ShardMap,
    Tuned,
    Vector,
)
from tests.unit.shard_config_maps import TUNED, WORDS, document, problems
from tests.unit.test_shard_config_codec import FAULTS, LIST, PLACEMENTS, RANGE

VALIDATOR = jsonschema_rs.Draft202012Validator(json_schema())

# What takes more than one field to see, or a value's meaning: the reader alone finds these.
ONLY_THE_READER = (
    "exceed", "mapped by", "already", "ef_construction", "66 for m", "no shard", "of 16", "of 8",
    "from 0 to 7", "ascending", "did you mean 'tenant'", "hash needs", "gap", "overlap", "empty range",
    "calendar", "no value", "no range",
    "no model", "dimensions, and", "documents", "without an embedder", "brace", "names from", "has paths",
    "expected a path", "is not of type", "stands at", "none of the", "characters",
    "a metadata path is", "twice", "quote it", "an integer from", "a number", "4000", "3600s", "duration",
)  # fmt: skip


def test_the_schema_is_one() -> None:
    schema = json_schema()
    assert schema["$schema"] == DIALECT
    jsonschema_rs.meta.validate(schema)


@pytest.mark.parametrize(
    ("table", "model", "others"),
    [
        (codec.MAP, ShardMap, ()),
        (nodes.SHARD, Shard, ("name",)),
        (nodes.NODE, Node, ()),
        (collection.COLLECTION, Collection, ("name", "metadata_indexes")),
        (collection.ID, Column, ("name", "index")),
        (collection.COLUMN, Column, ("name",)),
        (collection.VECTOR, Vector, ()),
        (collection.INDEX, Index, ()),
        (collection.SEARCH, SearchDefaults, ()),
        (collection.TUNED, Tuned, ()),
        (collection.CACHE, Cache, ()),
        (services.EMBEDDING, EmbeddingService, ("name",)),
        (services.RERANKING, RerankingService, ("name",)),
        (words.FULLTEXT, Fulltext, ()),
        (words.LANGUAGE, LanguageColumn, ()),
    ],
)
def test_a_table_has_the_fields_of_its_model(table: dict[str, Field], model: Any, others: Any) -> None:
    assert {*table, *others} == set(model.__struct_fields__)


@pytest.mark.parametrize(
    "tree",
    [
        document(),
        document({"collections": {}}),
        document({"shards.s0.nodes": [{"name": "${NAME}", "dsn": "${DSN}", "zone": "${ZONE}"}]}),
        document(strategy="list", key="tenant", placement={"s0": ["a", 1, True], "s1": "b"}, default="s1"),
        document(strategy="range", key="price", placement={"s0": [{"to": 1}], "s1": {"from": 1}}),
        document({"collections.documents.metadata": {"column": "meta", "indexes": {'"a.b".c': "array"}}}),
        document({"collections.documents.columns.tenant": {"type": "text", "index": True}}),
        document(WORDS),
        document({"models": {"m": {"url": "${URL}", "dimensions": 1}}}),
        document({"collections.documents.search.timeout": 0.5, "collections.documents.cache": {}}),
    ],
)
def test_a_valid_map_passes(tree: dict[str, Any]) -> None:
    VALIDATOR.validate(tree)


def finite(tree: dict[str, Any]) -> bool:
    return not any(isinstance(value, float) and math.isnan(value) for value in tree.values())


@pytest.mark.parametrize(
    ("changes", "message"), [(changes, said) for changes, _, said in FAULTS if finite(changes)]
)
def test_a_fault_of_shape_is_seen_by_the_schema_too(changes: dict[str, Any], message: str) -> None:
    if not any(known in message for known in ONLY_THE_READER):
        assert not VALIDATOR.is_valid(document(changes))


@pytest.mark.parametrize(
    ("how", "placement", "message"), [(how, tree, said) for how, tree, _, said in PLACEMENTS]
)
def test_a_faulty_placement_is_seen_where_its_shape_is(
    how: tuple[str, str], placement: Any, message: str
) -> None:
    if not any(known in message for known in ONLY_THE_READER):
        assert not VALIDATOR.is_valid(document(strategy=how[0], key=how[1], placement=placement))


FIELDS = """
    table id id.type id.column vector vector.dimensions vector.metric vector.type content metadata columns
    metadata.column metadata.indexes metadata.indexes.lang columns.tenant.index
    columns.tenant columns.id columns.n sharding index index.m index.ef_construction index.quantization
    search.ef_search search.overfetch search.timeout search.max_k
    search.target_recall search.tuned search.tuned.recall search.tuned.queries search.tuned.at
    cache cache.ttl embedder template fulltext fulltext.columns fulltext.language fulltext.stored
    sharding.buckets sharding.key sharding.placement sharding.placement.s0 sharding.placement.s1
    sharding.default sharding.strategy
""".split()
PATHS = [
    *("models", "models.m", "models.m.url", "models.m.batch", "models.m.dimensions", "models.m.api_key"),
    *("models.m.query_prefix", "models.m.model", "rerankers", "rerankers.r.api", "rerankers.r.timeout"),
    *("version", "shards", "shards.s0", "shards.s0.nodes", "shards.s9", "extra"),
    *(f"collections.documents.{field}" for field in FIELDS),
]
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.sampled_from([0.5, 1e9, 384.0, 65536, 65537, 2000, 16000, 10**4])
    | st.sampled_from(
        ["", "a", "b.c", "id", "text", "int8", "uuid", "hash", "2s", "500ms", "0-3", "4-7", "s0", "user"]
    )
    | st.sampled_from(
        [
            "cosine",
            "halfvec",
            "binary",
            "array",
            "X",
            "ctid",
            "http://h/v1",
            "m",
            "{content}",
            "content",
            "english",
            "9",
            "a-b",
            "postgresql://h/d",
            "x" * 64,
            "0-3\n",
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["s0", "s1", "from", "to", "type", "column", "name", "dsn", "columns", "values", "url"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=5,
)
bases = st.sampled_from(
    [
        {},
        {"strategy": LIST[0], "key": LIST[1], "placement": {"s0": ["a"]}},
        {"strategy": RANGE[0], "key": RANGE[1], "placement": {"s0": [{}]}},
    ]
)


@given(bases, st.sampled_from(PATHS), values)
def test_the_schema_never_refuses_what_the_reader_takes(base: dict[str, Any], path: str, value: Any) -> None:
    indexed = {"column": "meta", "indexes": {"lang": "text"}}
    changes = {"collections.documents.search.tuned": {**TUNED}, "collections.documents.metadata": indexed}
    changes |= WORDS
    tree = document({**changes, path: value}, **base)
    if not VALIDATOR.is_valid(tree):
        assert problems(tree) != {}
