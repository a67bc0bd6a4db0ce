"""What paths, query strings and lists of ids say of documents, checked against the collection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, get_args

from router.decode.body import decode_object
from router.decode.document import checked
from router.decode.queries import includable
from router.http.message import Request
from router.query import filter as filters
from router.query.errors import InvalidError, NotFoundError, Problem, invalid
from router.query.filter import Filter
from router.query.types import VectorFormat
from router.settings import Settings
from shard_config.model import Collection
from shard_config.values import from_text

__all__ = [
    "check_filter",
    "checked_ids",
    "included",
    "included_names",
    "no_document",
    "path_id",
    "query_filter",
    "vector_format",
]


def path_id(request: Request, collection: Collection) -> object:
    try:
        return from_text(collection.id.type, request.params["id"])
    except ValueError as exc:
        raise InvalidError.at("id", str(exc)) from exc


def vector_format(request: Request) -> VectorFormat:
    value = request.query.get("vector_format", "float")
    for known in get_args(VectorFormat):
        if value == known:
            return cast(VectorFormat, value)
    expected = ", ".join(get_args(VectorFormat))
    raise InvalidError.at("vector_format", f"expected one of {expected}, got {value[:80]!r}")


def included(names: str | None, collection: Collection) -> frozenset[str]:
    """What to read: the names listed, or all but the vector, which is long."""
    return included_names(None if names is None else [name for name in names.split(",") if name], collection)


def included_names(names: Sequence[str] | None, collection: Collection) -> frozenset[str]:
    """The same of names that have been told apart."""
    known = includable(collection)
    if names is None:
        return frozenset(known) - {"vector"}
    unknown = [name for name in names if name not in known]
    if unknown:
        shown = f"unknown field {unknown[0][:80]!r}; {collection.name} has {', '.join(known)}"
        raise InvalidError.at("include", shown)
    return frozenset(names)


def checked_ids(raw: list[object], collection: Collection, most: int) -> list[object]:
    """The ids, each once, in their order.

    Raises:
        InvalidError: with every one that is of the wrong type.
    """
    if len(raw) > most:
        raise InvalidError.at("ids", f"{len(raw)} ids exceed {most} per request")
    ids: dict[object, None] = {}
    problems: list[Problem] = []
    for i, value in enumerate(raw):
        try:
            ids[checked(collection.id, value, f"ids[{i}]")] = None
        except InvalidError as exc:
            problems.extend(exc.problems)
    if problems:
        raise invalid(problems)
    return list(ids)


def query_filter(request: Request) -> dict[str, object] | None:
    """The filter of the query string, not checked yet."""
    raw = request.query.get("filter")
    return None if raw is None else decode_object(raw.encode(), "filter", exact=True)


def check_filter(tree: dict[str, object], collection: Collection, settings: Settings) -> Filter:
    """A filter that says which documents are to be changed, which are never all of them.

    Raises:
        InvalidError
    """
    filter_ = filters.parse(collection, tree, settings)
    if filters.constant(filter_) is True:
        message = "it matches every document, whatever they hold; that is refused"
        raise InvalidError.at("filter", message)
    return filter_


def no_document(request: Request, collection: Collection) -> NotFoundError:
    shown = request.params["id"]
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return NotFoundError(f"no document {shown!r} in collection {collection.name}")
