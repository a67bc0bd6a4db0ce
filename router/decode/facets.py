"""The body of a request for facets becomes what is to be counted, or an error that names every fault."""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from router.decode.bodies import MAX_FACET_FIELDS, FacetsBody
from router.decode.queries import filter_of, timeout_of
from router.query.errors import InvalidError, Problem, invalid
from router.query.facets import FacetField
from router.query.filter import Field, Filter
from router.settings import Settings
from shard_config import metadata_path
from shard_config.model import Collection

__all__ = ["Counting", "counting"]


_LIMIT = 100


class Counting(msgspec.Struct, frozen=True):
    """`timeout` in seconds; `filter` is None for all documents."""

    fields: tuple[FacetField, ...]
    filter: Filter | None
    limit: int
    timeout: float


def counting(body: FacetsBody, collection: Collection, limits: Settings) -> Counting:
    """
    Raises:
        InvalidError: with every problem found.
    """
    problems: list[Problem] = []
    filter_ = filter_of(body.filter, collection, limits, "filter", problems)
    limit = min(_LIMIT, limits.max_facet_values) if body.limit is None else body.limit
    if not 1 <= limit <= limits.max_facet_values:
        shown = f"limit={limit} is not between 1 and {limits.max_facet_values} (--max-facet-values)"
        problems.append(Problem("limit", shown))
    longest = limits.max_timeout * 1000
    if body.timeout_ms is not None and not 1 <= body.timeout_ms <= longest:
        shown = f"timeout_ms={body.timeout_ms:g} is not between 1 and {longest:g}"
        problems.append(Problem("timeout_ms", shown))
    names: dict[str, str] = {}
    if (body.field is UNSET) == (body.fields is UNSET):
        problems.append(Problem("", "facets take a field or several fields, one of the two"))
    elif body.field is not UNSET:
        names = {"field": body.field}
    elif body.fields is not UNSET:
        if not 1 <= len(body.fields) <= MAX_FACET_FIELDS:
            message = f"{len(body.fields)} fields are not between 1 and {MAX_FACET_FIELDS}"
            problems.append(Problem("fields", message))
        else:
            names = {f"fields[{i}]": name for i, name in enumerate(body.fields)}
    fields = []
    for place, name in names.items():
        try:
            fields.append(FacetField(name, _field(name, collection, place)))
        except InvalidError as exc:
            problems.extend(exc.problems)
    if problems:
        raise invalid(problems)
    timeout = min(timeout_of(body.timeout_ms, collection), limits.max_timeout)
    return Counting(tuple(fields), filter_, limit, timeout)


def _field(name: str, collection: Collection, place: str) -> Field:
    column = collection.columns.get(name)
    if column is not None:
        return Field(column)
    if collection.metadata is not None and name.startswith("metadata."):
        try:
            return Field(None, metadata_path.steps(name.removeprefix("metadata.")))
        except ValueError as exc:
            raise InvalidError.at(place, str(exc)) from exc
    known = [*collection.columns, *(["metadata.<path>"] if collection.metadata is not None else [])]
    can = f"what {collection.name} can be counted by is {', '.join(known) or 'nothing'}"
    raise InvalidError.at(place, f"unknown field {name[:80]!r}; {can}")
