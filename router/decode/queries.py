"""A decoded search body becomes a checked query, or one error that names all that is wrong with it."""

from __future__ import annotations

from collections.abc import Hashable

from msgspec import UNSET, UnsetType

from router.decode import vectors
from router.decode.bodies import MAX_TEXT, SearchBody
from router.query import filter as filters
from router.query.errors import InvalidError, Problem, invalid
from router.query.filter import Filter
from router.query.plan import EF_SEARCH_MAX
from router.query.types import Consistency, Room, SearchQuery
from router.settings import Settings
from shard_config.model import Collection

__all__ = [
    "check_text",
    "checked_query",
    "filter_of",
    "includable",
    "search_query",
    "timeout_of",
    "vector_of",
]


def search_query(
    body: SearchBody,
    collection: Collection,
    limits: Settings,
    path: str = "",
    caller: Hashable | None = None,
    room: Room | None = None,
) -> SearchQuery:
    """The query that `body`, a plain search by vector, asks for; `caller` is the batch it is of.

    `room` is what the batch's answers may take together.

    Raises:
        InvalidError: with every problem found, each path below `path`.
    """
    problems: list[Problem] = []
    prefix = f"{path}." if path else ""
    vector = vector_of(body.vector, body.exact, collection, f"{prefix}vector", problems)
    return checked_query(body, collection, limits, vector, prefix, problems, caller, room)


def checked_query(
    body: SearchBody,
    collection: Collection,
    limits: Settings,
    vector: bytes,
    prefix: str,
    problems: list[Problem],
    caller: Hashable | None,
    room: Room | None,
) -> SearchQuery:
    """What any search has, around a `vector` that has been checked; `prefix` goes in front of paths.

    Raises:
        InvalidError: with `problems`, and every other.
    """
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
    filter_ = filter_of(body.filter, collection, limits, f"{prefix}filter", problems)
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


def check_text(text: str, path: str, problems: list[Problem]) -> str:
    """A text to search by."""
    if len(text) > MAX_TEXT:
        problems.append(Problem(path, f"{len(text)} characters exceed {MAX_TEXT}"))
    elif not text.strip():
        problems.append(Problem(path, "the text is empty"))
    return text


def vector_of(
    raw: list[float] | bytes | UnsetType,
    exact: bool,
    collection: Collection,
    path: str,
    problems: list[Problem],
) -> bytes:
    """A checked vector to search by; an empty one where there is a problem with it."""
    try:
        if raw is UNSET:
            raise InvalidError.at(path, "required, but missing")
        vector = vectors.parse(raw, collection.vector, path)
        if not exact:
            vectors.check_indexed(vector, collection, path)
        return vector
    except InvalidError as exc:
        problems.extend(exc.problems)
        return b""


def filter_of(
    raw: dict[str, object] | None,
    collection: Collection,
    limits: Settings,
    path: str,
    problems: list[Problem],
) -> Filter | None:
    if raw is None:
        return None
    try:
        return filters.parse(collection, raw, limits, path)
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
