"""From shards' reports to what the caller reads of them: coverage, shortfall, errors. Pure."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import msgspec

from router.query.errors import (
    DeadlineError,
    InvalidError,
    MisconfiguredError,
    Problem,
    RouterError,
    UnavailableError,
)
from router.query.ranked import RankedAnswer
from router.query.redaction import ShardFault, redacted
from router.query.types import (
    Coverage,
    Failure,
    Reason,
    SearchQuery,
    ShardCounts,
    ShardReport,
    ShardState,
    Shortfall,
)

__all__ = [
    "as_readable",
    "coverage_of",
    "faults_of",
    "joined",
    "raise_if_stale",
    "raise_if_unanswered",
    "shortfall",
    "with_failures_of",
]


def joined(report: ShardReport, *others: ShardReport, at_once: bool = False) -> ShardReport:
    """One account of several statements that one shard answered for one search.

    It describes the statement of `report`, or the first that failed. Attempts and times are those of all
    together, but for the total of statements that ran at once, which is the longest. The shard's rows are
    stale, or asked for twice, if those of one statement are, and as new as the oldest. `plan` has the plans
    of all.
    """
    every = (report, *others)
    again = {one.again for one in every}
    # `report` is that of the last statement.
    plans = [one.plan for one in (*others, report) if one.plan is not None]
    totals = [one.total_ms for one in every]
    return msgspec.structs.replace(
        next((one for one in every if one.state is not ShardState.OK), report),
        attempts=sum([one.attempts for one in every]),
        hedged=any([one.hedged for one in every]),
        hedge=next((one.hedge for one in every if one.hedge is not None), None),
        stale=any([one.stale for one in every]),
        lost=any([one.lost for one in every]),
        lsn=min([one.lsn for one in every]),
        queue_ms=sum([one.queue_ms for one in every]),
        execute_ms=sum([one.execute_ms for one in every]),
        total_ms=max(totals) if at_once else sum(totals),
        again="short" if "short" in again else "ties" if "ties" in again else None,
        plan="\n\n".join(plans) or None,
    )


def coverage_of(reports: Sequence[ShardReport], total: int) -> Coverage:
    """Which of `total` shards the answer rests on; those without a report were not needed."""
    missing = [report for report in reports if report.state is not ShardState.OK]
    timed_out = sum([report.state is ShardState.TIMED_OUT for report in missing])
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
            [Failure(one.shard, one.state, one.error or "unknown error", _cause(one)) for one in missing]
        ),
        stale=tuple([report.shard for report in reports if report.stale]),
        lost=tuple([report.shard for report in reports if report.lost]),
    )


def _cause(report: ShardReport) -> str:
    return report.cause or ("timeout" if report.state is ShardState.TIMED_OUT else "unavailable")


def as_readable(reports: Mapping[str, ShardReport], having: Container[str]) -> dict[str, ShardReport]:
    """`reports` before columns are read from the shards that rows are of.

    A search of several lists may have rows of a shard that failed in another list, and will answer here.
    """
    return {
        shard: report
        if report.state is ShardState.OK or shard not in having
        else msgspec.structs.replace(report, state=ShardState.OK, error=None, cause=None, fault=None)
        for shard, report in reports.items()
    }


def with_failures_of(
    before: Mapping[str, ShardReport], reports: Mapping[str, ShardReport]
) -> dict[str, ShardReport]:
    """`reports` after columns were read, with the failures that `before` had already."""
    return {
        shard: report
        if before[shard].state is ShardState.OK or report.state is not ShardState.OK
        else msgspec.structs.replace(
            report,
            state=before[shard].state,
            error=before[shard].error,
            cause=before[shard].cause,
            fault=before[shard].fault,
        )
        for shard, report in reports.items()
    }


def faults_of(coverage: Coverage) -> list[ShardFault]:
    """What the log says of the shards that are missing."""
    return [ShardFault.of(one.shard, one.state, one.cause, one.error) for one in coverage.failures]


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
    error = _unanswered(coverage, reports, allow_partial=allow_partial)
    outside = [
        Problem(f"shards.{one.shard}", f"{one.state}: {redacted(one.cause, one.error)}")
        for one in coverage.failures
    ]
    raise error.hidden(problems=outside, faults=faults_of(coverage))


def _unanswered(coverage: Coverage, reports: Sequence[ShardReport], *, allow_partial: bool) -> RouterError:
    problems = [Problem(f"shards.{one.shard}", f"{one.state}: {one.error}") for one in coverage.failures]
    counts = coverage.shards
    what = f"{counts.ok} of {counts.queried} shards answered"
    if not counts.failed:
        return DeadlineError(f"{what} in time", problems)
    faults = [report.fault for report in reports if report.state is not ShardState.OK]
    # Any shard that comes back would do, or all must.
    if all(faults) if allow_partial else any(faults):
        return (MisconfiguredError if "server" in faults else InvalidError)(what, problems)
    return UnavailableError(what, problems)


def raise_if_stale(reports: Sequence[ShardReport], so: str) -> None:
    """
    Raises:
        UnavailableError: some of what is there may be missing; `so` says what may come of that.
    """
    stale = [report for report in reports if report.stale]
    if stale:
        rest = "may be behind, and no node that is well is fresher"
        problems = [Problem(f"shards.{one.shard}", f"stale: {one.node} {rest}") for one in stale]
        outside = [Problem(f"shards.{one.shard}", f"stale: its node {rest}") for one in stale]
        what = f"{len(stale)} of {len(reports)} shards could be read only as they were"
        error = UnavailableError(f"{what}; {so}", problems)
        faults = [ShardFault.of(one.shard, "stale", "stale", f"{one.node} {rest}") for one in stale]
        raise error.hidden(problems=outside, faults=faults)


def shortfall(query: SearchQuery, returned: int, ranked: RankedAnswer) -> Shortfall | None:
    """Why there are fewer than k hits, or groups, the gravest reason first; None if there are k."""
    if ranked.account is not None and ranked.account.groups is not None:
        returned = sum([group.hits > 0 for group in ranked.account.groups])
    if returned >= query.k:
        return None
    reason: Reason = "exhausted"
    if ranked.limited == "legs":
        reason = "legs"
    elif ranked.wordless:
        reason = "no_words"
    elif not ranked.coverage.full:
        reason = "coverage"
    elif any(one.reason == "scan_limit" for one in ranked.unsettled):
        reason = "scan_limit"
    elif ranked.limited is not None:
        reason = ranked.limited
    elif ranked.too_far:
        reason = "max_distance"
    return Shortfall(query.k, returned, reason)
