"""What a patch may name, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from router.decode.listing_cursor import after, cursor
from router.decode.patch import patch_of
from router.query.errors import InvalidError
from router.query.patch import Changes, changes_of
from shard_config import Collection
from tests.http.fake import shard_map

MAP = shard_map()
DOCUMENTS, NOTES, HALVES = (MAP.collections[name] for name in ("documents", "notes", "halves"))


def parsed(set_: dict[str, Any], unset: list[str], collection: Collection = DOCUMENTS, most: int = 40) -> Any:
    raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in set_.items()}
    return patch_of(raw, unset, collection, most)


def test_columns_content_and_paths_are_what_a_patch_changes() -> None:
    patch = parsed(
        {"price": 3, "content": None, "metadata.a.b": {"c": 1}, "metadata.a.d": None},
        ["category", "metadata.x"],
    )
    assert patch.values == {"price": 3.0, "content": None}
    assert patch.unset == ("category",)
    assert patch.metadata == Changes(removed=("x",), within={"a": Changes({"b": '{"c":1}', "d": "null"})})
    whole = parsed({"metadata": {"n": 1}}, [])
    assert (whole.values, whole.metadata) == ({"metadata": '{"n":1}'}, None)
    assert parsed({"metadata": None}, []).values == {"metadata": None}
    assert parsed({}, ["metadata", "content"]).unset == ("metadata", "content")


def test_numbers_in_metadata_keep_their_digits() -> None:
    digits = b"1234567890.12345678901234567890"
    patch = patch_of({"metadata.a": msgspec.Raw(digits)}, [], DOCUMENTS, 20)
    assert patch.metadata == Changes({"a": digits.decode()})


@pytest.mark.parametrize(
    ("set_", "unset", "path", "said"),
    [
        ({}, [], "", "at least one field"),
        ({"id": 3}, [], "set.id", "the id stays"),
        ({}, ["id"], "unset[0]", "the id stays"),
        ({"vector": [1, 2, 3]}, [], "set.vector", "no vector"),
        ({"colour": 1}, [], "set.colour", "unknown field 'colour'"),
        ({"shard": "s0"}, [], "set.shard", "unknown field"),
        ({"price": "3"}, [], "set.price", "expected a number"),
        ({"content": 3}, [], "set.content", "expected a string"),
        ({"content": "a\0"}, [], "set.content", "U+0000"),
        ({"metadata": [1]}, [], "set.metadata", "expected `object`"),
        ({"metadata.": 1}, [], "set.metadata.", "names joined by dots"),
        ({}, ["price", "metadata.a..b"], "unset[1]", "names joined by dots"),
        ({"metadata.a": "\0"}, [], "set.metadata.a", "U+0000"),
        ({"metadata." + "a." * 32 + "a": 1}, [], "set.metadata." + "a." * 32 + "a", "at most 32 steps"),
        ({"metadata." + "a." * 31 + "a": {}}, [], "set.metadata." + "a." * 31 + "a", "deeper than 32"),
        ({"price": 1}, ["price"], "unset[0]", "set.price changes it as well"),
        ({"metadata.a": 1, "metadata.a.b": 1}, [], "set.metadata.a.b", "set.metadata.a changes it as well"),
        ({"metadata.a.b": 1, "metadata.a": 1}, [], "set.metadata.a", "set.metadata.a.b is within it"),
        ({"metadata.a.b": 1}, ["metadata"], "unset[0]", "set.metadata.a.b is within it"),
        ({"metadata.a": 1, 'metadata."a"': 1}, [], 'set.metadata."a"', "set.metadata.a changes it as well"),
        ({f"metadata.a{i}.b": 1 for i in range(14)}, [], "", "more than 40 fields"),
        ({f"metadata.a{i}": 1 for i in range(50)}, [], "", "more than 40 fields"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    set_: dict[str, Any], unset: list[str], path: str, said: str
) -> None:
    with pytest.raises(InvalidError) as caught:
        parsed(set_, unset)
    (problem,) = caught.value.problems
    assert problem.path == path and said in problem.message


def test_the_sharding_key_stays_and_all_faults_are_told() -> None:
    with pytest.raises(InvalidError) as caught:
        parsed({"tenant": "acme", "metadata.a": 1, "content": "x"}, ["id"], NOTES)
    assert [problem.path for problem in caught.value.problems] == [
        "set.tenant",
        "set.metadata.a",
        "set.content",
        "unset[0]",
    ]
    assert "the sharding key stays" in caught.value.problems[0].message
    assert "can change is nothing" in caught.value.problems[1].message


def test_changes_are_grouped_by_what_they_go_through() -> None:
    assert changes_of([], []) is None
    changes = changes_of([(("a", "b"), "1"), (("a", "c", "d"), "2")], [("a", "e"), ("f", "g")])
    assert changes == Changes(
        within={
            "a": Changes({"b": "1"}, ("e",), {"c": Changes({"d": "2"})}),
            "f": Changes(removed=("g",)),
        }
    )
    assert changes.sets and not changes.within["f"].sets
    assert sorted(changes.removals()) == [("a", "e"), ("f", "g")]


@pytest.mark.parametrize(
    ("collection", "id_"),
    [(DOCUMENTS, -(2**63)), (NOTES, 'é"/\x01'), (HALVES, "7b7e1a4e-3f0f-4f3f-9a55-0c9f9a3a1e11")],
)
def test_a_cursor_is_read_back_and_no_other_collection_or_filter_takes_it(
    collection: Collection, id_: object
) -> None:
    filter_: dict[str, object] = {"a": 1, "b": {"$lt": 2}}
    text = cursor(collection, id_, filter_)
    assert str(after(text, collection, {"b": {"$lt": 2}, "a": 1})) == str(id_)
    assert str(after(cursor(collection, id_, None), collection, {})) == str(id_)
    for other, tree, said in [
        (MAP.collections["coarse"], filter_, "of collection"),
        (collection, None, "another filter"),
        (collection, {"a": 2, "b": {"$lt": 2}}, "another filter"),
    ]:
        with pytest.raises(InvalidError) as caught:
            after(text, other, tree)
        assert caught.value.problems[0].path == "cursor" and said in caught.value.detail


@pytest.mark.parametrize(
    "change",
    [
        lambda t: "",
        lambda t: t[:-2],
        lambda t: t + "!",
        lambda t: "ü" + t,
        lambda t: t[::-1],
        lambda t: t + "=",
        lambda t: "bnVsbA",
        lambda t: t[:5] + "\n" + t[5:],
    ],
)
def test_what_is_no_cursor_is_refused(change: Any) -> None:
    with pytest.raises(InvalidError) as caught:
        after(change(cursor(DOCUMENTS, 7, None)), DOCUMENTS, None)
    assert caught.value.problems[0].path == "cursor"
