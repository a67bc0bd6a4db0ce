"""Bodies for the model service, right and wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.model_service.bodies import read_embeddings, read_rerank, read_tei
from router.model_service.errors import InvalidBodyError, MalformedBodyError, ServiceError
from router.model_service.limits import Limits

LIMITS = Limits(max_texts=3, max_text_chars=10)


def body(**members: Any) -> bytes:
    return json.dumps(members).encode()


def refused(read: Any, data: bytes) -> InvalidBodyError:
    with pytest.raises(InvalidBodyError) as caught:
        read(data, LIMITS)
    return caught.value


def test_an_input_is_a_text_or_a_list_of_them() -> None:
    assert read_embeddings(body(input="one"), LIMITS).texts == ["one"]
    wanted = read_embeddings(body(input=["a", "ü😀"], model="m", dimensions=64, user="u"), LIMITS)
    assert wanted.texts == ["a", "ü😀"] and wanted.model == "m" and wanted.dimensions == 64
    assert read_embeddings(body(input="a", encoding_format="base64", model=None), LIMITS).base64


@pytest.mark.parametrize(
    ("members", "message", "param"),
    [
        ({"input": [1, 2]}, "input[0]: token ids are not taken", "input"),
        ({"input": [[1], [2]]}, "input[0]: token ids are not taken", "input"),
        ({"input": ["a", None]}, "input[1]: expected a text, got null", "input"),
        ({"input": ["a", True]}, "input[1]: expected a text, got a boolean", "input"),
        ({"input": ["a", 1.5]}, "input[1]: expected a text, got a number", "input"),
        ({"input": ["a", {}]}, "input[1]: expected a text, got an object", "input"),
        ({"input": []}, "input: there is no text in it", "input"),
        ({"input": ""}, "input: the text is empty", "input"),
        ({"input": ["a", ""]}, "input[1]: the text is empty", "input"),
        ({"input": ["a"] * 4}, "input: 4 texts exceed 3 for one request", "input"),
        ({"input": ["a", "b" * 11]}, "input[1]: 11 characters exceed 10", "input"),
        ({"input": 1}, "input: expected", "input"),
        ({}, "input: required, but missing", "input"),
        ({"input": "a", "dimensions": 0}, "dimensions: expected 1 or more, got 0", "dimensions"),
        ({"input": "a", "dimensions": 1.5}, "dimensions: expected", "dimensions"),
        (
            {"input": "a", "encoding_format": "hex"},
            "encoding_format: expected one of float, base64",
            "encoding_format",
        ),
        ({"input": "a", "truncate": True}, "truncate: unknown field; known are input, model", "truncate"),
        ({"input": "a", "model": 7, "x": 1}, "x: unknown field", "x"),
    ],
)
def test_what_is_wrong_with_an_input_is_said_with_its_place(
    members: dict[str, Any], message: str, param: str
) -> None:
    error = refused(read_embeddings, body(**members))
    assert error.message.startswith(message) and error.param == param


def test_all_wrong_members_are_named() -> None:
    error = refused(read_embeddings, body(model=7, x=1))
    assert all(part in error.message for part in ("x: unknown", "input: required", "model: expected"))


def test_documents_are_texts_or_objects_with_one() -> None:
    wanted = read_rerank(body(query="q", documents=["a", {"text": "b"}, ""], top_n=2), LIMITS)
    assert (wanted.query, wanted.texts, wanted.most, wanted.echo) == ("q", ["a", "b", ""], 2, False)
    wanted = read_tei(body(query="q", texts=["a"], raw_scores=True, return_text=True), LIMITS)
    assert wanted.raw and wanted.echo and wanted.whole
    assert not read_tei(body(query="q", texts=["a"], truncate=True), LIMITS).whole


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"query": "", "documents": ["a"]}, "query: the text is empty"),
        ({"query": "q" * 11, "documents": ["a"]}, "query: 11 characters exceed 10"),
        ({"query": "q", "documents": []}, "documents: there is no text in it"),
        ({"query": "q", "documents": "a"}, "documents: expected"),
        ({"query": "q", "documents": [1]}, "documents[0]: token ids"),
        ({"query": "q", "documents": ["a", {"text": None}]}, "documents[1]: expected a text, got null"),
        ({"query": "q", "documents": ["a", {"body": "b"}]}, "documents[1]: expected a text or"),
        ({"query": "q", "documents": [{"text": "b", "id": 1}]}, "documents[0]: expected a text or"),
        ({"query": "q", "documents": [{"text": "b" * 11}]}, "documents[0]: 11 characters exceed 10"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n: expected 1 or more"),
    ],
)
def test_what_is_wrong_with_documents_is_said_with_its_place(members: dict[str, Any], message: str) -> None:
    assert refused(read_rerank, body(**members)).message.startswith(message)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"input": "a"} x',
        b'"\xff"',
        b"[" * 100_000,
        b'{"input": "\\ud800"}',
        b'{"input": "a\x00"}',
    ],
)
def test_what_is_no_json_is_malformed(data: bytes) -> None:
    for read in (read_embeddings, read_rerank, read_tei):
        with pytest.raises(MalformedBodyError):
            read(data, LIMITS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=10,
)
names = st.sampled_from(
    [
        "input",
        "model",
        "encoding_format",
        "dimensions",
        "user",
        "query",
        "documents",
        "texts",
        "top_n",
        "text",
    ]
)


@given(st.dictionaries(names, json_values, max_size=5))
def test_no_body_gets_anything_but_texts_or_a_refusal(members: dict[str, Any]) -> None:
    for read in (read_embeddings, read_rerank, read_tei):
        try:
            wanted = read(body(**members), LIMITS)
        except ServiceError as exc:
            assert exc.status in (400, 422) and exc.message
        else:
            assert 0 < len(wanted.texts) <= 3 and all(len(text) <= 10 for text in wanted.texts)
