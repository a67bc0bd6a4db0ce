from __future__ import annotations

from typing import Any

import msgspec
import pytest

from router.schema.inspect import Found, FoundColumn, FoundIndex
from router.schema.shape import changes, mismatches, notes
from shard_config.model import Collection
from tests.unit.shard_config_maps import document, parse

TENANTS = {"strategy": "list", "key": "tenant", "placement": {"s0": ["a"], "s1": ["b"]}}


def collection(**sharding: Any) -> Collection:
    return parse(document(**sharding)).collections["documents"]


def column(name: str, type_: str, **changes: bool) -> FoundColumn:
    not_null = changes.pop("not_null", name in ("doc_id", "embedding", "tenant_id"))
    base = FoundColumn(name, type_, not_null, filled=False, generated=False, deterministic=True)
    return msgspec.structs.replace(base, **changes)


def index(name: str, **changes: Any) -> FoundIndex:
    base = FoundIndex(name, "btree", "", ("doc_id",), "int8_ops", {}, unique=True, total=True, valid=True)
    return msgspec.structs.replace(base, **changes)


PRIMARY_KEY = index("documents_pkey")
HNSW = index(
    "anything",
    method="hnsw",
    keys=("embedding",),
    opclass="vector_cosine_ops",
    options={"m": "16", "ef_construction": "64"},
    unique=False,
)
FITTING = (
    column("doc_id", "bigint"),
    column("embedding", "vector(384)"),
    column("body", "text"),
    column("meta", "jsonb"),
    column("tenant_id", "text"),
    column("price", "double precision"),
    column("day", "date"),
    column("unmapped", "text"),
)


def table(*changed: FoundColumn, without: str = "", **changes: Any) -> Found:
    columns = {c.name: c for c in (*FITTING, *changed) if c.name != without}
    base = Found(
        vector="0.8.5",
        vector_offered="0.8.5",
        vector_home="public",
        schema=True,
        relations=frozenset({"documents"}),
        oid=7,
        kind="r",
        columns=columns,
        indexes=(PRIMARY_KEY, HNSW),
    )
    return msgspec.structs.replace(base, **changes)


def test_a_fitting_table_needs_nothing() -> None:
    found = table()
    assert mismatches(collection(), found, replicated=True) == []
    assert changes(collection(), found, vector_index=True) == []
    assert notes(collection(), found) == []


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (table(without="price"), ["column price is missing; right would be price double precision"]),
        (
            table(column("doc_id", "integer")),
            ["column doc_id is integer; right would be: ALTER TABLE public.documents ALTER COLUMN doc_id"],
        ),
        (table(column("embedding", "vector")), ["column embedding is vector; right would be", "vector(384)"]),
        (table(column("embedding", "vector(3)")), ["column embedding is vector(3)"]),
        (
            table(column("embedding", "vector(384)", not_null=False)),
            ["column embedding may be NULL", "ALTER COLUMN embedding SET NOT NULL"],
        ),
        (table(column("price", "double precision", generated=True)), ["price is always generated"]),
        (table(column("unmapped", "text", not_null=True)), ["unmapped is NOT NULL without a default"]),
        (table(indexes=(HNSW,)), ["doc_id has no unique index of its own", "ADD UNIQUE (doc_id)"]),
        (table(indexes=(index("part", total=False), HNSW)), ["doc_id has no unique index"]),
        (table(indexes=(index("two", keys=("doc_id", "price")), HNSW)), ["doc_id has no unique index"]),
        (table(kind="v"), ["public.documents is a view"]),
        (table(permanent=False), ["unlogged", "SET LOGGED"]),
        (table(vector=None, vector_offered=None), ["no extension vector"]),
        (table(vector="0.7.4"), ["version 0.7.4; right would be 0.8 or newer"]),
    ],
)
def test_a_mismatch_says_what_would_be_right(found: Found, says: list[str]) -> None:
    (problem,) = mismatches(collection(), found, replicated=True)
    for part in says:
        assert part in problem


def test_all_mismatches_are_found_at_once() -> None:
    found = table(column("doc_id", "integer"), column("meta", "json"), without="body", indexes=())
    assert len(mismatches(collection(), found, replicated=False)) == 4


def test_what_has_a_default_may_stay_unmapped() -> None:
    found = table(column("unmapped", "text", not_null=True, filled=True))
    assert mismatches(collection(), found, replicated=True) == []


def test_other_texts_of_a_nondeterministic_collation_are_noted() -> None:
    said = notes(collection(), table(column("body", "text", deterministic=False)))
    assert [note for note in said if "nondeterministic" in note and "column body" in note]
    # Under the collation of an index in the map equality is that of bytes.
    odd = table(column("tenant_id", "text", deterministic=False), indexes=INDEXES)
    assert notes(indexed(), odd) == []


def test_a_text_key_needs_a_deterministic_collation() -> None:
    odd = table(column("tenant_id", "text", deterministic=False))
    assert mismatches(collection(), odd, replicated=True) == []
    (problem,) = mismatches(collection(**TENANTS), odd, replicated=True)
    assert "nondeterministic" in problem


def test_narrower_types_serve_unless_they_round_the_key() -> None:
    types = {"price": "numeric", "day": "timestamptz"}
    changed = {"collections.documents.columns": {"tenant": {"column": "tenant_id", "type": "text"}, **types}}
    found = table(
        column("tenant_id", "character varying(20)"),
        column("price", "numeric(10,2)"),
        column("day", "timestamp(3) with time zone"),
    )
    fits = parse(document(changed)).collections["documents"]
    assert mismatches(fits, found, replicated=True) == []
    assert [note.split(":")[0] for note in notes(fits, found)] == [
        "column price is numeric(10,2)",
        "column day is timestamp(3) with time zone",
    ]
    ranges = {"strategy": "range", "key": "price", "placement": {"s0": [{"to": 1}], "s1": [{"from": 1}]}}
    by_price = parse(document(changed, **ranges)).collections["documents"]
    problems = mismatches(by_price, table(*found.columns.values()), replicated=True)
    assert any("column price is numeric(10,2)" in problem for problem in problems)
    without_zone = table(column("day", "timestamp(3) without time zone"), column("price", "numeric"))
    assert len(mismatches(fits, without_zone, replicated=True)) == 1


def test_an_empty_server_gets_everything_once() -> None:
    empty = Found(None, "0.8.5", vector_home="public", schema=False, relations=frozenset())
    made = changes(collection(**TENANTS), empty, vector_index=True)
    assert [change.what for change in made] == [
        "created schema public",
        "created extension vector",
        "created table public.documents",
        "created index documents_tenant_id_idx",
        "created index documents_embedding_hnsw",
    ]
    assert not any(change.index for change in made)
    assert len(changes(collection(**TENANTS), empty, vector_index=False)) == 4


def test_an_index_over_rows_is_built_beside_their_writers() -> None:
    (change,) = changes(collection(), table(indexes=(PRIMARY_KEY,), empty=False), vector_index=True)
    assert change.index
    assert "CONCURRENTLY" in change.statements[0]


@pytest.mark.parametrize("keys", [("embedding::halfvec(384)",), ("(embedding::halfvec(384))",)])
def test_an_index_of_another_kind_does_not_serve(keys: tuple[str, ...]) -> None:
    half = {"collections.documents.index": {"quantization": "halfvec"}}
    quantized = parse(document(half)).collections["documents"]
    assert len(changes(quantized, table(), vector_index=True)) == 1
    right = msgspec.structs.replace(HNSW, keys=keys, opclass="halfvec_cosine_ops")
    assert changes(quantized, table(indexes=(PRIMARY_KEY, right)), vector_index=True) == []
    for wrong in ({"valid": False}, {"total": False}, {"opclass": "halfvec_l2_ops"}, {"method": "ivfflat"}):
        other = msgspec.structs.replace(right, **wrong)
        assert len(changes(quantized, table(indexes=(PRIMARY_KEY, other)), vector_index=True)) == 1


def test_other_parameters_and_failed_builds_are_notes() -> None:
    other = msgspec.structs.replace(HNSW, options={"m": "8"})
    broken = msgspec.structs.replace(HNSW, name="broken", valid=False)
    said = notes(collection(), table(indexes=(PRIMARY_KEY, broken, other)))
    assert said == [
        "index anything has m 8 instead of 16; it is kept, drop it to have it built anew",
        "index broken is left over from a build that failed; drop it",
    ]


INDEXED: dict[str, Any] = {
    "collections.documents.columns": {
        "tenant": {"column": "tenant_id", "type": "text", "index": True},
        "price": {"type": "float8", "index": True},
        "day": "date",
    },
    "collections.documents.metadata": {
        "column": "meta",
        "indexes": {"tags": "array", '"it\'s a"."{b}"': "array", "size": "number"},
    },
}
INDEXES = (
    PRIMARY_KEY,
    HNSW,
    index("t", keys=("tenant_id", "price"), unique=False, collation="C"),
    index("p", keys=("price",), unique=False),
    index("g", method="gin", keys=("(meta #> '{tags}'::text[])",), opclass="jsonb_path_ops",
          default_opclass=False, unique=False),
    index("h", method="gin", keys=("(meta #> '{\"it''s a\",\"{b}\"}'::text[])",), opclass="jsonb_path_ops",
          default_opclass=False, unique=False),
    index("n", keys=("(\nCASE jsonb_typeof(meta #> '{size}'::text[])\n    WHEN 'number'::text THEN"
                     " (meta #> '{size}'::text[])::numeric\n    WHEN 'array'::text THEN 'NaN'::numeric\n"
                     "    ELSE NULL::numeric\nEND)",), opclass="numeric_ops", unique=False),
)  # fmt: skip


def indexed() -> Collection:
    return parse(document(INDEXED)).collections["documents"]


def replaced(name: str, **changes: Any) -> tuple[FoundIndex, ...]:
    return tuple(msgspec.structs.replace(i, **changes) if i.name == name else i for i in INDEXES)


def test_indexes_on_what_filters_compare_are_made_before_there_are_rows() -> None:
    made = changes(indexed(), table(indexes=(PRIMARY_KEY, HNSW)), vector_index=True)
    assert [(change.what, change.index) for change in made] == [
        ("created index documents_tenant_id_filter", False),
        ("created index documents_price_filter", False),
        ("created index documents_meta_tags_filter", False),
        ("created index documents_meta_it_s_a_b_filter", False),
        ("created index documents_meta_size_filter", False),
    ]
    assert made[0].statements == (
        'CREATE INDEX documents_tenant_id_filter ON public.documents USING btree (tenant_id COLLATE "C")',
    )
    assert made[2].statements == (
        "CREATE INDEX documents_meta_tags_filter ON public.documents"
        " USING gin ((meta #> '{tags}'::text[]) jsonb_path_ops)",
    )


def test_indexes_of_any_name_serve_filters() -> None:
    found = table(indexes=INDEXES, empty=False)
    assert changes(indexed(), found, vector_index=True) == []
    assert notes(indexed(), found) == []


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("t", {"collation": "default"}),
        ("t", {"keys": ("price", "tenant_id")}),
        ("p", {"total": False}),
        ("p", {"method": "hash"}),
        ("p", {"default_opclass": False}),
        ("g", {"opclass": "jsonb_ops", "default_opclass": True}),
        ("g", {"keys": ("(meta #> '{tag}'::text[])",)}),
        ("h", {"keys": ("(meta #> '{\"it''sa\",\"{b}\"}'::text[])",)}),
    ],
)
def test_an_index_that_would_not_serve_is_made_beside(name: str, wrong: dict[str, Any]) -> None:
    found = table(indexes=replaced(name, **wrong), empty=False)
    create, gather = changes(indexed(), found, vector_index=True)
    assert "CREATE INDEX CONCURRENTLY" in create.statements[0]
    assert gather.statements == ("ANALYZE public.documents",)
    assert (create.index, create.hnsw, gather.index) == (True, False, True)


@pytest.mark.parametrize(("name", "column"), [("p", "price"), ("anything", "embedding")])
def test_a_build_that_was_interrupted_is_done_again(name: str, column: str) -> None:
    found = table(indexes=replaced(name, valid=False), empty=False, relations=frozenset({name}))
    again, *_ = changes(indexed(), found, vector_index=True)
    assert again.statements[0] == f"DROP INDEX CONCURRENTLY public.{name}"
    assert column in again.statements[1]
    assert again.lacking.endswith("in place of one whose build had failed")
    busy = table(indexes=replaced(name, valid=False, building=True), empty=False)
    assert changes(indexed(), busy, vector_index=True) == []
    assert notes(indexed(), busy) == [f"index {name} is being built by another session"]


def test_statistics_of_an_expression_are_gathered_by_the_next_run() -> None:
    found = table(indexes=replaced("n", analyzed=False), empty=False)
    (change,) = changes(indexed(), found, vector_index=True)
    assert change.statements == ("ANALYZE public.documents",)
    assert changes(indexed(), table(indexes=replaced("n", analyzed=False)), vector_index=True) == []


def test_an_index_that_left_the_map_is_kept_and_named() -> None:
    old = index("documents_day_filter1", keys=("day",), unique=False)
    found = table(indexes=(*INDEXES, old, index("documents_day_idx", keys=("day",), unique=False)))
    assert changes(indexed(), found, vector_index=True) == []
    (note,) = notes(indexed(), found)
    assert note.startswith("index documents_day_filter1 is kept, though the map")
    texts = index("documents_body_filter", keys=("body",), unique=False, collation="C")
    (note,) = notes(indexed(), table(indexes=(*INDEXES, texts)))
    assert "and equality does not use it: drop it" in note


def test_an_index_on_the_sharding_key_serves_as_that_of_the_map() -> None:
    tenants = parse(document(INDEXED, **TENANTS)).collections["documents"]
    made = changes(tenants, table(indexes=(PRIMARY_KEY, HNSW)), vector_index=True)
    assert len([change for change in made if "tenant_id" in change.what]) == 1
    kept = changes(tenants, table(indexes=INDEXES, empty=False), vector_index=True)
    assert kept == []


def test_an_index_on_texts_is_refused_where_the_collation_c_is_not_by_code_point() -> None:
    plain = collection()
    columns = {name: msgspec.structs.replace(one, index=True) for name, one in plain.columns.items()}
    indexed = msgspec.structs.replace(plain, columns=columns)
    for encoding, said in (("UTF8", []), ("SQL_ASCII", []), ("KOI8R", ["KOI8R"]), ("WIN1251", ["WIN1251"])):
        found = table(encoding=encoding)
        told = [one for one in mismatches(indexed, found, replicated=True) if "needs UTF8" in one]
        assert len(told) == len(said) and all(name in one for name, one in zip(said, told, strict=True))
        assert not any("UTF8" in one for one in mismatches(plain, found, replicated=True))
