"""Which indexes a filter lacks, by its form and by those that the map has."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from router.query.filter import parse
from router.query.index_advice import Advice, advised
from router.settings import Settings
from shard_config.metadata_path import steps
from shard_config.model import Collection, MetadataType
from tests.unit.queries import collection

LANG = "metadata.indexes.lang: text"


def said(raw: dict[str, Any], of: Collection) -> list[str]:
    return [str(one) for one in advised(parse(of, raw, Settings()), of)]


def with_advice(of: Collection, advice: Advice) -> Collection:
    if advice.type is None:
        column = msgspec.structs.replace(of.columns[advice.field], index=True)
        return msgspec.structs.replace(of, columns={**of.columns, advice.field: column})
    path = steps(advice.field.removeprefix("metadata."))
    return msgspec.structs.replace(of, metadata_indexes={**of.metadata_indexes, path: advice.type})


@pytest.mark.parametrize(
    ("raw", "lacking"),
    [
        ({"price": 3}, ["columns.price.index: true"]),
        ({"price": {"$gt": 3}}, ["columns.price.index: true"]),
        ({"price": None}, ["columns.price.index: true"]),
        ({"price": {"$exists": True}}, []),
        ({"price": {"$ne": 3}}, []),
        ({"tenant": {"$like": "ab%"}}, ["columns.tenant.index: true"]),
        ({"tenant": {"$like": "%ab"}}, []),
        ({"tenant": {"$ilike": "ab%"}}, []),
        ({"id": {"$gt": 3}}, []),
        ({"content": "x"}, []),
        ({"metadata.lang": "en"}, [LANG]),
        ({"metadata.lang": {"$in": ["en", "de"]}}, [LANG]),
        ({"metadata.lang": {"$in": ["en", 1]}}, []),
        ({"metadata.lang": {"$in": [f"l{n}" for n in range(17)]}}, []),
        ({"metadata.lang": True}, []),
        ({"metadata.lang": {"$contains": "en"}}, ["metadata.indexes.lang: array"]),
        ({'metadata."a.b".c': {"$between": [1, 2]}}, ['metadata.indexes."a.b".c: number']),
        ({"price": {"$gt": 3}, "metadata.lang": "en"}, [LANG]),
        ({"price": {"$ne": 3}, "metadata.lang": "en"}, [LANG]),
        ({"id": 7, "metadata.lang": "en"}, []),
        ({"$or": [{"price": 3}, {"metadata.lang": "en"}]}, ["columns.price.index: true", LANG]),
        ({"$or": [{"price": 3}, {"price": 4}]}, ["columns.price.index: true"]),
        ({"$or": [{"price": 3}, {"price": {"$ne": 4}}]}, []),
        ({"$not": {"price": 3}}, []),
    ],
)
def test_a_filter_lacks_what_it_could_be_read_through(raw: dict[str, Any], lacking: list[str]) -> None:
    of = collection()
    assert said(raw, of) == lacking
    for advice in advised(parse(of, raw, Settings()), of):
        of = with_advice(of, advice)
    assert said(raw, of) == []


def test_an_index_for_arrays_finds_scalars_and_no_other_may_stand_on_its_path() -> None:
    of = with_advice(collection(), Advice("metadata.lang", MetadataType.ARRAY))
    for raw in ({"metadata.lang": "en"}, {"metadata.lang": 1}, {"metadata.lang": {"$gt": "e"}}):
        assert said(raw, of) == []
