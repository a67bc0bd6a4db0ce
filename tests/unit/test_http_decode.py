from __future__ import annotations

import base64
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decode.bodies import QueryBody, RerankBody, SearchBody
from router.decode.body import Decoder, decode_object
from router.query.errors import InvalidError, MalformedError, RequestError

decoder = Decoder(SearchBody)


def test_a_good_body_is_decoded() -> None:
    body = decoder.decode(b'{"vector": [1, 2.5], "k": 3}')
    assert (body.vector, body.k) == ([1.0, 2.5], 3)


def test_every_wrong_field_is_named_with_its_place() -> None:
    with pytest.raises(InvalidError) as caught:
        decoder.decode(b'{"vector": [1, null], "k": "x", "filter": 1, "what": 2}', "searches[4]")
    found = {problem.path: problem.message for problem in caught.value.problems}
    assert found.keys() == {
        "searches[4].vector[1]",
        "searches[4].k",
        "searches[4].filter",
        "searches[4].what",
    }
    assert found["searches[4].k"] == "expected `int`, got `str`"
    assert found["searches[4].what"].startswith("unknown field; known are vector, text, mode, match, k")


def test_a_choice_that_is_none_is_told_what_there_is() -> None:
    with pytest.raises(InvalidError, match="consistency: expected one of eventual, strong, got 'Strong'"):
        decoder.decode(b'{"vector": [1], "consistency": "Strong"}')


def test_wrong_fields_within_fields_are_named_with_their_place_and_what_is_known() -> None:
    body = {
        "rerank": {"modle": "ce", "candidates": "x"},
        "fusion": {"method": "rank"},
        "queries": [{"text": "a"}, {"txt": "a", "mode": "words"}],
        "group_by": "section",
    }
    with pytest.raises(InvalidError) as caught:
        decoder.decode(json.dumps(body).encode())
    assert {problem.path: problem.message for problem in caught.value.problems} == {
        "rerank.modle": "unknown field; known are model, candidates, text",
        "rerank.model": "required, but missing",
        "rerank.candidates": "expected `int`, got `str`",
        "fusion.method": "expected one of rrf, scores, got 'rank'",
        "queries[1].txt": "unknown field; known are text, vector, like, mode, match, weight, filter, name",
        "queries[1].mode": "expected one of vector, fulltext, got 'words'",
        "group_by": "expected `object`, got `str`; its fields are field, size",
    }


def test_null_in_an_optional_field_is_as_if_left_out_within_fields_too() -> None:
    body = decoder.decode(
        b'{"match": null, "rerank": {"model": "ce", "candidates": null}, "queries": [{"text": null}]}'
    )
    assert body.rerank == RerankBody(model="ce")
    assert body.queries == [QueryBody()]
    with pytest.raises(InvalidError, match=r"rerank\.model: expected `str`, got `null`"):
        decoder.decode(b'{"rerank": {"model": null, "candidates": null}}')


def test_words_for_non_numbers_are_found_anywhere() -> None:
    with pytest.raises(InvalidError) as caught:
        decoder.decode(b'{"vector": [1, NaN, -Infinity], "filter": {"a": [{"b": Infinity}]}}')
    assert [(problem.path, problem.message.split()[0]) for problem in caught.value.problems] == [
        ("vector[1]", "NaN"),
        ("vector[2]", "-Infinity"),
        ("filter.a[0].b", "Infinity"),
    ]


def test_words_within_strings_are_left_alone() -> None:
    assert decoder.decode(b'{"text": "NaN Infinity"}').text == "NaN Infinity"
    with pytest.raises(MalformedError):
        decoder.decode(b'{"text": "NaN", }')


def test_half_a_surrogate_pair_is_malformed_whatever_else_is_wrong() -> None:
    for data in (b'{"\\ud800": 1}', b'{"\\ud800": NaN}', b'{"a": [NaN, {"b": "\\udfff"}]}'):
        for decode in (decoder.decode, lambda data: decode_object(data, "filter")):
            with pytest.raises(MalformedError, match="half of a surrogate pair"):
                decode(data)


def test_a_problem_can_be_sent_whatever_text_it_is_made_of() -> None:
    error = InvalidError.at("filter.\ud800", "\udfff is no number, \xfc is no letter")
    msgspec.json.encode([error.detail, error.problems])
    assert error.problems[0].path == "filter.\\ud800"
    assert error.problems[0].message == "\\udfff is no number, \xfc is no letter"


def test_a_large_malformed_body_is_refused_without_a_long_look() -> None:
    with pytest.raises(MalformedError, match="malformed JSON: JSON is malformed: invalid character"):
        decoder.decode(b'{"vector": [' + b"1," * (1 << 20) + b"NaN]}")


def test_an_object_is_wanted_where_an_object_is_wanted() -> None:
    assert decode_object(b'{"a": 1}', "filter") == {"a": 1}
    for data, error in ((b"[]", InvalidError), (b"{", MalformedError), (b'{"a": NaN}', InvalidError)):
        with pytest.raises(error, match="filter"):
            decode_object(data, "filter")


@given(st.binary(max_size=60) | st.text('{}[]":,0123NaN\\u ', max_size=40).map(str.encode))
def test_no_bytes_bring_any_other_error(data: bytes) -> None:
    try:
        decoder.decode(data)
    except RequestError as exc:
        msgspec.json.encode([exc.detail, exc.problems])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*SearchBody.__struct_fields__, "other"]), JSON))
def test_any_json_is_taken_or_refused_with_paths_in_it(body: dict[str, object]) -> None:
    data = json.dumps(body).encode()
    try:
        decoder.decode(data)
    except InvalidError as exc:
        assert {problem.path.split(".")[0].split("[")[0] for problem in exc.problems} <= set(body)
    except MalformedError as exc:
        assert b"\\ud" in data, exc.detail


@pytest.mark.parametrize(
    "text", ["AAAAAAAAAAAAAAAA\n", "AAAA AAAAAAAAAAA", "AAA", "AA==AA==", "AA=A", "é", "-_-_"]
)
def test_base64_is_read_strictly(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        decoder.decode(json.dumps({"vector": text}).encode())
    (problem,) = caught.value.problems
    assert (problem.path, problem.message) == ("vector", "invalid base64 encoded string")


@given(st.binary())
def test_base64_means_what_it_encodes(data: bytes) -> None:
    body = decoder.decode(json.dumps({"vector": base64.b64encode(data).decode()}).encode())
    assert body.vector == data
