"""Outputs of models become bodies of answers, in a model's thread. Pure.

Invariant: every number in an answer is finite, and every vector has length 1. A text of which that cannot be
said is an error that names it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

import numpy as np
import orjson
from numpy.typing import NDArray

from router.model_service.backend import Floats, Output, Reranker
from router.model_service.bodies import Wanted
from router.model_service.errors import InvalidBodyError, ModelFailedError

__all__ = ["cohere_answer", "embeddings_answer", "tei_answer"]

_NUMPY = orjson.OPT_SERIALIZE_NUMPY


def embeddings_answer(model: str, wanted: Wanted, output: Output) -> bytes:
    """OpenAI's form; `truncated` lists the texts that the model did not read to the end, if there are any.

    Raises:
        InvalidBodyError: the model knows nothing of a text, which therefore has no direction.
        ModelFailedError: it made something of a text that is no vector.
    """
    vectors = _unit_vectors(model, output.values, wanted.dimensions)
    if wanted.base64:
        encoded: Iterable[object] = [
            base64.b64encode(row).decode() for row in vectors.astype("<f4", copy=False)
        ]
    else:
        encoded = vectors
    data = [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(encoded)]
    tokens = int(output.tokens.sum())
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = {"object": "list", "data": data, "model": model, "usage": usage, **_truncated(output)}
    return orjson.dumps(answer, option=_NUMPY)


def cohere_answer(model: str, reranker: Reranker, wanted: Wanted, output: Output) -> bytes:
    """The best first, equal ones as they came; `relevance_score` is between 0 and 1.

    Raises:
        ModelFailedError
    """
    order, scores = _ranked(model, wanted, output, reranker.relevance(output.values))
    results = []
    for index, score in zip(order, scores, strict=True):
        result: dict[str, object] = {"index": index, "relevance_score": score}
        if wanted.echo:
            result["document"] = {"text": wanted.texts[index]}
        results.append(result)
    usage = {"total_tokens": int(output.tokens.sum())}
    return orjson.dumps({"model": model, "results": results, "usage": usage, **_truncated(output)})


def tei_answer(model: str, reranker: Reranker, wanted: Wanted, output: Output) -> bytes:
    """As `cohere_answer`, as a list alone.

    Raises:
        InvalidBodyError: a text is longer than the model reads, and `truncate` is not true.
        ModelFailedError
    """
    if wanted.whole and output.truncated.any():
        first = int(np.flatnonzero(output.truncated)[0])
        raise InvalidBodyError(
            f"texts[{first}]: with the query it has more tokens than the {output.tokens[first]} that model "
            f'{model!r} reads; shorten it, or send "truncate": true',
            param="texts",
        )
    values = output.values if wanted.raw else reranker.relevance(output.values)
    results = []
    for index, score in zip(*_ranked(model, wanted, output, values), strict=True):
        result: dict[str, object] = {"index": index, "score": score}
        if wanted.echo:
            result["text"] = wanted.texts[index]
        results.append(result)
    return orjson.dumps(results)


def _ranked(model: str, wanted: Wanted, output: Output, shown: Floats) -> tuple[list[int], list[float]]:
    """Places in order of the model's own scores, which differ where those up to 1 may be equal."""
    broken = ~np.isfinite(output.values)
    if broken.any():
        raise ModelFailedError(f"model {model!r} made no number of text {int(np.flatnonzero(broken)[0])}")
    order = np.argsort(-output.values, kind="stable")[: wanted.most]
    return order.tolist(), shown[order].tolist()


def _unit_vectors(model: str, values: Floats, dimensions: int | None) -> NDArray[np.float32]:
    vectors = np.ascontiguousarray(values, np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if dimensions is not None and dimensions < vectors.shape[1]:
        vectors = np.ascontiguousarray(vectors[:, :dimensions])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    if not np.isfinite(lengths).all():
        first = int(np.flatnonzero(~np.isfinite(lengths))[0])
        raise ModelFailedError(f"model {model!r} made no vector of input[{first}]")
    if not lengths.all():
        first = int(np.flatnonzero(lengths == 0)[0])
        raise InvalidBodyError(
            f"input[{first}]: model {model!r} knows nothing of this text, so it has no vector", param="input"
        )
    return vectors


def _truncated(output: Output) -> dict[str, list[int]]:
    return {"truncated": np.flatnonzero(output.truncated).tolist()} if output.truncated.any() else {}
