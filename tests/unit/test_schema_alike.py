"""In what tables of one collection differ between shards."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from router.schema.alike import shard_differences, traits_of
from router.schema.inspect import Found
from shard_config.model import Collection, Fulltext
from tests.unit.test_schema_findings import facts
from tests.unit.test_schema_shape import FITTING, HNSW, PRIMARY_KEY, collection, column, index, table


def said(*tables: Found) -> list[str]:
    """What is told of shards s0, s1 and so on."""
    traits = {f"s{i}": traits_of([collection()], [facts(found)]) for i, found in enumerate(tables)}
    return [f"{one.shard}: {one}" for one in shard_differences(traits)]


def changed(name: str, **changes: Any) -> Found:
    (one,) = (known for known in FITTING if known.name == name)
    return table(msgspec.structs.replace(one, **changes))


def with_index(**changes: Any) -> Found:
    definition = "CREATE INDEX any_name ON public.documents USING btree (price)"
    base = {"keys": ("price",), "unique": False, "definition": definition}
    return table(indexes=(PRIMARY_KEY, HNSW, index("any_name", **{**base, **changes})))


BEYOND = {
    "index": (with_index(), "the index btree (price)"),
    "unique index": (with_index(unique=True), "the unique index btree (price)"),
    "constraint": (table(constraints=("CHECK (price > 0)",)), "the constraint CHECK (price > 0)"),
    "trigger": (table(triggers=("t that calls f",)), "the trigger t that calls f"),
    "policies": (table(policed=True), "policies that may hide rows from the role"),
    "default": (changed("body", default="'x'::text"), "the default 'x'::text of column body"),
    "not null": (changed("body", not_null=True), "NOT NULL on column body"),
    "length": (changed("body", type="character varying(9)"), "the type character varying(9) of column body"),
}


@pytest.mark.parametrize("what", BEYOND)
def test_what_one_shard_has_more_is_told(what: str) -> None:
    more, trait = BEYOND[what]
    assert said(more, more, more) == []
    assert said(table(), table(), more) == [f"s2: warning: documents: has {trait}, which s0 and s1 lack"]
    assert said(more, table(), more) == [f"s1: warning: documents: lacks {trait}, which s0 and s2 have"]
    assert said(more, table()) == [f"s1: warning: documents: lacks {trait}, which s0 has"]


def test_what_the_map_asks_for_or_what_does_no_harm_is_not_told_twice() -> None:
    plain = table()
    assert said(plain, table(indexes=(PRIMARY_KEY,))) == []  # lacks the index on vectors
    assert said(plain, with_index(valid=False)) == []  # left over from a build
    assert said(plain, changed("price", type="text")) == []  # not as the map says
    assert said(plain, table(column("more", "text", not_null=True))) == []
    assert said(plain, table(kind=None, columns={}, indexes=())) == []
    key = {"keys": ("doc_id",), "unique": True}
    assert said(plain, with_index(**key, definition="CREATE UNIQUE INDEX x ON t USING btree (doc_id)")) == []
    vectors = with_index(method="hnsw", opclass="vector_l2_ops", keys=("embedding",))
    assert said(plain, vectors) == []
    renamed = with_index(definition="CREATE INDEX z ON ONLY public.documents USING btree (price)")
    assert said(with_index(), renamed) == []


def test_of_many_shards_only_the_fewer_are_told_and_a_few_are_named() -> None:
    more, _ = BEYOND["index"]
    (one,) = said(*(more,) * 20, table())
    assert one == "s20: warning: documents: lacks the index btree (price), which s0, s1, s2 and 17 more have"


def test_the_primary_speaks_for_its_shard() -> None:
    behind = facts(table(), "b", standby=True)
    primary = facts(BEYOND["index"][0], "a")
    assert traits_of([collection()], [behind, primary]) == traits_of([collection()], [primary])
    assert traits_of([collection()], []) == {}


def test_shards_whose_databases_tell_words_apart_differently_are_told_where_words_are_searched_for() -> None:
    searched = msgspec.structs.replace(collection(), fulltext=Fulltext(("body",)))

    def by(locale: str, of: Collection) -> Any:
        return traits_of([of], [facts(msgspec.structs.replace(table(), locale=locale))])

    assert shard_differences({"s0": by("C", collection()), "s1": by("de_DE.utf8", collection())}) == []
    (one, other) = shard_differences({"s0": by("C", searched), "s1": by("de_DE.utf8", searched)})
    assert one.message == "lacks the locale C, by which the database tells words apart, which s0 has"
    assert other.message.startswith("lacks the locale de_DE.utf8,")
