"""A decoded search body that has a cursor becomes a checked query for a page of a kept ranking.

The first page is a search like any other, with its ranking kept. A further one says nothing of how to search,
so that it cannot say anything else than the first.
"""

from __future__ import annotations

import msgspec

from router.decode.bodies import SearchBody
from router.decode.queries import _bounds, _check_timeout, _unknown_fields
from router.query import paging
from router.query.errors import Problem, invalid
from router.query.paging import Paging
from router.query.types import Consistency, SearchQuery
from router.settings import Settings
from shard_config.model import Collection

__all__ = ["first_page", "next_page"]

# What a request for a further page may say; all else is its ranking's.
_OF_PAGES = frozenset(
    ["cursor", "k", "include", "vector_format", "timeout_ms", "allow_partial", "consistency", "explain"]
)
_filters = msgspec.json.Encoder(decimal_format="number")


def first_page(query: SearchQuery, body: SearchBody, owner: str, path: str = "") -> SearchQuery:
    """`query`, which `body` asks for, as the first page of a ranking that is kept for `owner`.

    Raises:
        InvalidError
    """
    prefix = f"{path}." if path else ""
    problems: list[Problem] = []
    if query.offset:
        problems.append(Problem(f"{prefix}offset", "a search takes a cursor or an offset, not both"))
    if not query.cache:
        problems.append(Problem(f"{prefix}cache", "with a cursor the ranking has to be kept"))
    if query.composition is not None and query.composition.group_by is not None:
        problems.append(
            Problem(f"{prefix}group_by", "groups have no pages: a search takes a cursor or groups")
        )
    if problems:
        raise invalid(problems)
    filter_ = None if body.filter is None else _filters.encode(body.filter)
    return msgspec.structs.replace(query, paging=Paging(owner, filter=filter_))


def next_page(
    body: SearchBody, collection: Collection, limits: Settings, owner: str, path: str = ""
) -> SearchQuery:
    """The page behind the cursor of `body`, which says nothing of how to search.

    Raises:
        InvalidError: with every problem found, each path below `path`.
    """
    prefix = f"{path}." if path else ""
    problems: list[Problem] = []
    assert body.cursor is not None
    cursor = paging.decode(body.cursor)
    if cursor is None:
        what = "is no cursor; it is `*`, or what the page before has as `cursor`, unchanged"
        problems.append(Problem(f"{prefix}cursor", f"{body.cursor[:80]!r} {what}"))
    others = ", ".join(sorted(_OF_PAGES - {"cursor"}))
    problems += [
        Problem(
            f"{prefix}{field.encode_name}",
            f"a further page is of the search that the first one said; beside the cursor it takes {others}",
        )
        for field in msgspec.structs.fields(SearchBody)
        if field.name not in _OF_PAGES and getattr(body, field.name) != _default(field)
    ]
    if body.k < 1 or body.k > collection.search.max_k:
        problems.append(_bounds(f"{prefix}k", "k", body.k, 1, collection.search.max_k, collection))
    if body.timeout_ms is not None:
        _check_timeout(body.timeout_ms, limits, prefix, problems)
    problems += _unknown_fields(body.include, collection, prefix)
    if problems:
        raise invalid(problems)
    return SearchQuery(
        collection=collection,
        vector=b"",
        k=body.k,
        include=frozenset(body.include),
        consistency=Consistency.STRONG if body.consistency == "strong" else Consistency.EVENTUAL,
        allow_partial=body.allow_partial,
        explain=body.explain,
        vector_format=body.vector_format if "vector" in body.include else "float",
        paging=Paging(owner, cursor),
    )


def _default(field: msgspec.structs.FieldInfo) -> object:
    if field.default_factory is msgspec.NODEFAULT:
        return field.default
    made: object = field.default_factory()
    return made
