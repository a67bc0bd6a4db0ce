"""Outputs of models as bodies of answers."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from router.model_service.answers import cohere_answer, embeddings_answer, tei_answer
from router.model_service.backend import Output
from router.model_service.bodies import Wanted
from router.model_service.errors import InvalidBodyError, ModelFailedError
from tests.unit.gated_models import GatedReranker

RERANKER = GatedReranker()


def output(values: Any, *truncated: int) -> Output:
    count = len(values)
    return Output(np.asarray(values), np.full(count, 3), np.isin(np.arange(count), truncated))


def vectors(count: int = 3, dimensions: int = 8) -> np.ndarray[Any, Any]:
    made = np.random.default_rng(1).normal(size=(count, dimensions)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_vectors_are_in_the_order_of_the_texts_with_the_tokens_used() -> None:
    made = vectors()
    answer = json.loads(embeddings_answer("m", Wanted(None, ["a", "b", "c"]), output(made)))
    assert answer["object"] == "list" and answer["model"] == "m"
    assert answer["usage"] == {"prompt_tokens": 9, "total_tokens": 9} and "truncated" not in answer
    assert [(one["object"], one["index"]) for one in answer["data"]] == [("embedding", n) for n in range(3)]
    assert np.array([one["embedding"] for one in answer["data"]], np.float32).tobytes() == made.tobytes()


def test_base64_is_little_endian_float32() -> None:
    made = vectors()
    answer = json.loads(embeddings_answer("m", Wanted(None, ["a", "b", "c"], base64=True), output(made)))
    found = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in answer["data"]]
    assert np.array_equal(found, made)


def test_fewer_dimensions_are_the_first_ones_at_length_1() -> None:
    made = vectors()
    answer = json.loads(embeddings_answer("m", Wanted(None, ["a", "b", "c"], dimensions=4), output(made)))
    found = np.array([one["embedding"] for one in answer["data"]])
    assert np.allclose(np.linalg.norm(found, axis=1), 1)
    assert np.allclose(found * np.linalg.norm(made[:, :4], axis=1, keepdims=True), made[:, :4], atol=1e-6)


def test_texts_that_were_not_read_to_the_end_are_listed() -> None:
    answer = json.loads(embeddings_answer("m", Wanted(None, ["a", "b", "c"]), output(vectors(), 0, 2)))
    assert answer["truncated"] == [0, 2]
    answer = json.loads(cohere_answer("m", RERANKER, Wanted(None, ["a", "b"], "q"), output([1.0, 2.0], 1)))
    assert answer["truncated"] == [1]


@pytest.mark.parametrize("dimensions", [None, 2])
def test_a_text_without_a_direction_is_named(dimensions: int | None) -> None:
    made = vectors()
    made[1, :2] = 0
    if dimensions is None:
        made[1] = 0
    with pytest.raises(InvalidBodyError, match=r"input\[1\]: model 'm' knows nothing of this text"):
        embeddings_answer("m", Wanted(None, ["a", "b", "c"], dimensions=dimensions), output(made))


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_no_number_is_never_in_an_answer(broken: float) -> None:
    made = vectors()
    made[2, 7] = broken
    for dimensions in (None, 4):
        with pytest.raises(ModelFailedError, match=r"input\[2\]"):
            embeddings_answer("m", Wanted(None, ["a", "b", "c"], dimensions=dimensions), output(made))
    for answer in (cohere_answer, tei_answer):
        with pytest.raises(ModelFailedError, match="text 1"):
            answer("m", RERANKER, Wanted(None, ["a", "b"], "q"), output([0.0, broken]))


def test_the_best_text_is_first_and_equal_ones_are_as_they_came() -> None:
    wanted = Wanted(None, ["a", "b", "c", "d"], "q", echo=True)
    answer = json.loads(cohere_answer("m", RERANKER, wanted, output([1.0, 3.0, 1.0, 3.0])))
    assert [one["index"] for one in answer["results"]] == [1, 3, 0, 2]
    assert answer["results"][0] == {"index": 1, "relevance_score": 0.75, "document": {"text": "b"}}
    assert answer["usage"] == {"total_tokens": 12} and answer["model"] == "m"


@pytest.mark.parametrize(("most", "count"), [(1, 1), (2, 2), (99, 3), (None, 3)])
def test_top_n_cuts_the_results(most: int | None, count: int) -> None:
    wanted = Wanted(None, ["a", "b", "c"], "q", most=most)
    results = json.loads(cohere_answer("m", RERANKER, wanted, output([0.0, 1.0, 2.0])))["results"]
    assert [one["index"] for one in results] == [2, 1, 0][:count]
    assert all(one.keys() == {"index", "relevance_score"} for one in results)


def test_scores_that_are_equal_between_0_and_1_keep_the_models_order() -> None:
    wanted = Wanted(None, ["a", "b"], "q")
    results = json.loads(cohere_answer("m", RERANKER, wanted, output([1e17, 1e18])))["results"]
    assert [one["index"] for one in results] == [1, 0]
    assert results[0]["relevance_score"] == results[1]["relevance_score"] == 1.0


def test_the_other_form_is_a_list_with_the_models_own_scores_on_demand() -> None:
    made = output([1.0, 3.0])
    assert json.loads(tei_answer("m", RERANKER, Wanted(None, ["a", "b"], "q"), made)) == [
        {"index": 1, "score": 0.75},
        {"index": 0, "score": 0.5},
    ]
    wanted = Wanted(None, ["a", "b"], "q", raw=True, echo=True)
    assert json.loads(tei_answer("m", RERANKER, wanted, made)) == [
        {"index": 1, "score": 3.0, "text": "b"},
        {"index": 0, "score": 1.0, "text": "a"},
    ]


def test_the_other_form_refuses_texts_that_are_too_long_unless_told_to_cut_them() -> None:
    made = output([1.0, 3.0], 1)
    with pytest.raises(InvalidBodyError, match=r"texts\[1\].* more tokens than the 3 that model 'm' reads"):
        tei_answer("m", RERANKER, Wanted(None, ["a", "b"], "q", whole=True), made)
    assert len(json.loads(tei_answer("m", RERANKER, Wanted(None, ["a", "b"], "q"), made))) == 2
