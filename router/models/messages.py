"""What is said to services and how their answers are read. Pure.

The forms are those of OpenAI's `POST /embeddings` (https://platform.openai.com/docs/api-reference/embeddings)
and of Cohere's and TEI's `POST /rerank`.

Invariant: an answer is taken whole or not at all. Of as many vectors or scores as there were texts, each has
its own place, the length that the map says and finite numbers. Whatever else comes is an error: a vector at
the wrong place or of another model would find the wrong documents, and nobody would see it.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Sequence
from typing import TypeVar

import msgspec
import numpy as np

from shard_config.model import EmbeddingService, RerankingApi, RerankingService

__all__ = [
    "AnswerError",
    "DimensionsError",
    "embedding_request",
    "is_usual",
    "is_vector",
    "read_embeddings",
    "read_scores",
    "rerank_request",
    "words_of_refusal",
]

T = TypeVar("T")

_FLOAT_BYTES = 4
_SHORTEST, _LONGEST = 1e-9, 1e9  # far from where float32 underflows or overflows in squares
_MOST_WORDS = 300  # of a service's refusal


class AnswerError(Exception):
    """The answer is not one, or not one to this request; the message says why."""


class DimensionsError(Exception):
    """The service is another one than the map describes, and will be."""


class _Vector(msgspec.Struct, frozen=True):
    embedding: list[float] | str
    index: int | None = None


class _Vectors(msgspec.Struct, frozen=True):
    data: list[_Vector]


class _Score(msgspec.Struct, frozen=True):
    index: int
    relevance_score: float


class _Scores(msgspec.Struct, frozen=True):
    results: list[_Score]


class _TeiScore(msgspec.Struct, frozen=True):
    index: int
    score: float


_encoder = msgspec.json.Encoder()
_vectors = msgspec.json.Decoder(_Vectors)
_scores = msgspec.json.Decoder(_Scores)
_tei_scores = msgspec.json.Decoder(list[_TeiScore])


def embedding_request(service: EmbeddingService, texts: Sequence[str], *, base64: bool) -> bytes:
    """The body for these texts; `base64` asks for vectors in the form that is read a hundred times faster."""
    body: dict[str, object] = {"model": service.model, "input": texts}
    if base64:
        body["encoding_format"] = "base64"
    if service.send_dimensions:
        body["dimensions"] = service.dimensions
    return _encoder.encode(body)


def read_embeddings(data: bytes, service: EmbeddingService, count: int) -> list[bytes]:
    """The vectors of `count` texts in their order, as little-endian float32.

    Raises:
        AnswerError
        DimensionsError: the vectors have another length than the map says.
    """
    try:
        items = _vectors.decode(data).data
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise AnswerError(f"its answer is no list of embeddings: {exc}") from exc
    if len(items) != count:
        raise AnswerError(f"it answered {len(items)} vectors to {count} texts")
    vectors = [_vector(item.embedding, service.dimensions) for item in items]
    if all(item.index is None for item in items):
        return vectors
    return _in_order([item.index for item in items], vectors)


def is_vector(data: bytes, dimensions: int) -> bool:
    """Whether `data` are so many finite numbers in little-endian float32."""
    if len(data) != dimensions * _FLOAT_BYTES:
        return False
    return bool(np.isfinite(np.frombuffer(data, dtype="<f4")).all())


def is_usual(data: bytes) -> bool:
    """Whether a vector has a direction and a length that every metric takes.

    What has none comes of a service that is out of order, and must not be remembered beyond that.
    """
    length = float(np.linalg.norm(np.frombuffer(data, dtype="<f4").astype(np.float64)))
    return _SHORTEST <= length <= _LONGEST


def rerank_request(service: RerankingService, query: str, texts: Sequence[str]) -> bytes:
    """The body that asks for the scores of all `texts`."""
    if service.api is RerankingApi.TEI:
        return _encoder.encode({"query": query, "texts": texts, "truncate": True})
    body = {"model": service.model, "query": query, "documents": texts, "top_n": len(texts)}
    return _encoder.encode(body)


def read_scores(data: bytes, service: RerankingService, count: int) -> list[float]:
    """The scores of `count` texts in their order.

    Raises:
        AnswerError
    """
    try:
        if service.api is RerankingApi.TEI:
            found = [(one.index, one.score) for one in _tei_scores.decode(data)]
        else:
            found = [(one.index, one.relevance_score) for one in _scores.decode(data).results]
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise AnswerError(f"its answer is no list of scores: {exc}") from exc
    if len(found) != count:
        raise AnswerError(f"it answered {len(found)} scores to {count} texts")
    if not all(math.isfinite(score) for _, score in found):
        raise AnswerError("a score is no finite number")
    return _in_order([index for index, _ in found], [score for _, score in found])


def words_of_refusal(data: bytes, secret: str | None = None) -> str:
    """What a service says of why it refuses, in a line without `secret`; empty if it says nothing to show."""
    try:
        said = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""
    for key in ("error", "message", "detail"):
        if isinstance(said, dict) and key in said:
            said = said[key]
    if not isinstance(said, str):
        return ""
    if secret:
        said = said.replace(secret, "***")  # before it is cut, which might leave some of it
    line = " ".join("".join(c if c.isprintable() else " " for c in said[: 4 * _MOST_WORDS]).split())
    return line if len(line) <= _MOST_WORDS else f"{line[: _MOST_WORDS - 3]}..."


def _vector(embedding: list[float] | str, dimensions: int) -> bytes:
    if isinstance(embedding, str):
        try:
            data = binascii.a2b_base64(embedding, strict_mode=True)
        except ValueError as exc:
            raise AnswerError("a vector is no base64") from exc
        if len(data) % _FLOAT_BYTES:
            raise AnswerError(f"a vector of {len(data)} bytes is none of float32")
    else:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is found below
            data = np.array(embedding, dtype="<f4").tobytes()
    found = len(data) // _FLOAT_BYTES
    if found != dimensions:
        raise DimensionsError(f"its vectors have {found} dimensions, and the map says {dimensions}")
    if not is_vector(data, dimensions):
        raise AnswerError("a vector holds what is no finite number")
    return data


def _in_order(indexes: Sequence[int | None], values: Sequence[T]) -> list[T]:
    placed = {index: value for index, value in zip(indexes, values, strict=True) if index is not None}
    if len(placed) != len(values) or not all(i in placed for i in range(len(values))):
        raise AnswerError("the places of its answers are not those of the texts")
    return [placed[i] for i in range(len(values))]
