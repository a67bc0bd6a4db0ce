"""Values that unit tests build on: one collection of each sharding, and queries on it."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from router.query.ranked import RankedAnswer
from router.query.sizes import Layout
from router.query.types import Answer, Coverage, SearchQuery, ShardCounts, ShardReport, ShardState, Unsettled
from shard_config import model
from shard_config.values import ValueType

__all__ = ["answer", "collection", "query", "ranked", "shard_map"]

_ID = model.Column("id", "id", ValueType.BIGINT)
_TENANT = model.Column("tenant", "tenant", ValueType.TEXT)
_PRICE = model.Column("price", "price", ValueType.FLOAT8)


def collection(sharding: model.Sharding | None = None, **changes: Any) -> model.Collection:
    base = model.Collection(
        name="documents",
        table=model.Table("public", "documents"),
        id=_ID,
        vector=model.Vector("embedding", model.VectorType.VECTOR, 4, model.Metric.L2),
        content="content",
        metadata="metadata",
        columns={
            "tenant": _TENANT,
            "price": _PRICE,
            "day": model.Column("day", "day", ValueType.DATE),
            "active": model.Column("active", "is_active", ValueType.BOOLEAN),
        },
        sharding=sharding or model.HashSharding(_ID, ("s0", "s1", "s2", "s3")),
        index=model.Index(16, 64, model.Quantization.NONE),
        search=model.SearchDefaults(40, 2.0, 2.0, 1000),
        cache=model.Cache(60.0),
    )
    return msgspec.structs.replace(base, **changes)


def by_tenant() -> model.ListSharding:
    return model.ListSharding(_TENANT, {"acme": "s0", "globex": "s1"}, "s2")


def by_price() -> model.RangeSharding:
    return model.RangeSharding(
        _PRICE,
        (
            model.RangePart(None, 10.0, "s0"),
            model.RangePart(10.0, 100.0, "s1"),
            model.RangePart(100.0, None, "s2"),
        ),
    )


def shard_map(documents: model.Collection | None = None) -> model.ShardMap:
    shards = {
        name: model.Shard(name, (model.Node(f"{name}-a", f"postgresql://localhost/{name}"),))
        for name in ("s0", "s1", "s2", "s3")
    }
    documents = documents or collection()
    return model.ShardMap(1, shards, {documents.name: documents})


def query(documents: model.Collection | None = None, **changes: Any) -> SearchQuery:
    vector = np.array([1, 2, 3, 4], dtype="<f4").tobytes()
    return SearchQuery(**{"collection": documents or collection(), "vector": vector, "k": 10, **changes})


def answer(hits: str = '[{"id":1}]', *, cacheable: bool = True) -> Answer:
    counts = ShardCounts(4, 4, 4, 0, 0, 0)
    return Answer(msgspec.Raw(hits.encode()), 1, Coverage(True, counts), cacheable=cacheable)


def ranked(*distances: float, settled: bool = True) -> RankedAnswer:
    """Rows of ids from 0, all of one shard."""
    return RankedAnswer(
        rows=[((id_, distance), "s0") for id_, distance in enumerate(distances)],
        layout=Layout(frozenset()),
        coverage=Coverage(True, ShardCounts(4, 1, 1, 3, 0, 0)),
        reports={"s0": ShardReport("s0", ShardState.OK)},
        unsettled=() if settled else (Unsettled("s0", "ties"),),
    )
