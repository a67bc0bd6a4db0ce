"""From shards' rows and reports to what the caller reads: hits, coverage, shortfall, errors. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from router.query.errors import DeadlineError, InvalidError, MisconfiguredError, Problem, UnavailableError
from router.query.types import (
    Coverage,
    Failure,
    Row,
    SearchQuery,
    ShardCounts,
    ShardReport,
    ShardState,
    Shortfall,
    VectorFormat,
)
from router.query.wire import base64_text, number_text
from shard_config.model import Collection
from shard_config.values import json_form

__all__ = [
    "coverage_of",
    "encode_hits",
    "field_values",
    "hit_of",
    "json_forms",
    "pieces_of",
    "raise_if_unanswered",
    "shortfall",
]

Forms: TypeAlias = Mapping[str, Callable[[object], object]]

_encoder = msgspec.json.Encoder(decimal_format="number")
_PIECE = 1 << 18


def encode_hits(
    kept: Sequence[tuple[Row, str]],
    collection: Collection,
    columns: Sequence[tuple[str, str]],
    vector_format: VectorFormat = "float",
) -> bytes:
    """The hits as a JSON array; a row is (id, distance, *columns)."""
    names = [name for name, _ in columns]
    forms = json_forms(collection, names)
    hits = [hit_of(row, shard, collection, names, forms, vector_format) for row, shard in kept]
    return _encoder.encode(hits)


def json_forms(collection: Collection, names: Sequence[str]) -> Forms:
    """What `field_values` needs to write the values of columns that JSON does not have as they are."""
    columns = [collection.columns[name] for name in names if name in collection.columns]
    return {column.name: form for column in columns if (form := json_form(column.type)) is not None}


def hit_of(
    row: Row,
    shard: str,
    collection: Collection,
    names: Sequence[str],
    forms: Forms,
    vector_format: VectorFormat,
) -> dict[str, Any]:
    """A row of (id, distance, *columns) as JSON will hold it.

    JSON has no number for an infinite distance, which then has the name that such values have. Vectors that
    the router stored have none; others' may be so long that float32 overflows.
    """
    distance = row[1]
    if not math.isfinite(distance):
        distance = "Infinity" if distance > 0 else "-Infinity"
    hit: dict[str, Any] = {"id": row[0], "distance": distance, "shard": shard}
    if names:
        hit.update(field_values(collection, names, forms, row, 2, vector_format))
    return hit


def pieces_of(hit: dict[str, Any]) -> Iterator[bytes]:
    """The JSON of one hit or document with megabytes of text or metadata, in pieces of some 256 KiB."""
    written = b"{"
    for i, (name, value) in enumerate(hit.items()):
        written += (b"," if i else b"") + _encoder.encode(name) + b":"
        if isinstance(value, str) and len(value) > _PIECE:
            yield written + b'"'
            for start in range(0, len(value), _PIECE):
                yield _encoder.encode(value[start : start + _PIECE])[1:-1]
            written = b'"'
        elif isinstance(value, msgspec.Raw) and len(value) > _PIECE:
            yield written
            view = memoryview(value)
            for start in range(0, len(view), _PIECE):
                yield bytes(view[start : start + _PIECE])
            written = b""
        else:
            written += _encoder.encode(value)
    yield written + b"}"


def field_values(
    collection: Collection,
    names: Sequence[str],
    forms: Forms,
    row: Row,
    first: int,
    vector_format: VectorFormat = "float",
) -> dict[str, Any]:
    """Columns of a row, from position `first` on, by name and as JSON will hold them."""
    values: dict[str, Any] = {}
    for position, name in enumerate(names, first):
        value = row[position]
        if value is not None and name == "metadata":
            # PostgreSQL's own text of the document: decoding it only to encode it again is waste.
            value = msgspec.Raw(value.encode())
        elif value is not None and name == "vector":
            text = number_text if vector_format == "float" else base64_text
            value = msgspec.Raw(text(value, collection.vector.type))
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
        InvalidError: PostgreSQL refuses a value of the request.
        MisconfiguredError: what is missing will fail again, so that asking again cannot help.
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
    faults = [report.fault for report in reports if report.state is not ShardState.OK]
    # Any shard that comes back would do, or all must.
    if all(faults) if allow_partial else any(faults):
        raise (MisconfiguredError if "server" in faults else InvalidError)(what, problems)
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
