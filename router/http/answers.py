"""The bodies that replies carry, but for those about documents; OpenAPI is generated from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from router.http.backend import NodeStatus, ServiceStatus
from router.http.problems import ProblemBody
from router.http.texts import EmbeddingView
from router.query.composition import Account, LegAccount, StepAccount
from router.query.redaction import redacted
from router.query.types import (
    CacheTier,
    Coverage,
    Failure,
    Found,
    Page,
    Reason,
    ShardCounts,
    ShardReport,
    Shortfall,
    Unsettled,
)
from router.query.way import rounded
from router.schema.findings import Finding, Severity

__all__ = [
    "BatchAnswer",
    "BatchError",
    "CollectionList",
    "CollectionView",
    "CoverageView",
    "DisagreementView",
    "Explanation",
    "GroupView",
    "Health",
    "Hit",
    "Live",
    "Location",
    "NodeFault",
    "NodeList",
    "PageView",
    "Ready",
    "RecallView",
    "SchemaView",
    "SearchAnswer",
    "coverage_view",
    "node_faults",
    "schema_view",
    "search_answer",
]

# A thousand shards may all lack the same table.
_MOST_FINDINGS = 100


class Hit(msgspec.Struct):
    """A found document; what was asked for by `include` stands beside these.

    It has a `distance` if it was found by a vector, a `score` if by words or in several ranked lists.
    """

    id: Any
    shard: str
    distance: float | UnsetType = UNSET
    score: float | UnsetType = UNSET
    ranks: dict[str, int] | UnsetType = UNSET
    distances: dict[str, float] | UnsetType = UNSET
    scores: dict[str, float] | UnsetType = UNSET
    rerank_score: float | UnsetType | None = UNSET
    group: Any | UnsetType = UNSET


class CoverageView(msgspec.Struct, frozen=True):
    """Which shards the answer rests on.

    `stale` is there only if a shard lags behind our writes, and `lost` only if one has lost writes that were
    acknowledged.
    """

    full: bool
    shards: ShardCounts
    failures: tuple[Failure, ...]
    stale: tuple[str, ...] | UnsetType = UNSET
    lost: tuple[str, ...] | UnsetType = UNSET


class NodeFault(msgspec.Struct, frozen=True):
    """A node that is not as it should be, for those who may not see the inside of the cluster."""

    shard: str
    role: str | None
    state: str
    cause: str | None
    since: float


class Explanation(msgspec.Struct, frozen=True):
    """What happened on each shard; nothing, if the answer came from a cache.

    `faults` are of the nodes of these shards that are not up; `nodes`, for the scope `admin`, says more.
    """

    shards: tuple[ShardReport, ...]
    faults: tuple[NodeFault, ...]
    nodes: tuple[NodeStatus, ...] | UnsetType = UNSET


class GroupView(msgspec.Struct, frozen=True):
    """A group of hits that share a value."""

    value: Annotated[msgspec.Raw, Meta(extra_json_schema={})]
    hits: int
    full: bool


class PageView(msgspec.Struct, frozen=True):
    """The place of the hits in their ranking; `kept` is there while it is kept, `ended` on its last page."""

    position: int
    ranked: int
    gone: int
    kept: Literal["l1", "l2"] | UnsetType = UNSET
    ended: Reason | UnsetType = UNSET


class SearchAnswer(msgspec.Struct, frozen=True):
    """Hits, the best first, and how complete they are.

    `short` is there only when fewer than k hits came back, and says why. `unsettled` is there only if shards
    that were to be asked again did not answer in time, and names them. `embedding` is there where a text was
    turned into a vector, `cursor` and `page` where the search has a cursor.
    """

    hits: Annotated[
        msgspec.Raw,
        Meta(extra_json_schema={"type": "array", "items": {"$ref": "#/components/schemas/Hit"}}),
    ]
    took_ms: float
    cache: CacheTier
    coverage: CoverageView
    map_version: int
    short: Shortfall | UnsetType = UNSET
    unsettled: tuple[Unsettled, ...] | UnsetType = UNSET
    explain: Explanation | UnsetType = UNSET
    legs: tuple[LegAccount, ...] | UnsetType = UNSET
    rerank: StepAccount | UnsetType = UNSET
    diversity: StepAccount | UnsetType = UNSET
    groups: tuple[GroupView, ...] | UnsetType = UNSET
    embedding: EmbeddingView | UnsetType = UNSET
    cursor: str | UnsetType | None = UNSET
    page: PageView | UnsetType = UNSET


class BatchError(msgspec.Struct, frozen=True):
    """A search of the batch that failed, with the problem that it alone would have been answered with."""

    error: ProblemBody


class BatchAnswer(msgspec.Struct, frozen=True):
    """The answers in the order of the searches."""

    results: list[
        Annotated[
            msgspec.Raw,
            Meta(
                extra_json_schema={
                    "anyOf": [
                        {"$ref": "#/components/schemas/SearchAnswer"},
                        {"$ref": "#/components/schemas/BatchError"},
                    ]
                }
            ),
        ]
    ]


class RecallView(msgspec.Struct, frozen=True):
    """Mean recall of the last `samples` real searches that this worker repeated exactly."""

    at_k: float
    samples: int


class CollectionView(msgspec.Struct, frozen=True):
    """A collection as the shard map defines it; `recall` is there once some has been measured."""

    name: str
    table: str
    id: dict[str, str]
    vector: dict[str, str | int]
    content: bool
    metadata: bool
    columns: dict[str, str]
    sharding: dict[str, Any]
    index: dict[str, str | int]
    search: dict[str, Any]
    cache: dict[str, float]
    text: bool
    embedder: str | UnsetType = UNSET
    template: str | UnsetType = UNSET
    fulltext: dict[str, Any] | UnsetType = UNSET
    rerankers: list[str] | UnsetType = UNSET
    recall: RecallView | UnsetType = UNSET


class CollectionList(msgspec.Struct, frozen=True):
    collections: list[CollectionView]


class NodeList(msgspec.Struct, frozen=True):
    nodes: list[NodeStatus]


class Location(msgspec.Struct, frozen=True):
    """The shard of one value of the sharding key; `bucket` for hash sharding only."""

    collection: str
    key: Any
    shard: str
    bucket: int | None = None


class Live(msgspec.Struct, frozen=True):
    status: str = "ok"


class Ready(msgspec.Struct, frozen=True):
    """Whether searches can be answered, and, if there are no keys, which shards can be searched for all
    collections they hold; `draining` if the router is about to end."""

    ready: bool
    shards: dict[str, bool] | UnsetType = UNSET
    draining: bool | UnsetType = UNSET


class DisagreementView(msgspec.Struct, frozen=True):
    """One point in which a shard differs from the map; see `shard_config.identity.Disagreement`."""

    shard: str
    kind: Literal["shard", "older", "content", "placement"]
    reason: str | UnsetType = UNSET
    collection: str | None = None


class SchemaView(msgspec.Struct, frozen=True):
    """What is not as the map says on the shards' tables: the gravest findings, and how many there are of each
    severity."""

    error: int
    warning: int
    note: int
    findings: tuple[Finding, ...]


class Health(msgspec.Struct, frozen=True):
    """`ok`: every shard can be searched, every node is up, nothing fails on a shard's tables, the map agrees
    with the shards, and no service for texts is left alone for failing; `degraded`: not all of that;
    `unavailable`: no search has a chance.

    `schema` is what is not as the map says, and there only if something is. `keys`: `outdated` if their file
    has changed to what cannot be used, so that those before are in force. `unidentified` are shards that do
    not say which they are, or what they hold of a collection, so that the map cannot be compared with them.
    `lost_bytes` is, by shard, how much log is gone that had been written.
    """

    status: str
    version: str
    map_version: int
    uptime_s: float
    shards: dict[str, bool]
    faults: list[NodeFault]
    caches: dict[str, Any]
    schema: SchemaView | UnsetType = UNSET
    nodes: list[NodeStatus] | UnsetType = UNSET
    keys: Literal["current", "outdated"] | UnsetType = UNSET
    disagreements: list[DisagreementView] = []
    unidentified: list[str] = []
    lost_bytes: dict[str, int] = {}
    services: list[ServiceStatus] = []


def node_faults(nodes: Iterable[NodeStatus]) -> list[NodeFault]:
    """Of `nodes`, those that are not as they should be."""
    return [
        NodeFault(one.shard, one.role, one.state, one.cause, one.since)
        for one in nodes
        if one.state != "up" or one.cause is not None
    ]


def coverage_view(coverage: Coverage, *, inside: bool) -> CoverageView:
    """`inside`: for somebody who may see the inside of the cluster."""
    failures = coverage.failures
    if failures and not inside:
        failures = tuple(
            [msgspec.structs.replace(one, error=redacted(one.cause, one.error)) for one in failures]
        )
    return CoverageView(
        coverage.full, coverage.shards, failures, coverage.stale or UNSET, coverage.lost or UNSET
    )


def schema_view(findings: Sequence[Finding]) -> SchemaView | UnsetType:
    """Nothing where all is as the map says."""
    if not findings:
        return UNSET
    gravest = sorted(findings, key=lambda finding: list(Severity).index(finding.severity))
    counts = Counter(finding.severity for finding in findings)
    return SchemaView(
        counts[Severity.ERROR],
        counts[Severity.WARNING],
        counts[Severity.NOTE],
        tuple(gravest[:_MOST_FINDINGS]),
    )


def search_answer(
    found: Found,
    took_ms: float,
    map_version: int,
    *,
    explain: Sequence[NodeStatus] | None,
    embedding: EmbeddingView | None = None,
    inside: bool = True,
) -> SearchAnswer:
    """`explain` are all nodes as they are now, None where no explanation is wanted."""
    answer, page = found.answer, found.answer.page
    made = SearchAnswer(
        answer.hits,
        took_ms,
        found.tier,
        coverage_view(answer.coverage, inside=inside),
        map_version,
        answer.short or UNSET,
        answer.unsettled or UNSET,
        UNSET if explain is None else _explanation(answer.reports, explain, inside=inside),
        embedding=embedding or UNSET,
        cursor=UNSET if page is None else page.cursor,
        page=UNSET if page is None else _page_view(page),
    )
    return made if answer.account is None else _accounted(made, answer.account)


def _accounted(answer: SearchAnswer, account: Account) -> SearchAnswer:
    """`answer`, with what was done beside one plain search."""
    groups: tuple[GroupView, ...] | UnsetType = UNSET
    if account.groups is not None:
        groups = tuple([GroupView(msgspec.Raw(one.value), one.hits, one.full) for one in account.groups])
    return msgspec.structs.replace(
        answer,
        legs=account.legs or UNSET,
        rerank=account.rerank or UNSET,
        diversity=account.diversity or UNSET,
        groups=groups,
    )


def _page_view(page: Page) -> PageView:
    return PageView(page.position, page.ranked, page.gone, page.kept or UNSET, page.ended or UNSET)


def _explanation(
    reports: tuple[ShardReport, ...], nodes: Sequence[NodeStatus], *, inside: bool
) -> Explanation:
    asked = {report.shard for report in reports}
    told = [
        report if report.choice is None else msgspec.structs.replace(report, choice=rounded(report.choice))
        for report in reports
    ]
    concerned = [node for node in nodes if node.shard in asked and (node.state != "up" or node.cause)]
    faults = tuple(node_faults(concerned))
    if inside:
        return Explanation(tuple(told), faults, tuple(concerned))
    told = [
        msgspec.structs.replace(
            report, node=None, error=report.error and redacted(report.cause or "timeout", report.error)
        )
        for report in told
    ]
    return Explanation(tuple(told), faults)
