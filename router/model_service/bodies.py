"""Bodies of requests become what is to be computed. Pure.

Invariant: nothing of a body is passed over. What this service has no use for is refused by its name, but for
OpenAI's `user`, which changes no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import msgspec

from router.decode.body import Decoder
from router.model_service.errors import InvalidBodyError, MalformedBodyError
from router.model_service.limits import Limits
from router.query.errors import InvalidError, MalformedError

__all__ = [
    "EmbeddingsBody",
    "RerankBody",
    "TeiRerankBody",
    "Wanted",
    "read_embeddings",
    "read_rerank",
    "read_tei",
]

# Of a message that tells of many faults.
_MOST_FAULTS = 10


class EmbeddingsBody(msgspec.Struct, forbid_unknown_fields=True):
    """OpenAI's form."""

    input: str | list[object]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class RerankBody(msgspec.Struct, forbid_unknown_fields=True):
    """Cohere's and Jina's form."""

    query: str
    documents: list[object]
    model: str | None = None
    top_n: int | None = None
    return_documents: bool = False


class TeiRerankBody(msgspec.Struct, forbid_unknown_fields=True):
    """The form of Text Embeddings Inference; `model` is ours."""

    query: str
    texts: list[object]
    model: str | None = None
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool = False


class Wanted(msgspec.Struct, frozen=True):
    """What a body asks of a model; the first two fields hold for every kind.

    Attributes:
        model: its name; None for the only one.
        texts: those to embed, or to rank.
        query: what they are ranked for.
        dimensions: of the vectors; None for the model's own.
        base64: whether vectors are base64 of little-endian float32.
        most: results at most; None for all.
        echo: whether results hold their texts.
        raw: whether scores are the model's own instead of between 0 and 1.
        whole: whether a text that the model would not read to its end is an error.
    """

    model: str | None
    texts: Sequence[str]
    query: str = ""
    dimensions: int | None = None
    base64: bool = False
    most: int | None = None
    echo: bool = False
    raw: bool = False
    whole: bool = False


_B = TypeVar("_B", bound=msgspec.Struct)

_embeddings = Decoder(EmbeddingsBody)
_rerank = Decoder(RerankBody)
_tei = Decoder(TeiRerankBody)


def read_embeddings(data: bytes, limits: Limits) -> Wanted:
    """
    Raises:
        MalformedBodyError, InvalidBodyError
    """
    body = _decoded(_embeddings, data)
    given = [body.input] if isinstance(body.input, str) else body.input
    place = "input" if isinstance(body.input, str) else "input[{}]"
    texts = _texts(given, "input", place, limits, empty=False)
    if body.dimensions is not None and body.dimensions < 1:
        raise InvalidBodyError(f"dimensions: expected 1 or more, got {body.dimensions}", param="dimensions")
    return Wanted(body.model, texts, dimensions=body.dimensions, base64=body.encoding_format == "base64")


def read_rerank(data: bytes, limits: Limits) -> Wanted:
    """
    Raises:
        MalformedBodyError, InvalidBodyError
    """
    body = _decoded(_rerank, data)
    _check_query(body.query, limits)
    given = [_text_of(one, f"documents[{place}]") for place, one in enumerate(body.documents)]
    texts = _texts(given, "documents", "documents[{}]", limits, empty=True)
    if body.top_n is not None and body.top_n < 1:
        raise InvalidBodyError(f"top_n: expected 1 or more, got {body.top_n}", param="top_n")
    return Wanted(body.model, texts, body.query, most=body.top_n, echo=body.return_documents)


def read_tei(data: bytes, limits: Limits) -> Wanted:
    """
    Raises:
        MalformedBodyError, InvalidBodyError
    """
    body = _decoded(_tei, data)
    _check_query(body.query, limits)
    texts = _texts(body.texts, "texts", "texts[{}]", limits, empty=True)
    whole = not body.truncate
    return Wanted(body.model, texts, body.query, echo=body.return_text, raw=body.raw_scores, whole=whole)


def _decoded(decoder: Decoder[_B], data: bytes) -> _B:
    try:
        return decoder.decode(data)
    except MalformedError as exc:
        raise MalformedBodyError(exc.detail) from exc
    except InvalidError as exc:
        faults = [f"{one.path}: {one.message}" if one.path else one.message for one in exc.problems]
        param = exc.problems[0].path if exc.problems else ""
        told = "; ".join(faults[:_MOST_FAULTS]) or exc.detail
        raise InvalidBodyError(told, param=param or None) from exc


def _texts(given: Sequence[object], param: str, place: str, limits: Limits, *, empty: bool) -> list[str]:
    """`given` as texts; `place` says where one stands, `empty` whether one may be empty."""
    if not given:
        raise InvalidBodyError(f"{param}: there is no text in it", param=param)
    if len(given) > limits.max_texts:
        raise InvalidBodyError(
            f"{param}: {len(given)} texts exceed {limits.max_texts} for one request", param=param
        )
    texts: list[str] = []
    for index, one in enumerate(given):
        if isinstance(one, int | list) and not isinstance(one, bool):
            raise InvalidBodyError(
                f"{place.format(index)}: token ids are not taken, for they differ from model to model; "
                "send the text",
                param=param,
            )
        if not isinstance(one, str):
            got = _KINDS.get(type(one), "an object")
            raise InvalidBodyError(f"{place.format(index)}: expected a text, got {got}", param=param)
        if not one and not empty:
            raise InvalidBodyError(f"{place.format(index)}: the text is empty", param=param)
        if len(one) > limits.max_text_chars:
            raise InvalidBodyError(
                f"{place.format(index)}: {len(one)} characters exceed {limits.max_text_chars}", param=param
            )
        texts.append(one)
    return texts


_KINDS: dict[type, str] = {type(None): "null", bool: "a boolean", float: "a number", int: "a number"}


def _text_of(document: object, place: str) -> object:
    """The text of a document, which is that text or `{"text": it}`."""
    if not isinstance(document, dict):
        return document
    if document.keys() != {"text"}:
        names = ", ".join(sorted(document)[:_MOST_FAULTS]) or "nothing"
        raise InvalidBodyError(
            f'{place}: expected a text or {{"text": …}} alone, got an object with {names}', param="documents"
        )
    return document["text"]


def _check_query(query: str, limits: Limits) -> None:
    if not query:
        raise InvalidBodyError("query: the text is empty", param="query")
    if len(query) > limits.max_text_chars:
        raise InvalidBodyError(
            f"query: {len(query)} characters exceed {limits.max_text_chars}", param="query"
        )
