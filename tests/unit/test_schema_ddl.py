from __future__ import annotations

from typing import Any

import pytest

from router.schema import ddl
from shard_config.model import Collection
from tests.unit.shard_config_maps import document, parse


def of(**vector: Any) -> Collection:
    index = vector.pop("index", {})
    entry = {"type": "vector", "dimensions": 384, "metric": "cosine", **vector}
    changes = {"collections.documents.vector": entry, "collections.documents.index": index}
    return parse(document(changes)).collections["documents"]


def test_a_table_has_every_mapped_column_and_the_key_is_needed() -> None:
    tenants = {"strategy": "hash", "key": "tenant", "buckets": 2, "placement": {"s0": [0], "s1": [1]}}
    collection = parse(document(**tenants)).collections["documents"]
    create, plain = ddl.create_table(collection)
    assert create == (
        "CREATE TABLE public.documents (doc_id bigint PRIMARY KEY, embedding vector(384) NOT NULL, body text,"
        ' meta jsonb, tenant_id text COLLATE "C" NOT NULL, price double precision, day date)'
        " WITH (toast_tuple_target = 3584)"
    )
    assert plain == "ALTER TABLE public.documents ALTER COLUMN embedding SET STORAGE PLAIN"


@pytest.mark.parametrize(
    ("type_", "dimensions", "inline"),
    [
        ("vector", 3, True),
        ("vector", 384, True),
        ("vector", 784, True),
        ("vector", 1024, False),
        ("vector", 1536, True),
        ("vector", 1900, False),
        ("halfvec", 1536, True),
        ("halfvec", 3900, False),
    ],
)
def test_vectors_stay_in_the_row_where_they_fill_pages(type_: str, dimensions: int, inline: bool) -> None:
    statements = ddl.create_table(of(type=type_, dimensions=dimensions))
    assert (len(statements) == 2) == inline


@pytest.mark.parametrize(
    ("type_", "metric", "quantization", "expression", "opclass"),
    [
        ("vector", "l2", "none", "embedding", "vector_l2_ops"),
        ("vector", "l1", "none", "embedding", "vector_l1_ops"),
        ("halfvec", "cosine", "none", "embedding", "halfvec_cosine_ops"),
        ("vector", "inner_product", "halfvec", "(embedding::halfvec(384))", "halfvec_ip_ops"),
        ("halfvec", "l2", "halfvec", "embedding", "halfvec_l2_ops"),
        ("vector", "cosine", "binary", "(binary_quantize(embedding)::bit(384))", "bit_hamming_ops"),
    ],
)
def test_an_index_is_over_what_searches_order_by(
    type_: str, metric: str, quantization: str, expression: str, opclass: str
) -> None:
    collection = of(type=type_, metric=metric, index={"quantization": quantization, "m": 8})
    assert ddl.vector_key(collection) == ddl.VectorKey(expression, opclass)
    assert ddl.create_vector_index(collection, "x", concurrently=True) == (
        f"CREATE INDEX CONCURRENTLY x ON public.documents USING hnsw ({expression} {opclass})"
        " WITH (m = 8, ef_construction = 64)"
    )


def test_names_fit_and_are_free() -> None:
    assert ddl.free_name(("docs", "embedding"), "hnsw", set()) == "docs_embedding_hnsw"
    taken = {"docs_embedding_hnsw", "docs_embedding_hnsw1"}
    assert ddl.free_name(("docs", "embedding"), "hnsw", taken) == "docs_embedding_hnsw2"
    long = ddl.free_name(("t" * 63, "c" * 63), "hnsw", {"t" * 58 + "_hnsw"})
    assert long == "t" * 57 + "_hnsw1"
    assert len(long) == 63
