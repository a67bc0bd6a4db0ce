"""A decoded search body that has a cursor becomes a checked query for a page of a kept ranking.

The first page is a search like any other, with its ranking kept. A further one says nothing of how to search,
so that it cannot say anything else than the first.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from router.decode.bodies import SearchBody
from router.decode.queries import checked_query
from router.query import paging
from router.query.errors import Problem, invalid
from router.query.paging import Paging
from router.query.types import SearchQuery
from router.settings import Settings
from shard_config.model import Collection

__all__ = ["check_first_page", "first_page", "next_page"]

# What a request for a further page may say; all else is its ranking's.
_OF_PAGES = frozenset(
    ["cursor", "k", "include", "vector_format", "timeout_ms", "allow_partial", "consistency", "explain"]
)
_filters = msgspec.json.Encoder(decimal_format="number")


def check_first_page(body: SearchBody) -> None:
    """Whether the ranking of a search can be kept for further pages.

    Raises:
        InvalidError: with every reason why not.
    """
    problems: list[Problem] = []
    if body.offset:
        problems.append(Problem("offset", "a search takes a cursor or an offset, not both"))
    if not body.cache:
        problems.append(Problem("cache", "with a cursor the ranking has to be kept"))
    if body.group_by is not UNSET:
        problems.append(Problem("group_by", "groups have no pages: a search takes a cursor or groups"))
    if problems:
        raise invalid(problems)


def first_page(query: SearchQuery, body: SearchBody, owner: str) -> SearchQuery:
    """`query`, which `body` asks for, as the first page of a ranking that is kept for `owner`."""
    filter_ = None if body.filter is None else _filters.encode(body.filter)
    return msgspec.structs.replace(query, paging=Paging(owner, filter=filter_))


def next_page(body: SearchBody, collection: Collection, limits: Settings, owner: str) -> SearchQuery:
    """The page behind the cursor of `body`, which says nothing of how to search.

    Raises:
        InvalidError: with every problem found.
    """
    assert body.cursor is not None
    problems: list[Problem] = []
    cursor = paging.decode(body.cursor)
    if cursor is None:
        what = "is no cursor; it is `*`, or what the page before has as `cursor`, unchanged"
        problems.append(Problem("cursor", f"{body.cursor[:80]!r} {what}"))
    others = ", ".join(sorted(_OF_PAGES - {"cursor"}))
    problems += [
        Problem(
            field.encode_name,
            f"a further page is of the search that the first one said; beside the cursor it takes {others}",
        )
        for field in msgspec.structs.fields(SearchBody)
        if field.name not in _OF_PAGES and getattr(body, field.name) != _default(field)
    ]
    query = checked_query(body, collection, limits, b"", "", problems, None, None)
    return msgspec.structs.replace(query, paging=Paging(owner, cursor))


def _default(field: msgspec.structs.FieldInfo) -> object:
    if field.default_factory is msgspec.NODEFAULT:
        return field.default
    made: object = field.default_factory()
    return made
