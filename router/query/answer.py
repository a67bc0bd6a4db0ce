"""From shards' rows and reports to what the caller reads: hits, coverage, shortfall, errors. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from router.query.errors import DeadlineError, Problem, UnavailableError
from router.query.types import (
    Coverage,
    Failure,
    Row,
    SearchQuery,
    ShardCounts,
    ShardReport,
    ShardState,
    Shortfall,
)
from router.query.wire import from_wire
from shard_config.model import Collection
from shard_config.values import json_form

__all__ = ["coverage_of", "encode_hits", "field_values", "json_forms", "raise_if_unanswered", "shortfall"]

_encoder = msgspec.json.Encoder(decimal_format="number")


def encode_hits(
    kept: Sequence[tuple[Row, str]], collection: Collection, columns: Sequence[tuple[str, str]]
) -> msgspec.Raw:
    """The hits as a JSON array; a row is (id, distance, *columns)."""
    names = [name for name, _ in columns]
    forms = json_forms(collection, names)
    hits = []
    for row, shard in kept:
        hit: dict[str, Any] = {"id": row[0], "distance": row[1], "shard": shard}
        if names:
            hit.update(field_values(collection, names, forms, row, first=2))
        hits.append(hit)
    _name_infinities(hits)
    return msgspec.Raw(_encoder.encode(hits))


def _name_infinities(hits: Sequence[dict[str, Any]]) -> None:
    """Give infinite distances, which JSON has no number for, the names that such values have.

    Vectors that the router stored have none; others' may be so long that float32 overflows. They stand at
    the ends, since hits are ordered by distance.
    """
    for ordered in (hits, reversed(hits)):
        for hit in ordered:
            if isinstance(hit["distance"], str) or math.isfinite(hit["distance"]):
                break
            hit["distance"] = "Infinity" if hit["distance"] > 0 else "-Infinity"


def json_forms(collection: Collection, names: Sequence[str]) -> dict[str, Callable[[object], object]]:
    """What `field_values` needs to write the values of columns that JSON does not have as they are."""
    columns = [collection.columns[name] for name in names if name in collection.columns]
    return {column.name: form for column in columns if (form := json_form(column.type)) is not None}


def field_values(
    collection: Collection,
    names: Sequence[str],
    forms: Mapping[str, Callable[[object], object]],
    row: Row,
    first: int,
) -> dict[str, Any]:
    """Columns of a row, from position `first` on, by name and as JSON will hold them."""
    values: dict[str, Any] = {}
    for position, name in enumerate(names, first):
        value = row[position]
        if value is not None and name == "metadata":
            # PostgreSQL's own text of the document: decoding it only to encode it again is waste.
            value = msgspec.Raw(value.encode())
        elif value is not None and name == "vector":
            value = from_wire(value, collection.vector.type)
        elif value is not None and name in forms:
            value = forms[name](value)
        values[name] = value
    return values


def coverage_of(reports: Sequence[ShardReport], total: int) -> Coverage:
    """Which of `total` shards the answer rests on; those without a report were not needed."""
    missing = [report for report in reports if report.state is not ShardState.OK]
    timed_out = sum(report.state is ShardState.TIMED_OUT for report in missing)
    return Coverage(
        full=not missing,
        shards=ShardCounts(
            total=total,
            queried=len(reports),
            ok=len(reports) - len(missing),
            skipped=total - len(reports),
            timed_out=timed_out,
            failed=len(missing) - timed_out,
        ),
        failures=tuple(
            Failure(report.shard, report.state, report.error or "unknown error") for report in missing
        ),
        stale=tuple(report.shard for report in reports if report.stale),
    )


def raise_if_unanswered(coverage: Coverage, reports: Sequence[ShardReport], *, allow_partial: bool) -> None:
    """
    Raises:
        DeadlineError: what is missing had no time left.
        UnavailableError: what is missing failed.
    """
    if coverage.full or (allow_partial and coverage.shards.ok):
        return
    problems = [
        Problem(f"shards.{failure.shard}", f"{failure.state}: {failure.error}")
        for failure in coverage.failures
    ]
    counts = coverage.shards
    what = f"{counts.ok} of {counts.queried} shards answered"
    if not counts.failed:
        raise DeadlineError(f"{what} in time", problems)
    raise UnavailableError(what, problems)


def shortfall(
    query: SearchQuery, returned: int, coverage: Coverage, *, scan_limited: bool, too_far: bool
) -> Shortfall | None:
    """Why there are fewer than k hits, the gravest reason first; None if there are k.

    `too_far`: there were more rows, which lie beyond the query's `max_distance`.
    """
    if returned >= query.k:
        return None
    reason: Literal["exhausted", "max_distance", "scan_limit", "coverage"] = "exhausted"
    if not coverage.full:
        reason = "coverage"
    elif scan_limited:
        reason = "scan_limit"
    elif too_far:
        reason = "max_distance"
    return Shortfall(query.k, returned, reason)
