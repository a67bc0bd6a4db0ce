"""A decoded search body becomes a checked query, or one error that names all that is wrong with it."""

from __future__ import annotations

from collections.abc import Hashable

from msgspec import UNSET

from router.decode import vectors
from router.decode.bodies import MAX_TEXT, SearchBody
from router.query import filter as filters
from router.query.errors import InvalidError, Problem, invalid
from router.query.filter import Filter
from router.query.plan import EF_SEARCH_MAX
from router.query.types import Consistency, Room, SearchQuery
from router.settings import Settings
from shard_config.model import Collection

__all__ = ["check_text", "includable", "search_query", "timeout_of"]


def search_query(
    body: SearchBody,
    collection: Collection,
    limits: Settings,
    embedded: bytes | None = None,
    path: str = "",
    caller: Hashable | None = None,
    room: Room | None = None,
) -> SearchQuery:
    """The query that `body` asks for; `embedded` is the vector of its text, `caller` the batch it is of.

    `room` is what the batch's answers may take together.

    Raises:
        InvalidError: with every problem found, each path below `path`.
    """
    problems: list[Problem] = []
    prefix = f"{path}." if path else ""
    if body.k < 1 or body.k > collection.search.max_k:
        problems.append(_bounds(f"{prefix}k", "k", body.k, 1, collection.search.max_k, collection))
    if body.offset < 0 or body.offset > limits.max_offset:
        problems.append(_bounds(f"{prefix}offset", "offset", body.offset, 0, limits.max_offset, collection))
    ef_search = body.ef_search
    if ef_search is not None and not 1 <= ef_search <= EF_SEARCH_MAX:
        problems.append(_bounds(f"{prefix}ef_search", "ef_search", ef_search, 1, EF_SEARCH_MAX, collection))
    if body.timeout_ms is not None:
        _check_timeout(body.timeout_ms, limits, prefix, problems)
    include = frozenset(body.include)
    if include:
        problems.extend(_unknown_fields(body.include, collection, prefix))
    words: str | None = None
    vector = b""
    if body.mode == "fulltext":
        words = _words(body, collection, prefix, problems)
    else:
        vector = _vector(body, embedded, collection, prefix, problems)
    filter_ = _filter(body, collection, limits, prefix, problems)
    if problems:
        raise invalid(problems)
    return SearchQuery(
        collection=collection,
        vector=vector,
        k=body.k,
        offset=body.offset,
        filter=filter_,
        include=include,
        max_distance=body.max_distance,
        ef_search=ef_search,
        exact=body.exact,
        consistency=Consistency.STRONG if body.consistency == "strong" else Consistency.EVENTUAL,
        cache=body.cache,
        allow_partial=body.allow_partial,
        explain=body.explain,
        plan=body.explain_plan,
        caller=caller,
        # Where there is no vector, searches that differ in this alone have the same answer.
        vector_format=body.vector_format if "vector" in include else "float",
        room=room,
        words=words,
    )


def timeout_of(timeout_ms: float | None, collection: Collection) -> float:
    """Seconds that a checked request gets."""
    return collection.search.timeout if timeout_ms is None else timeout_ms / 1000


def includable(collection: Collection) -> list[str]:
    """The names that `include` may hold."""
    names = ["vector", *collection.columns]
    if collection.content is not None:
        names.append("content")
    if collection.metadata is not None:
        names.append("metadata")
    return names


def check_text(body: SearchBody, path: str = "") -> str | None:
    """The text to search by the meaning of, if it is by that.

    Raises:
        InvalidError: both or neither of text and vector, or a text too long.
    """
    if body.text is UNSET:
        if body.vector is UNSET and body.mode == "vector":
            raise InvalidError.at(path, "a search needs a vector or a text")
        return None
    where = f"{path}.text" if path else "text"
    if body.vector is not UNSET:
        raise InvalidError.at(where, "a search takes a vector or a text, not both")
    if len(body.text) > MAX_TEXT:
        raise InvalidError.at(where, f"{len(body.text)} characters exceed {MAX_TEXT}")
    if not body.text.strip():
        raise InvalidError.at(where, "the text is empty")
    return body.text if body.mode == "vector" else None


def _words(body: SearchBody, collection: Collection, prefix: str, problems: list[Problem]) -> str | None:
    if collection.fulltext is None:
        problems.append(Problem(f"{prefix}mode", f"collection {collection.name} has no full text"))
    if body.max_distance is not None:
        problems.append(Problem(f"{prefix}max_distance", "a full-text search has scores, and no distances"))
    if body.ef_search is not None:
        problems.append(Problem(f"{prefix}ef_search", "a full-text search scans no vector index"))
    if body.text is UNSET:
        problems.append(Problem(f"{prefix}text", "required, but missing: a full-text search needs a text"))
        return None
    if "\0" in body.text:
        problems.append(Problem(f"{prefix}text", "holds a NUL character, which no stored text can hold"))
    return body.text


def _vector(
    body: SearchBody, embedded: bytes | None, collection: Collection, prefix: str, problems: list[Problem]
) -> bytes:
    try:
        if embedded is not None:
            path, vector = f"{prefix}text", embedded
        elif body.vector is UNSET:
            raise InvalidError.at(f"{prefix}vector", "required, but missing")
        else:
            path = f"{prefix}vector"
            vector = vectors.parse(body.vector, collection.vector, path)
        if not body.exact:
            vectors.check_indexed(vector, collection, path)
        return vector
    except InvalidError as exc:
        problems.extend(exc.problems)
        return b""


def _filter(
    body: SearchBody, collection: Collection, limits: Settings, prefix: str, problems: list[Problem]
) -> Filter | None:
    if body.filter is None:
        return None
    try:
        return filters.parse(collection, body.filter, limits, f"{prefix}filter")
    except InvalidError as exc:
        problems.extend(exc.problems)
        return None


def _check_timeout(timeout_ms: float, limits: Settings, prefix: str, problems: list[Problem]) -> None:
    most = limits.max_timeout * 1000
    if not 1 <= timeout_ms <= most:
        shown = f"timeout_ms={timeout_ms:g}"
        problems.append(Problem(f"{prefix}timeout_ms", f"{shown} is not between 1 and {most:g}"))


def _unknown_fields(include: list[str], collection: Collection, prefix: str) -> list[Problem]:
    known = includable(collection)
    return [
        Problem(
            f"{prefix}include[{i}]", f"unknown field {name[:80]!r}; {collection.name} has {', '.join(known)}"
        )
        for i, name in enumerate(include)
        if name not in known
    ]


def _bounds(path: str, name: str, value: int, least: int, most: int, collection: Collection) -> Problem:
    shown = f"{name}={value}" if value.bit_length() < 128 else f"{name} of {value.bit_length()} bits"
    if value < least:
        return Problem(path, f"{shown} is below {least}")
    return Problem(path, f"{shown} exceeds {most} for collection {collection.name}")
