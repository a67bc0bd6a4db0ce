"""What a shard says of itself, and in what a map differs from that."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shard_config import ShardMap
from shard_config.identity import Disagreement, Identity, disagreements, identities
from tests.unit.shard_config_maps import WORDS, document, parse


def mapped(version: int = 12, /, changes: dict[str, Any] | None = None, **sharding: Any) -> ShardMap:
    return parse(document({"version": version, **(changes or {})}, **sharding))


def by_hash(buckets: int, **placement: list[Any]) -> dict[str, Any]:
    return {"strategy": "hash", "key": "id", "buckets": buckets, "placement": placement}


def by_list(default: str | None = None, **placement: list[str]) -> dict[str, Any]:
    rest = {} if default is None else {"default": default}
    return {"strategy": "list", "key": "tenant", "placement": placement, **rest}


def by_range(**placement: list[dict[str, int]]) -> dict[str, Any]:
    return {"strategy": "range", "key": "id", "placement": placement}


def stored(identity: Identity) -> Identity:
    """As it comes back from the shard, which keeps it as JSON."""
    return msgspec.json.decode(msgspec.json.encode(identity), type=Identity)


def compared(before: ShardMap, now: ShardMap, shard: str = "s0") -> list[Disagreement]:
    return disagreements(now, identities(now)[shard], stored(identities(before)[shard]))


HASHED = by_hash(8, s0=["0-3"], s1=["4-7"])


def test_a_map_agrees_with_itself_whatever_its_nodes() -> None:
    before = mapped(**HASHED)
    assert compared(before, before) == []
    moved = {"shards.s0.nodes": [{"name": "other", "dsn": "postgresql://me:secret@elsewhere/x"}]}
    assert compared(before, mapped(12, moved, **HASHED)) == []
    assert b"secret" not in msgspec.json.encode(identities(mapped(12, moved, **HASHED))["s0"])


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [
        (
            HASHED,
            by_hash(8, s0=["4-7"], s1=["0-3"]),
            "holds buckets 0-3 of 8 by doc_id of documents,"
            " and the map places buckets 4-7 of 8 by doc_id there",
        ),
        (
            HASHED,
            by_hash(8, s1=["0-7"]),
            "holds buckets 0-3 of 8 by doc_id of documents, and the map places nothing there",
        ),
        (
            by_list(s0=["a", "b"], s1=["c"]),
            by_list(s0=["a"], s1=["b", "c"]),
            "holds tenant_id a, b of documents, and the map places tenant_id a there",
        ),
        (
            by_list("s0", s1=["c"]),
            by_list("s0", s1=["c", "d"]),
            "holds all tenant_id but c of documents, and the map places all tenant_id but c, d there",
        ),
        (
            by_range(s0=[{"to": 10}], s1=[{"from": 10}]),
            by_range(s0=[{"to": 20}], s1=[{"from": 20}]),
            "holds doc_id below 10 of documents, and the map places doc_id below 20 there",
        ),
        (
            HASHED,
            by_range(s0=[{"to": 10}], s1=[{"from": 10}]),
            "holds buckets 0-3 of 8 by doc_id of documents, and the map places doc_id below 10 there",
        ),
        (
            by_range(s0=[{"to": 4}, {"from": 7, "to": 10}], s1=[{"from": 4, "to": 7}, {"from": 10}]),
            by_range(s0=[{"to": 7}], s1=[{"from": 7}]),
            "holds doc_id from 7 below 10, below 4 of documents, and the map places doc_id below 7 there",
        ),
    ],
)
def test_rows_that_are_placed_otherwise_are_named_with_what_both_say(
    before: dict[str, Any], now: dict[str, Any], text: str
) -> None:
    assert compared(mapped(12, **before), mapped(13, **now)) == [Disagreement("placement", text, "documents")]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        # Twice the buckets, split alike: h mod 16 says h mod 8.
        (HASHED, by_hash(16, s0=["0-3", "8-11"], s1=["4-7", "12-15"])),
        (by_hash(2, s0=[0], s1=[1]), by_hash(4, s0=[0, 2], s1=[1, 3])),
        # The order of the file means nothing.
        (by_list(s0=["a", "b"], s1=["c"]), by_list(s1=["c"], s0=["b", "a"])),
        # A range that is cut in two on its shard.
        (
            by_range(s0=[{"to": 10}], s1=[{"from": 10}]),
            by_range(s0=[{"to": 4}, {"from": 4, "to": 7}, {"from": 7, "to": 10}], s1=[{"from": 10}]),
        ),
        # A range that nothing had before is new for a shard that does not know of it.
        (by_range(s0=[{"to": 10}]), by_range(s0=[{"to": 10}], s1=[{"from": 10}])),
    ],
)
def test_the_same_rows_in_other_words_are_no_difference(before: dict[str, Any], now: dict[str, Any]) -> None:
    for shard in ("s0", "s1"):
        assert compared(mapped(12, **before), mapped(13, **now), shard) == []


def test_a_key_of_another_type_has_other_hashes_and_an_integer_of_another_width_has_not() -> None:
    def of(version: int, type_: str) -> ShardMap:
        return mapped(version, {"collections.documents.id": {"column": "doc_id", "type": type_}}, **HASHED)

    (point,) = compared(of(12, "bigint"), of(13, "text"))
    assert point.text == (
        "holds buckets 0-3 of 8 by doc_id as bigint of documents,"
        " and the map places buckets 0-3 of 8 by doc_id as text there"
    )
    before, now = of(12, "bigint"), of(13, "bigint")
    found = identities(before)["s0"]
    for known in ("", "integer"):  # earlier releases did not say
        holds = {table: msgspec.structs.replace(held, type=known) for table, held in found.holds.items()}
        assert disagreements(now, identities(now)["s0"], msgspec.structs.replace(found, holds=holds)) == []


def test_keys_and_addresses_of_services_are_each_routers_own() -> None:
    def of(**changes: Any) -> ShardMap:
        fields = {f"models.m.{name}": value for name, value in changes.items()}
        return mapped(12, {**WORDS, **fields}, **HASHED)

    before = of()
    others = of(url="http://elsewhere", api_key="other", timeout=9, batch=1)
    assert compared(before, others) == []
    assert b"k3y" not in msgspec.json.encode(identities(before)["s0"])
    (point,) = compared(before, of(model="large"))
    assert 'documents.embedder.model is "all-MiniLM" there and "large" here' in point.text
    earlier = stored(identities(before)["s0"])
    for field in ("embedder", "template", "fulltext"):
        del earlier.content["documents"][field]
    earlier = msgspec.structs.replace(earlier, digest="other")
    assert disagreements(before, identities(before)["s0"], earlier) == []  # a release without models wrote it


@pytest.mark.parametrize("field", ["content", "metadata", "embedder", "template", "fulltext"])
def test_what_one_of_two_maps_of_a_version_says_and_the_other_leaves_out_differs(field: str) -> None:
    changes = {**WORDS, "collections.documents.template": "{content}"}
    collection = mapped(12, {} if field == "content" else changes, **HASHED).collections["documents"]
    assert getattr(collection, field) is not None
    full, without = (
        msgspec.structs.replace(mapped(12, **HASHED), collections={"documents": one})
        for one in (collection, msgspec.structs.replace(collection, **{field: None}))
    )
    for before, now, said in ((full, without, "and null here"), (without, full, "is null there")):
        (point,) = compared(before, now)
        assert point.kind == "content" and f"documents.{field}" in point.text and said in point.text


def test_a_column_or_an_index_that_one_of_two_maps_of_a_version_has_differs() -> None:
    def of(**changes: Any) -> ShardMap:
        return mapped(
            12, {f"collections.documents.{name}": value for name, value in changes.items()}, **HASHED
        )

    columns, more = {"tenant": "text"}, {"tenant": "text", "price": "float8"}
    for before, now, where in ((columns, more, "file"), (more, columns, "shard")):
        (point,) = compared(of(columns=before), of(columns=now))
        assert point.text.endswith(f"documents.columns.price is only in the {where}")
    one, two = ({"indexes": {"lang": "text", **further}} for further in ({}, {"year": "number"}))
    (point,) = compared(of(metadata=one), of(metadata=two))
    assert point.text.endswith("documents.metadata.indexes.year is only in the file")


def test_a_column_for_the_words_that_one_map_has_differs() -> None:
    def of(**stored: str) -> ShardMap:
        fulltext = {"columns": ["content"], **stored}
        return mapped(12, {"collections.documents.fulltext": fulltext}, **HASHED)

    (point,) = compared(of(), of(stored="words"))
    assert 'documents.fulltext.stored is null there and "words" here' in point.text


def test_thrice_the_buckets_are_not_taken_for_the_same_rows() -> None:
    points = compared(
        mapped(12, **by_hash(3, s0=[0], s1=[1, 2])), mapped(13, **by_hash(4, s0=[0], s1=["1-3"]))
    )
    assert [point.kind for point in points] == ["placement"]


def test_a_newer_map_differs_only_in_placement_and_an_older_one_in_that_it_is_older() -> None:
    wider = {"collections.documents.search": {"ef_search": 99}}
    assert compared(mapped(12, **HASHED), mapped(13, wider, **HASHED)) == []
    (point,) = compared(mapped(13, wider, **HASHED), mapped(12, **HASHED))
    assert (point.kind, point.text) == ("older", "has version 13 of the map, and this is version 12")


def test_another_map_of_the_same_version_is_told_by_what_differs() -> None:
    wider = {"collections.documents.search": {"ef_search": 99}}
    (point,) = compared(mapped(12, **HASHED), mapped(12, wider, **HASHED))
    assert point.kind == "content"
    assert point.text == (
        "has another map of the same version 12: documents.search.ef_search is 40 there and 99 here"
    )


def test_a_field_that_one_release_does_not_know_is_no_difference() -> None:
    now = mapped(12, **HASHED)
    mine = identities(now)["s0"]
    content: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(mine.content))
    content["documents"]["novelty"] = 1
    del content["documents"]["cache"]
    found = msgspec.structs.replace(mine, digest="other", content=content)
    assert disagreements(now, mine, found) == []


def test_a_shard_that_is_another_one_says_nothing_else() -> None:
    now = mapped(12, **HASHED)
    found = identities(mapped(13, **by_hash(8, s0=["4-7"], s1=["0-3"])))["s1"]
    points = disagreements(now, identities(now)["s0"], found)
    assert points == [Disagreement("shard", "says that it is the shard s1")]


def test_a_shard_holds_what_is_placed_there_alone() -> None:
    now = mapped(12, **by_hash(8, s1=["0-7"]))
    assert identities(now)["s0"].holds == {}
    assert [str(held) for held in identities(now)["s1"].holds.values()] == ["buckets 0-7 of 8 by doc_id"]
