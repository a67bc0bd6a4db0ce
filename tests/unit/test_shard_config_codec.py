"""Reading a map: what a valid one means, and that every fault is found, at its place, all at once."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from shard_config import limits, to_json
from shard_config.file import codec
from shard_config.file.codec import MapError
from shard_config.file.problems import MAX_PROBLEMS
from shard_config.model import (
    Cache,
    Column,
    EmbeddingService,
    Fulltext,
    HashSharding,
    Index,
    LanguageColumn,
    ListSharding,
    MetadataType,
    Metric,
    Quantization,
    RangePart,
    RangeSharding,
    RerankingApi,
    RerankingService,
    SearchDefaults,
    Table,
    Tuned,
    Vector,
    VectorType,
)
from shard_config.values import ValueType
from tests.unit.shard_config_maps import ENV, REMOVED, TUNED, WORDS, document, parse, problems

C = "collections.documents"


def test_the_designs_example_is_read() -> None:
    shard_map = parse(document())
    assert shard_map.version == 12
    assert [node.name for node in shard_map.shards["s0"].nodes] == ["s0-a", "s0-b"]
    assert shard_map.shards["s0"].nodes[0].dsn == "postgresql://router:s3cret@10.0.0.11:5432/search"
    assert [node.zone for node in shard_map.shards["s0"].nodes] == ["a", None]
    collection = shard_map.collections["documents"]
    assert collection.table == Table("public", "documents")
    assert collection.id == Column("id", "doc_id", ValueType.BIGINT)
    assert collection.vector == Vector("embedding", VectorType.VECTOR, 384, Metric.COSINE)
    assert (collection.content, collection.metadata) == ("body", "meta")
    assert collection.columns == {
        "tenant": Column("tenant", "tenant_id", ValueType.TEXT),
        "price": Column("price", "price", ValueType.FLOAT8),
        "day": Column("day", "day", ValueType.DATE),
    }
    placement = ("s0",) * 4 + ("s1",) * 3 + ("s0",)
    assert collection.sharding == HashSharding(collection.id, placement)
    assert collection.sharded_by_id
    assert shard_map.shards_of(collection) == ("s0", "s1")


def test_what_a_file_leaves_out_has_its_default() -> None:
    least = document()
    least["collections"]["documents"] = {
        "table": "documents",
        "id": {"type": "uuid"},
        "vector": {"dimensions": 3, "metric": "l2"},
        "sharding": {"strategy": "hash", "key": "id", "buckets": 1, "placement": {"s1": 0}},
    }
    collection = parse(least).collections["documents"]
    assert collection.table == Table("public", "documents")
    assert collection.id.column == "id"
    assert collection.vector.column == "embedding"
    assert collection.vector.type is VectorType.VECTOR
    assert (collection.content, collection.metadata, collection.columns) == (None, None, {})
    assert collection.index == Index(16, 64, Quantization.NONE)
    assert collection.search == SearchDefaults(40, 2.0, 2.0, 1000)
    assert collection.cache == Cache(60.0)
    assert (collection.embedder, collection.template, collection.fulltext) == (None, None, None)


def test_what_tune_measured_is_read_strictly_and_shown_again() -> None:
    search = {"ef_search": 64, "target_recall": 0.99, "tuned": TUNED}
    shard_map = parse(document({f"{C}.search": search}))
    tuned = Tuned(0.99, 0.9951, 0.991, 10, 500, 3, 4, date(2026, 1, 31))
    assert shard_map.collections["documents"].search == SearchDefaults(64, 2.0, 2.0, 1000, 0.99, tuned)
    shown = to_json(shard_map)["collections"]["documents"]["search"]
    assert {name: shown[name] for name in search} == search
    assert "tuned" not in to_json(parse(document()))["collections"]["documents"]["search"]


def test_indexes_are_read_beside_the_short_forms() -> None:
    indexes = {"lang": "text", '"geo.x".city': "number", "tags": "array"}
    changes: dict[str, Any] = {
        f"{C}.columns": {"tenant": {"column": "tenant_id", "type": "text", "index": True}, "price": "float8"},
        f"{C}.metadata": {"column": "meta", "indexes": indexes},
    }
    shard_map = parse(document(changes))
    collection = shard_map.collections["documents"]
    assert [column.index for column in collection.columns.values()] == [True, False]
    assert collection.metadata == "meta"
    assert collection.metadata_indexes == {
        ("lang",): MetadataType.TEXT,
        ("geo.x", "city"): MetadataType.NUMBER,
        ("tags",): MetadataType.ARRAY,
    }
    assert to_json(shard_map)["collections"]["documents"]["metadata"] == changes[f"{C}.metadata"]
    assert parse(document({f"{C}.metadata": {"indexes": {}}})).collections["documents"].metadata == "metadata"


def test_a_map_without_collections_is_valid() -> None:
    assert parse(document({"collections": REMOVED})).collections == {}
    assert parse(document({"collections": {}})).collections == {}


def test_the_sharding_key_may_be_the_id_under_either_name_or_a_column() -> None:
    placement: dict[str, Any] = {"strategy": "hash", "buckets": 1, "placement": {"s0": [0]}}
    for key, column in (("id", "doc_id"), ("doc_id", "doc_id"), ("tenant", "tenant_id")):
        found = parse(document(key=key, **placement)).collections["documents"]
        assert found.sharding.key.column == column
        assert found.sharded_by_id == (column == "doc_id")


def test_list_sharding_is_read() -> None:
    tree = document(
        strategy="list", key="tenant", placement={"s0": ["acme", "no"], "s1": "initech"}, default="s1"
    )
    sharding = parse(tree).collections["documents"].sharding
    assert isinstance(sharding, ListSharding)
    assert sharding.values == {"acme": "s0", "no": "s0", "initech": "s1"}
    assert sharding.default == "s1"
    del tree["collections"]["documents"]["sharding"]["default"]
    assert parse(tree).collections["documents"].sharding.default is None  # type: ignore[union-attr]


def test_range_parts_are_put_in_order() -> None:
    placement = {"s0": [{"from": 10, "to": 20}, {"to": -1.5}], "s1": [{"from": 20}, {"from": -1.5, "to": 10}]}
    sharding = (
        parse(document(strategy="range", key="price", placement=placement)).collections["documents"].sharding
    )
    assert isinstance(sharding, RangeSharding)
    assert sharding.parts == (
        RangePart(None, -1.5, "s0"),
        RangePart(-1.5, 10.0, "s1"),
        RangePart(10.0, 20.0, "s0"),
        RangePart(20.0, None, "s1"),
    )


def test_a_plain_scalar_means_what_yaml_1_2_says() -> None:
    tree = document(strategy="list", key="tenant", placement={"s0": ["PLAIN"]})
    text = yaml.safe_dump(tree).replace("- PLAIN", "  [no, 12:30, 0x10, .inf]")
    sharding = parse(text).collections["documents"].sharding
    assert isinstance(sharding, ListSharding)
    assert list(sharding.values) == ["no", "12:30", "0x10", ".inf"]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("2s", 2.0), ("500ms", 0.5), ("1m", 60.0), ("1h", 3600.0), (3, 3.0), (0.25, 0.25), ("1.5 s", 1.5)],
)
def test_a_duration_is_text_or_seconds(written: object, seconds: float) -> None:
    shard_map = parse(document({f"{C}.search.timeout": written, f"{C}.cache.ttl": written}))
    assert shard_map.collections["documents"].search.timeout == seconds
    assert shard_map.collections["documents"].cache.ttl == seconds


def test_a_ttl_of_zero_turns_the_cache_off() -> None:
    assert parse(document({f"{C}.cache.ttl": 0})).collections["documents"].cache.ttl == 0.0


def test_services_are_read_and_a_collection_has_its_model() -> None:
    shard_map = parse(document(WORDS))
    model = EmbeddingService(
        "m",
        "https://10.0.0.5:8200/v1",
        "all-MiniLM",
        384,
        api_key="k3y",
        api_version="2024-02-01",
        batch=10,
        timeout=0.5,
        query_prefix="query: $",
        document_prefix="passage: ",
        send_dimensions=True,
    )
    assert shard_map.models == {"m": model}
    assert shard_map.rerankers == {"r": RerankingService("r", "http://[::1]:8200", "r", RerankingApi.TEI)}
    collection = shard_map.collections["documents"]
    assert collection.embedder is shard_map.models["m"]
    assert collection.fulltext == Fulltext(
        ("tenant_id", "body"), LanguageColumn("tenant_id", ("english", "german")), "words"
    )
    least = {"models": {"minilm": {"url": "http://h/", "dimensions": 3}}}
    assert parse(document(least)).models["minilm"] == EmbeddingService("minilm", "http://h/", "minilm", 3)
    plain = parse(document({f"{C}.fulltext": {"columns": ["content"]}})).collections["documents"]
    assert plain.fulltext == Fulltext(("body",), "english")


def test_no_finding_repeats_a_key_or_what_stands_in_the_place_of_one() -> None:
    faults: list[dict[str, Any]] = [
        {"api_key": "s3cret key"},
        {"api_key": "${S3}"},
        {"api_key": 5318008},
        {"api_key": ""},
        {"url": "http://me:s3cret@h/v1"},
        {"url": "https://h/v1?key=s3cret"},
        {"url": "${S3}"},
    ]
    for fault in faults:
        service = {"url": "http://h", "dimensions": 3, **fault}
        found = problems(document({"models": {"m": service}}), env={**ENV, "S3": "s3cret s3cret"})
        (name,) = fault
        assert list(found) == [f"models.m.{name}"]
        assert "s3cret" not in str(found)
        assert "5318008" not in str(found)


def test_load_reads_what_parse_reads(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text("\ufeff" + yaml.safe_dump(document()), encoding="utf-8")
    assert codec.load(str(path), ENV) == parse(document())


def test_dollars_and_variables_in_strings() -> None:
    placement = {"s0": ["$$${A}$$", "$5", "a$"], "s1": "${B}"}
    tree = document(strategy="list", key="tenant", placement=placement)
    sharding = parse(tree, env={**ENV, "A": "${B}", "B": "b"}).collections["documents"].sharding
    assert isinstance(sharding, ListSharding)
    assert sharding.values == {"$${B}$": "s0", "$5": "s0", "a$": "s0", "b": "s1"}


# One fault each: the path it is found at, and a piece of what is said.
FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"version": REMOVED}, "", "missing field 'version'"),
    ({"version": "12"}, "version", "expected an integer"),
    ({"version": True}, "version", "expected an integer"),
    ({"version": -1}, "version", "expected an integer from 0"),
    ({"shards": REMOVED, "collections": {}}, "", "missing field 'shards'"),
    ({"shards": {}, "collections": {}}, "shards", "at least one shard"),
    ({"shards": [], "collections": {}}, "shards", "expected a mapping, got a list"),
    ({"collection": {}}, "collection", "unknown field 'collection'; did you mean 'collections'?"),
    ({"shards.s0.nodes": []}, "shards.s0.nodes", "at least one node"),
    ({"shards.s0.nodes": {"name": "a"}}, "shards.s0.nodes", "expected a list of nodes"),
    ({"shards.s0": {}}, "shards.s0", "missing field 'nodes'"),
    ({"shards.S2": {"nodes": [{"name": "x", "dsn": "postgresql://h/d"}]}}, "shards.S2", "expected a name"),
    ({f"{C}.table": REMOVED}, C, "missing field 'table', such as `table: public.documents`"),
    ({f"{C}.table": "a.b.c"}, f"{C}.table", "SCHEMA.NAME"),
    ({f"{C}.table": ".b"}, f"{C}.table", "SCHEMA.NAME"),
    ({f"{C}.table": "Documents"}, f"{C}.table", "lower-case"),
    ({f"{C}.table": "public.user"}, f"{C}.table", "reserved word"),
    ({f"{C}.table": "a" * 64}, f"{C}.table", "63"),
    ({f"{C}.table": 5}, f"{C}.table", "expected a string"),
    ({f"{C}.id": REMOVED}, C, "missing field 'id'"),
    ({f"{C}.id.type": "integer"}, f"{C}.id.type", "expected one of bigint, uuid, text, got 'integer'"),
    ({f"{C}.id.type": "strng"}, f"{C}.id.type", "unknown type 'strng'"),
    ({f"{C}.id.type": "serial"}, f"{C}.id.type", "'serial'; known are bigint, text, uuid, int8, varchar"),
    ({f"{C}.id.column": "order"}, f"{C}.id.column", "reserved"),
    ({f"{C}.id.column": ""}, f"{C}.id.column", "lower-case"),
    ({f"{C}.content": "ctid"}, f"{C}.content", "system column"),
    ({f"{C}.content": "x; drop table y"}, f"{C}.content", "lower-case"),
    ({f"{C}.metadata": "body"}, f"{C}.metadata", f"mapped by {C}.content already"),
    ({f"{C}.columns.tenant": "txt"}, f"{C}.columns.tenant", "did you mean 'text'?"),
    ({f"{C}.columns.tenant": {"type": "text", "name": "x"}}, f"{C}.columns.tenant.name", "unknown field"),
    ({f"{C}.columns.tenant": {"column": "x"}}, f"{C}.columns.tenant", "missing field 'type'"),
    ({f"{C}.columns.x": {"column": "tenant_id", "type": "text"}}, f"{C}.columns.x.column", "mapped by"),
    ({f"{C}.columns.embedding": "text"}, f"{C}.columns.embedding", "mapped by"),
    ({f"{C}.columns.tenant": {"type": "text", "index": "yes"}}, f"{C}.columns.tenant.index", "true or false"),
    ({f"{C}.metadata": {"column": "body"}}, f"{C}.metadata.column", "mapped by"),
    ({f"{C}.metadata": {"index": {}}}, f"{C}.metadata.index", "did you mean 'indexes'?"),
    ({f"{C}.metadata": {"indexes": ["lang"]}}, f"{C}.metadata.indexes", "expected a mapping, got a list"),
    ({f"{C}.metadata": {"indexes": {"lang": "btree"}}}, f"{C}.metadata.indexes.lang", "text, number, array"),
    ({f"{C}.metadata": {"indexes": {"a..b": "text"}}}, f"{C}.metadata.indexes.'a..b'", "a metadata path is"),
    ({f"{C}.metadata": {"indexes": {"a": "text", '"a"': "number"}}},
     f"{C}.metadata.indexes.'\"a\"'", "twice"),
    ({f"{C}.metadata": {"indexes": {f"p{n}": "text" for n in range(65)}}}, f"{C}.metadata.indexes",
     "65 indexes exceed 64"),
    *(({f"{C}.columns.{name}": {"column": "x", "type": "text"}}, f"{C}.columns.{name}", "choose another name")
      for name in limits.TAKEN_NAMES),
    ({f"{C}.vector.dimensions": 0}, f"{C}.vector.dimensions", "from 1 to 16000"),
    ({f"{C}.vector.dimensions": 16001}, f"{C}.vector.dimensions", "from 1 to 16000"),
    ({f"{C}.vector.dimensions": 2001}, f"{C}.vector.dimensions", "2001 dimensions exceed 2000"),
    ({f"{C}.vector.dimensions": 4001, f"{C}.vector.type": "halfvec"}, f"{C}.vector.dimensions", "4000"),
    ({f"{C}.vector.dimensions": 4001, f"{C}.index": {"quantization": "halfvec"}},
     f"{C}.vector.dimensions", "4000"),
    ({f"{C}.vector.metric": "euclid"}, f"{C}.vector.metric", "l2, cosine, inner_product, l1"),
    ({f"{C}.vector.metric": REMOVED}, f"{C}.vector", "missing field 'metric'"),
    ({f"{C}.vector.type": "sparsevec"}, f"{C}.vector.type", "vector, halfvec"),
    ({f"{C}.index.type": "ivfflat"}, f"{C}.index.type", "hnsw"),
    ({f"{C}.index.m": 1}, f"{C}.index.m", "from 2 to 100"),
    ({f"{C}.index.m": 101}, f"{C}.index.m", "from 2 to 100"),
    ({f"{C}.index.m": 33}, f"{C}.index.ef_construction", "66 for m 33"),
    ({f"{C}.index.ef_construction": 1001}, f"{C}.index.ef_construction", "from 4 to 1000"),
    ({f"{C}.index.quantization": "int8"}, f"{C}.index.quantization", "none, halfvec, binary"),
    ({f"{C}.search.ef_search": 1001}, f"{C}.search.ef_search", "from 1 to 1000"),
    ({f"{C}.search.overfetch": 0.5}, f"{C}.search.overfetch", "from 1 to 100"),
    ({f"{C}.search.overfetch": float("nan")}, f"{C}.search.overfetch", "from 1 to 100"),
    ({f"{C}.search.timeout": 0}, f"{C}.search.timeout", "duration"),
    ({f"{C}.search.timeout": "2 days"}, f"{C}.search.timeout", "duration"),
    ({f"{C}.search.timeout": "2h"}, f"{C}.search.timeout", "3600s"),
    ({f"{C}.search.timeout": True}, f"{C}.search.timeout", "duration"),
    ({f"{C}.search.max_k": 10001}, f"{C}.search.max_k", "from 1 to 10000"),
    ({f"{C}.search.target_recall": 1}, f"{C}.search.target_recall", "a number from 0.5 to 0.9999, got 1"),
    ({f"{C}.search.target_recall": "high"}, f"{C}.search.target_recall", "a number from 0.5 to 0.9999"),
    ({f"{C}.search.tuned": {**TUNED, "at": "2026-02-30"}}, f"{C}.search.tuned.at", "a day of the calendar"),
    ({f"{C}.search.tuned": {**TUNED, "at": "yesterday"}}, f"{C}.search.tuned.at", "a date such as"),
    ({f"{C}.search.tuned": {**TUNED, "queries": 1}}, f"{C}.search.tuned.queries", "from 2 to 100000"),
    ({f"{C}.search.tuned": {**TUNED, "recal": 1}}, f"{C}.search.tuned.recal", "did you mean 'recall'"),
    ({f"{C}.search.tuned": {"recall": 0.9}}, f"{C}.search.tuned", "missing field 'lower_bound'"),
    ({f"{C}.search.limit": 5}, f"{C}.search.limit", "unknown field"),
    ({f"{C}.cache.ttl": -1}, f"{C}.cache.ttl", "duration"),
    ({f"{C}.text_model": "m"}, f"{C}.text_model", "unknown field 'text_model'"),
    ({"models": {"m": {"dimensions": 3}}}, "models.m", "missing field 'url'"),
    ({"models": {"m": {"url": "http://h"}}}, "models.m", "missing field 'dimensions'"),
    ({"models": {"M": {"url": "http://h", "dimensions": 3}}}, "models.M", "expected a name"),
    ({"models": {f"m{n}": {"url": "http://h", "dimensions": 3} for n in range(257)}}, "models", "exceed 256"),
    *(({"models": {"m": {"url": "http://h", "dimensions": 3, name: value}}}, f"models.m.{name}", said)
      for name, value, said in [
        ("url", "h:80", "expected an http or https URL"), ("url", "ftp://h", "expected an http"),
        ("url", "http://h:99999", "expected an http"), ("url", 5, "expected an http"),
        ("batch", 0, "from 1 to 2048"), ("batch", 2049, "from 1 to 2048"), ("timeout", 0, "duration"),
        ("model", "", "a model's name"), ("api_version", "a b", "a version such as"),
        ("query_prefix", "x" * 4097, "4096 characters at most"), ("send_dimensions", 1, "true or false"),
        ("dimension", 3, "did you mean 'dimensions'?")]),
    ({"rerankers": {"r": {"url": "http://h", "api": "jina"}}}, "rerankers.r.api", "cohere, tei"),
    ({"rerankers": {"r": {"url": "http://h", "dimensions": 3}}}, "rerankers.r.dimensions", "unknown field"),
    ({f"{C}.embedder": "m"}, f"{C}.embedder", "no model 'm' in this map; the map has no models"),
    ({**WORDS, f"{C}.embedder": "n"}, f"{C}.embedder", "no model 'n' in this map; known are m"),
    ({**WORDS, f"{C}.vector.dimensions": 256}, f"{C}.embedder",
     "the model m makes 384 dimensions, and the vector has 256"),
    ({f"{C}.template": "{content}"}, f"{C}.template", "no effect without an embedder"),
    *(({**WORDS, f"{C}.template": text}, f"{C}.template", said) for text, said in [
        ("{titel}", "{titel} is no field of the collection's documents"), ("{", "a brace that no other"),
        ("}{content}", "a brace that no other"),
        ("plain {{}}", "a template names from 1 to 64 fields, such as {content}"),
        ("{content}" * 65, "names from 1 to 64 fields, such as {content}; this, 65"),
        ("x" * 4097, "4097 characters exceeds 4096"),
        ("{metadata}", "expected a path in the metadata"), ("{metadata.a..b}", "a metadata path is"),
        ("{content.a}", "only metadata has paths"),
        ("{id}", "{id} is no field of the collection's documents")]),
    ({f"{C}.content": REMOVED, **WORDS}, f"{C}.template",
     "{content} is no field of the collection's documents"),
    ({f"{C}.content": REMOVED, f"{C}.fulltext": {"columns": ["content"]}}, f"{C}.fulltext.columns[0]",
     "'content' is none of the collection's"),
    *(({f"{C}.fulltext": value}, f"{C}.fulltext{path}", said) for value, path, said in [
        ({}, "", "missing field 'columns'"), ({"columns": []}, ".columns", "from 1 to 4 columns, got 0"),
        ({"columns": "content"}, ".columns", "expected a list of columns"),
        ({"columns": ["content", "price"]}, ".columns[1]", "'price' is not of type text"),
        ({"columns": ["body"]}, ".columns[0]", "'body' is none of the collection's"),
        ({"columns": ["content", "content"]}, ".columns[1]", f"stands at {C}.fulltext.columns[0] already"),
        ({"columns": ["content"], "stored": "body"}, ".stored", f"is mapped by {C}.content already"),
        ({"columns": ["content"], "stored": "Words"}, ".stored", ""),
        ({"columns": ["content"], "language": "English"}, ".language", "a text search configuration"),
        ({"columns": ["content"], "language": {"column": "lang", "values": ["english"]}},
         ".language.column", "'lang' is none of the collection's"),
        ({"columns": ["content"], "language": {"column": "tenant"}}, ".language", "missing field 'values'"),
        ({"columns": ["content"], "language": {"column": "tenant", "values": ["a", "a"]}},
         ".language.values[1]", "stands at"),
        ({"columns": ["content"], "language": {"column": "tenant", "values": []}}, ".language.values",
         "from 1 to 64 languages")]),
    ({f"{C}.sharding": REMOVED}, C, "missing field 'sharding', such as `sharding: {strategy: hash"),
    ({f"{C}.sharding.strategy": "centroid"}, f"{C}.sharding.strategy", "does not have the strategy centroid"),
    ({f"{C}.sharding.strategy": "modulo"}, f"{C}.sharding.strategy", "hash, list, range"),
    ({f"{C}.sharding.key": "tenat"}, f"{C}.sharding.key", "did you mean 'tenant'?"),
    ({f"{C}.sharding.key": "price"}, f"{C}.sharding.key", "hash needs a key of type"),
    ({f"{C}.sharding.buckets": 0}, f"{C}.sharding.buckets", "from 1 to 65536"),
    ({f"{C}.sharding.buckets": 65537}, f"{C}.sharding.buckets", "from 1 to 65536"),
    ({f"{C}.sharding.buckets": REMOVED}, f"{C}.sharding", "missing field 'buckets'"),
    ({f"{C}.sharding.buckets": 16}, f"{C}.sharding.placement", "no shard has buckets 8-15 of 16"),
    ({f"{C}.sharding.placement.s1": "4-5"}, f"{C}.sharding.placement", "no shard has bucket 6 of 8"),
    ({f"{C}.sharding.placement.s1": "3-7"}, f"{C}.sharding.placement.s1", "s0 has buckets 3, 7 already"),
    ({f"{C}.sharding.placement.s1": ["4-6", 4]}, f"{C}.sharding.placement.s1[1]", "s1 has bucket 4 already"),
    ({f"{C}.sharding.placement.s1": "4-8"}, f"{C}.sharding.placement.s1", "from 0 to 7"),
    ({f"{C}.sharding.placement.s1": "6-4"}, f"{C}.sharding.placement.s1", "ascending"),
    ({f"{C}.sharding.placement.s1": -1}, f"{C}.sharding.placement.s1", "expected a bucket"),
    ({f"{C}.sharding.placement.s1": ["4-6", None]}, f"{C}.sharding.placement.s1[1]", "expected a bucket"),
    ({f"{C}.sharding.placement.s3": []}, f"{C}.sharding.placement.s3", "no shard 's3' in this map"),
    ({f"{C}.sharding.default": "s0"}, f"{C}.sharding.default", "only the strategy list"),
    ({f"{C}.surprise": 1}, f"{C}.surprise", "unknown field"),
    ({"collections.Docs": {}}, "collections.Docs", "expected a name"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "path", "message"), FAULTS)
def test_a_fault_is_named_where_it_is(changes: dict[str, Any], path: str, message: str) -> None:
    found = problems(document(changes))
    assert message in found.get(path, ""), found


# Faults of list and range sharding: strategy, key, placement, path below the sharding, what is said.
LIST, RANGE = ("list", "tenant"), ("range", "price")
PLACEMENTS: list[tuple[tuple[str, str], Any, str, str]] = [
    (LIST, {"s0": ["a"], "s1": ["a"]}, ".placement.s1[0]", "the value 'a' is on s0 already"),
    (LIST, {"s0": [1]}, ".placement.s0[0]", "quote it"),
    (LIST, {"s0": [None]}, ".placement.s0[0]", "got null"),
    (LIST, {"s0": [["a"]]}, ".placement.s0[0]", "got a list"),
    (LIST, {}, ".placement", "no value and no default"),
    (LIST, {"s9": ["a"]}, ".placement.s9", "no shard 's9'"),
    (LIST, ["a"], ".placement", "expected a mapping"),
    (("list", "id"), {"s0": [2**63]}, ".placement.s0[0]", "an integer from"),
    (RANGE, {}, ".placement", "no range"),
    (RANGE, {"s0": [5]}, ".placement.s0[0]", "expected a mapping"),
    (RANGE, {"s0": {"from": 2, "to": 2}}, ".placement.s0", "an empty range"),
    (RANGE, {"s0": {"from": 2, "till": 3}}, ".placement.s0.till", "unknown field"),
    (RANGE, {"s0": {"from": "a"}}, ".placement.s0.from", "a number"),
    (RANGE, {"s0": {"from": None}}, ".placement.s0.from", "got null"),
    (RANGE, {"s0": [{"to": 1}], "s1": [{"from": 2}]}, ".placement.s1[0]", "gap"),
    (RANGE, {"s0": [{"to": 3}], "s1": [{"from": 2}]}, ".placement.s1[0]", "overlaps a range of s0"),
    (RANGE, {"s0": [{}], "s1": [{}]}, ".placement.s1[0]", "overlaps"),
    (RANGE, {"s0": {"from": 0, "to": 100}, "s1": [{"from": 5, "to": 6}, {"from": 50, "to": 60}]},
     ".placement.s1[1]", "overlaps a range of s0"),
]  # fmt: skip


@pytest.mark.parametrize(("how", "placement", "path", "message"), PLACEMENTS)
def test_a_faulty_placement_is_named(how: tuple[str, str], placement: Any, path: str, message: str) -> None:
    found = problems(document(strategy=how[0], key=how[1], placement=placement))
    assert message in found.get(f"{C}.sharding{path}", ""), found


def test_what_belongs_to_another_strategy_is_refused() -> None:
    tree = document(strategy="list", key="tenant", placement={}, default="s9", buckets=4)
    assert problems(tree) == {
        f"{C}.sharding.buckets": "only the strategy hash has buckets",
        f"{C}.sharding.default": "no shard 's9' in this map; known are s0, s1",
    }


def test_a_range_over_booleans_is_refused() -> None:
    sharding = {"strategy": "range", "key": "open", "placement": {"s0": [{}]}}
    tree = document(**sharding)
    tree["collections"]["documents"]["columns"]["open"] = "boolean"
    assert "boolean" in problems(tree)[f"{C}.sharding.key"]


def test_ef_construction_is_checked_where_only_m_is_given() -> None:
    assert f"{C}.index.m" in problems(document({f"{C}.index": {"m": 40}}))


def test_binary_quantization_indexes_every_dimension() -> None:
    tree = document({f"{C}.vector.dimensions": 16000, f"{C}.index.quantization": "binary"})
    assert parse(tree).collections["documents"].vector.dimensions == 16000


def test_a_node_stands_in_one_replica_set_by_name_and_by_server() -> None:
    tree = document()
    tree["shards"]["s1"]["nodes"] = [
        {"name": "s0-a", "dsn": "postgresql://h1/x"},
        {"name": "s1-b", "dsn": "postgres://OTHER:pw@10.0.0.11/search?sslmode=require"},
    ]
    assert problems(tree) == {
        "shards.s1.nodes[0].name": "the name 's0-a' is taken by shards.s0.nodes[0].name",
        "shards.s1.nodes[1].dsn": (
            "the same server as shards.s0.nodes[0].dsn; a server belongs to one replica set, once"
        ),
    }


def test_two_collections_do_not_share_a_table() -> None:
    tree = document()
    tree["collections"]["again"] = tree["collections"]["documents"]
    assert "belongs to collections.documents already" in problems(tree)["collections.again"]


def test_shards_are_bounded() -> None:
    shards = {
        f"s{at}": {"nodes": [{"name": f"n{at}", "dsn": f"postgresql://h{at}/d"}]}
        for at in range(limits.SHARDS + 1)
    }
    assert "4097 shards exceed 4096" in problems({"version": 1, "shards": shards})["shards"]


def test_all_faults_come_at_once_in_the_order_of_the_file() -> None:
    text = """\
version: x
shards:
  s0: {nodes: [{name: s0-a, dsn: "http://h/d"}]}
collections:
  documents:
    table: t
    id: {type: bigint}
    vector: {dimensions: 3, metric: l2}
    sharding:
      strategy: hash
      key: id
      buckets: 4
      placement:
        s0: [0-1, 1]
    index:
      m: 500
"""
    with pytest.raises(MapError) as caught:
        codec.parse(text, "map.yaml", {})
    assert str(caught.value).splitlines() == [
        "map.yaml:1:1: version: expected an integer from 0 to 9223372036854775807, got 'x'",
        "map.yaml:3:29: shards.s0.nodes[0].dsn: "
        "expected a DSN such as postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
        "map.yaml:13:7: collections.documents.sharding.placement: "
        "no shard has buckets 2-3 of 4; each must be placed once",
        "map.yaml:14:19: collections.documents.sharding.placement.s0[1]: "
        "s0 has bucket 1 already; each must be placed once",
        "map.yaml:16:7: collections.documents.index.m: expected an integer from 2 to 100, got 500",
    ]


def test_a_missing_variable_is_one_fault_that_names_it() -> None:
    tree = document({"shards.s0.nodes": [{"name": "${NAME}", "dsn": "${URL}", "zone": "${1}"}]})
    assert problems(tree, env={}) == {
        "shards.s0.nodes[0].name": "the environment variable NAME is not set; write $$ for a dollar",
        "shards.s0.nodes[0].dsn": "the environment variable URL is not set; write $$ for a dollar",
        "shards.s0.nodes[0].zone": "a reference has the form ${NAME}; write $$ for a dollar",
    }


def test_no_message_and_no_repr_shows_a_password() -> None:
    secret = "hunter2"
    dsn = f"postgresql://router:{secret}@10.0.0.11:5432/search"
    env = {"SECRET": secret, "DSN": dsn, "BROKEN": f"postgresql://u:{secret}/x@h/d"}
    nodes = [{"name": "x", "dsn": "${DSN}", "zone": "a"}]
    assert secret not in repr(parse(document({"shards.s0.nodes": nodes}), env=env))
    tree = document(
        {
            "shards.s1.nodes": [
                {"name": dsn, "dsn": "${BROKEN}", "zone": dsn},
                {"name": "${DSN}", "dsn": f"{dsn} trailing", "zone": "${SECRET}!"},
                {"name": "y", "dsn": f"postgresql://router:{secret}"},
                {"name": "z", "dsn": f"host=h password={secret}"},
                dsn,
            ],
            f"{C}.id.type": "${SECRET}",
            f"{C}.vector.metric": dsn,
            f"{C}.columns.day": f"postgresql://router:{secret}",
            f"{C}.sharding": {"strategy": "list", "key": "price", "placement": {"s0": ["${SECRET}"]}},
        }
    )
    tree[dsn] = 1
    with pytest.raises(MapError) as caught:
        parse(tree, env=env)
    assert len(caught.value.problems) >= 10
    assert secret not in str(caught.value)
    assert secret not in repr(caught.value)


def test_faults_are_bounded_in_number() -> None:
    tree = document({f"x{at}": at for at in range(1000)})
    with pytest.raises(MapError) as caught:
        parse(tree)
    assert len(caught.value.problems) == MAX_PROBLEMS + 1
    assert str(caught.value.problems[0]) == "map.yaml: 100 problems or more; these were found first"


def test_a_file_that_cannot_be_read_is_a_map_error(tmp_path: Path) -> None:
    with pytest.raises(MapError, match=r"nowhere\.yaml: cannot be read: No such file"):
        codec.load(tmp_path / "nowhere.yaml")
    with pytest.raises(MapError, match="cannot be read"):
        codec.load(tmp_path)


def test_a_file_that_is_not_utf_8_is_a_map_error(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_bytes(b"version: 1\nx: \xff\n")
    with pytest.raises(MapError, match=r"map\.yaml:2:4: not UTF-8"):
        codec.load(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_bytes(b"#" * (limits.FILE_BYTES + 1))
    with pytest.raises(MapError, match="larger than 4194304 bytes"):
        codec.load(path)
    with pytest.raises(MapError, match="larger than 4194304 bytes"):
        codec.parse("#" * (limits.FILE_BYTES + 1))
