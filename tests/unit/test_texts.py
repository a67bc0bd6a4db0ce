"""What is embedded of a document, and the vector that comes of it."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decode.document import DocumentReader
from router.decode.embedded import Texts, with_vector
from router.documents.types import Document, TextDocument
from router.query.errors import InvalidError
from router.query.patch import Patch, changes_of
from shard_config.model import Collection, Quantization
from shard_config.values import ValueType, coerce
from tests.http.fake import shard_map

ARTICLES = shard_map().collections["articles"]
EVERYTHING = {
    name: msgspec.structs.replace(ARTICLES.columns["title"], name=name, column=name, type=type_)
    for name, type_ in {
        "title": ValueType.TEXT,
        "year": ValueType.INTEGER,
        "price": ValueType.FLOAT8,
        "small": ValueType.FLOAT4,
        "amount": ValueType.NUMERIC,
        "sold": ValueType.BOOLEAN,
        "day": ValueType.DATE,
        "at": ValueType.TIMESTAMPTZ,
        "key": ValueType.UUID,
    }.items()
}


def collection(template: str | None, **changes: Any) -> Collection:
    return msgspec.structs.replace(ARTICLES, template=template, columns=EVERYTHING, **changes)


def text(template: str | None, *, content: str | None = None, metadata: Any = None, **columns: Any) -> str:
    of = collection(template)
    encoded = (
        metadata if metadata is None or isinstance(metadata, str) else msgspec.json.encode(metadata).decode()
    )
    checked = {name: coerce(EVERYTHING[name].type, value) for name, value in columns.items()}
    return Texts(of).of(content, encoded, checked, "vector")


def test_without_a_template_the_content_is_embedded_as_it_is() -> None:
    assert text(None, content="  as it is\n", title="unread") == "  as it is\n"


def test_a_template_is_filled_in_and_what_is_missing_is_empty() -> None:
    template = "{title}\n{content} {{{year}}}{metadata.a.b}"
    assert text(template, content="c", title="t", year=7, metadata={"a": {"b": "m"}}) == "t\nc {7}m"
    assert text(template, content="c") == "\nc {}"
    assert text(template, title="t", metadata={"a": "b"}) == "t\n {}"


def test_what_a_value_holds_is_never_taken_for_a_field() -> None:
    assert text("{title}: {content}", title="{content}", content="}}{{") == "{content}: }}{{"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("year", -3, "-3"),
        ("price", 9.5, "9.5"),
        ("price", "NaN", "NaN"),
        ("small", 0.1, "0.1"),
        ("amount", "12345678901234567890.10", "12345678901234567890.10"),
        ("sold", False, "false"),
        ("day", "2026-01-31", "2026-01-31"),
        ("day", "infinity", "infinity"),
        ("at", "2026-01-31T13:00:00+01:00", "2026-01-31T12:00:00Z"),
        ("key", uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_a_column_is_written_as_answers_show_it(name: str, value: object, shown: str) -> None:
    assert text(f"<{{{name}}}>", **{name: value}) == f"<{shown}>"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("s", "é"),
        ("n", "1.50"),
        ("t", "true"),
        ("o", '{"x": [1]}'),
        ("l.0", "a"),
        ("l.-1", "b"),
        ("o.x.0", "1"),
        ('"a.b"', "dotted"),
    ],
)
def test_metadata_are_found_by_their_paths_as_filters_find_them(path: str, shown: str) -> None:
    metadata = ' {"s": "\\u00e9", "n": 1.50, "t": true, "o": {"x": [1]}, "l": ["a", "b"], "a.b": "dotted"}'
    assert text(f"{{metadata.{path}}}", metadata=metadata) == shown


@pytest.mark.parametrize("path", ["gone", "z", "s.x", "l.9", "l.-9", "l.x", f"l.{'9' * 4000}"])
def test_a_path_that_leads_nowhere_or_to_null_is_empty(path: str) -> None:
    metadata = '{"s": "x", "z": null, "l": ["a"]}'
    assert text(f"{{content}}{{metadata.{path}}}", content="c", metadata=metadata) == "c"


@given(st.dictionaries(st.text("ab.", min_size=1, max_size=3), st.none() | st.text(max_size=5), max_size=4))
def test_every_member_of_metadata_has_a_path(members: dict[str, str | None]) -> None:
    for name, value in members.items():
        quoted = msgspec.json.encode(name).decode()
        assert text(f"{{metadata.{quoted}}}{{content}}", metadata=members, content="!") == f"{value or ''}!"


@pytest.mark.parametrize(
    ("of", "fields", "said"),
    [
        (collection(None), {}, "there is no text in content to make it of"),
        (collection(None), {"content": " \n\u3000"}, "there is no text in content to make it of"),
        (
            collection("Title: {title}, by {metadata.by} {title}"),
            {"title": "", "content": "unread"},
            "there is no text in title and metadata.by to make it of",
        ),
        (collection(None, content=None), {}, "collection articles has neither content nor a template"),
        (
            collection(None, embedder=None),
            {"content": "x"},
            "collection articles has no embedder to make it of",
        ),
    ],
)
def test_a_document_without_a_vector_and_without_text_is_refused(
    of: Collection, fields: dict[str, Any], said: str
) -> None:
    body = msgspec.json.encode({"id": 1, **fields})
    for data in (body, msgspec.json.encode({"id": 1, "vector": None, **fields})):
        with pytest.raises(InvalidError) as caught:
            DocumentReader(of).read(data, 0, "documents[3]")
        (problem,) = caught.value.problems
        assert problem.path == "documents[3].vector"
        assert problem.message.startswith(f"required, but missing; {said}")


def read(**fields: Any) -> Document | TextDocument:
    return DocumentReader(ARTICLES).read(msgspec.json.encode({"id": 1, **fields}), 5, "")


def test_a_document_with_a_vector_keeps_it_and_one_without_keeps_all_else() -> None:
    kept = read(vector=[1, 2, 3], content="x")
    assert isinstance(kept, Document)
    assert np.frombuffer(kept.vector, "<f4").tolist() == [1, 2, 3]
    came = read(title="t", content="c", metadata={"a": 1}, year=3)
    assert isinstance(came, TextDocument)
    made = with_vector(ARTICLES, came, np.array([3, 2, 1], "<f4").tobytes())
    assert msgspec.structs.replace(made, vector=b"") == msgspec.structs.replace(
        read(title="t", content="c", metadata={"a": 1}, year=3, vector=[1, 1, 1]),  # type: ignore[arg-type]
        vector=b"",
    )
    assert np.frombuffer(made.vector, "<f4").tolist() == [3, 2, 1]


@pytest.mark.parametrize(
    ("components", "said"),
    [
        ([0, 0, 0], "a zero vector has no direction"),
        ([1, 2], "has 2 dimensions, but the collection has 3"),
        ([1, 2, np.nan], "is not a finite number"),
        ([1e30, 1e30, 1e30], "distances would overflow"),
    ],
)
def test_a_vector_that_a_model_made_is_held_to_what_a_callers_is(components: list[float], said: str) -> None:
    came = read(content="c")
    assert isinstance(came, TextDocument)
    with pytest.raises(InvalidError) as caught:
        with_vector(ARTICLES, came, np.array(components, "<f4").tobytes())
    assert said in caught.value.detail
    assert caught.value.detail.endswith("; it is what letters has made of the text")


def test_what_a_quantized_index_cannot_hold_is_refused_of_a_model_too() -> None:
    came = read(content="c")
    assert isinstance(came, TextDocument)
    index = msgspec.structs.replace(ARTICLES.index, quantization=Quantization.HALFVEC)
    of = msgspec.structs.replace(ARTICLES, index=index)
    with pytest.raises(InvalidError, match="exceeds 65504, the limit of the index's halfvec"):
        with_vector(of, came, np.array([70000, 1, 1], "<f4").tobytes())


@pytest.mark.parametrize(
    ("patch", "concerned"),
    [
        (Patch({"content": "x"}), True),
        (Patch(unset=("content",)), True),
        (Patch({"title": "x"}), False),
        (Patch({"year": 7}), True),
        (Patch({"metadata": "{}"}), True),
        (Patch(unset=("metadata",)), True),
        (Patch(metadata=changes_of([(("a",), "1")], [])), True),
        (Patch(metadata=changes_of([(("a", "b"), "1")], [])), True),
        (Patch(metadata=changes_of([(("a", "b", "c"), "1")], [])), True),
        (Patch(metadata=changes_of([(("a", "c"), "1")], [("b",), ("a", "d", "b")])), False),
        (Patch(metadata=changes_of([], [("a", "b")])), True),
    ],
)
def test_it_is_known_whether_a_patch_changes_what_is_embedded(patch: Patch, concerned: bool) -> None:
    of = collection("{content} {year} {metadata.a.b}")
    assert Texts(of).concerned(patch) is concerned
    assert not Texts(msgspec.structs.replace(of, embedder=None)).concerned(patch)
