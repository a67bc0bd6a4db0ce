"""Prometheus metrics, made from what each reply says of its request and from the router's state at a scrape.

One registry per process, made here and passed around. With several workers, prometheus-client keeps
every value in a file per process (`PROMETHEUS_MULTIPROC_DIR`), and any worker answers a scrape for
all of them; the gauges say how their values add up over workers, and each worker refreshes its own.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from router.http.backend import Backend, NodeStatus
from router.http.keys import Keys
from router.http.message import Reply, Written
from router.http.process_metrics import ProcessMetrics
from router.http.tally import TallyCounter, TallyHistogram, Unwritten
from router.query.types import Found
from router.recall.sampling import RecallSeen
from router.schema.findings import Severity
from router.schema.watch import SchemaState

__all__ = ["Metrics"]

M = TypeVar("M", Counter, Gauge, Histogram)

_L2_OUTCOMES = {"hit": "l2_hits", "miss": "l2_misses", "unanswered": "l2_unanswered"}
_L2_ERRORS = "l2_errors_"
_FOUND = "rankings_found_"

# A cached search takes well under a millisecond, a default deadline is two seconds.
_REQUEST_BUCKETS = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)
_SHARD_BUCKETS = (0.00025, *_REQUEST_BUCKETS[:-2])
# A Redis nearby answers in a tenth of a millisecond, and `l2_timeout` is 20 ms by default.
_L2_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_NODE = ["shard", "node"]


class _WithRecall(Collector):
    """Adds to the metrics of `collect` each collection's mean recall over the windows of all workers.

    A gauge of each worker could not say it: means of different numbers of samples do not add up, sums do.
    """

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        families = list(self._collect())
        values = {
            family.name: {one.labels["collection"]: one.value for one in family.samples}
            for family in families
            if family.name in ("pgscatter_recall_window_sum", "pgscatter_recall_window_samples")
        }
        mean = GaugeMetricFamily(
            "pgscatter_recall_at_k",
            "Mean recall of real searches, by the last of them that were repeated exactly.",
            labels=["collection"],
        )
        sums = values.get("pgscatter_recall_window_sum", {})
        for collection, samples in values.get("pgscatter_recall_window_samples", {}).items():
            if samples:
                mean.add_metric([collection], sums[collection] / samples)
        return [*families, mean]


class Metrics:
    """Every metric of a process. Changed by the edge only: once per request, and when state is read."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._unwritten = Unwritten()
        self._requests = self._counter("requests", "Requests answered.", ["method", "route", "status"])
        self._seconds = self._histogram(
            "request_seconds",
            "Time from a request's arrival to its answer.",
            ["method", "route"],
            _REQUEST_BUCKETS,
        )
        self._open = self._gauge("requests_in_flight", "Requests being answered.", [], "livesum")
        self._tasks = self._gauge("tasks", "Tasks of the event loop.", [], "livesum")
        self._rejected = self._counter(
            "requests_rejected", "Requests refused to protect the rest.", ["reason"]
        )
        self._searches = self._counter("searches", "Searches by what answered them.", ["collection", "cache"])
        self._coverage = self._counter(
            "search_coverage", "Searches by completeness.", ["collection", "coverage"]
        )
        self._shard_seconds = self._histogram(
            "shard_seconds", "Time a shard took for its part of a search.", ["shard"], _SHARD_BUCKETS
        )
        self._shard_results = self._counter(
            "shard_results", "Parts of searches by outcome.", ["shard", "state"]
        )
        self._hedges = self._counter(
            "shard_hedges", "Parts of searches that a second node was wanted for.", ["shard", "outcome"]
        )
        self._retries = self._counter(
            "shard_retries", "Attempts at parts of searches after one failed.", ["shard"]
        )
        self._ways = self._counter(
            "filtered_parts", "Parts of searches with a filter by the way they took.", ["collection", "way"]
        )
        self._answers = self._counter("node_answers", "Parts of searches by who answered them.", _NODE)
        self._ejections = self._counter("node_ejections", "Times a node was left out.", _NODE)
        self._role_changes = self._counter("node_role_changes", "Promotions and demotions.", _NODE)
        self._stored = self._counter("documents_stored", "Documents inserted or replaced.", ["collection"])
        self._deleted = self._counter("documents_deleted", "Documents deleted.", ["collection"])
        self._patched = self._counter("documents_patched", "Documents changed by a patch.", ["collection"])
        self._failed = self._counter("documents_failed", "Documents not stored.", ["collection", "reason"])
        self._recall_samples = self._counter(
            "recall_samples", "Searches repeated exactly to measure recall.", ["collection"]
        )
        self._recall_dropped = self._counter(
            "recall_dropped", "Searches chosen to measure recall that were not compared.", ["reason"]
        )
        self._window_sum = self._gauge(
            "recall_window_sum", "Sum of the last samples' recall.", ["collection"], "livesum"
        )
        self._window_samples = self._gauge(
            "recall_window_samples", "Number of these samples.", ["collection"], "livesum"
        )
        self._l1_bytes = self._gauge("l1_bytes", "Size of the caches in process memory.", [], "livesum")
        self._l1_entries = self._gauge("l1_entries", "Answers in those caches.", [], "livesum")
        # Without labels they would say 0 of a router without Redis, as if it were off.
        self._l2_on = self._gauge(
            "l2_on", "Whether Redis is used, for reads and for writes.", ["use"], "livemin"
        )
        self._l2_lookups = self._counter("l2_lookups", "Searches looked up in Redis.", ["outcome"])
        self._l2_errors = self._counter("l2_errors", "Calls of Redis that failed.", ["cause"])
        self._l2_seconds = self._histogram(
            "l2_seconds",
            "Time that a call of Redis took, several searches' look-ups together.",
            [],
            _L2_BUCKETS,
        )
        self._rankings = self._gauge(
            "rankings", "Rankings in process memory, for their pages.", [], "livesum"
        )
        self._ranking_bytes = self._gauge("ranking_bytes", "Size of these.", [], "livesum")
        self._ranking_lookups = self._counter(
            "ranking_lookups", "Pages by where their ranking was found.", ["outcome"]
        )
        self.redis_took: Callable[[float], None] = self._l2_seconds.observe
        self._services = self._counter(
            "model_requests", "Requests to services for texts.", ["kind", "service", "outcome"]
        )
        self._service_seconds = self._histogram(
            "model_seconds",
            "Time that an answered request to a service for texts took, its repetitions included.",
            ["kind", "service"],
            _REQUEST_BUCKETS,
        )
        self._service_open = self._gauge(
            "model_circuit_open",
            "Whether a service for texts is left alone for failing.",
            ["kind", "service"],
            "livemax",
        )
        self._texts = self._counter(
            "texts_embedded", "Texts of searches by what had their vectors.", ["service", "cache"]
        )
        self.process = ProcessMetrics(self.registry)
        self._keys_outdated = self._gauge(
            "keys_outdated", "Whether the file of keys has changed to what cannot be used.", [], "livemax"
        )
        self._map_version = self._gauge("map_version", "Version of the shard map in use.", [], "livemin")
        self._shard_ready = self._gauge("shard_ready", "Whether a shard can be read.", ["shard"], "livemin")
        self._schema_findings = self._gauge(
            "schema_findings",
            "Findings on a shard's tables that are not as the map says.",
            ["shard", "severity"],
            "livemax",
        )
        self._node_up = self._gauge("node_up", "Whether a node answers probes.", _NODE, "livemin")
        self._node_primary = self._gauge(
            "node_primary", "Whether a node is its shard's primary.", _NODE, "livemax"
        )
        self._node_ejected = self._gauge(
            "node_ejected", "Whether a node is left out for its silence.", _NODE, "livemax"
        )
        self._node_state = self._gauge(
            "node_state", "Whether a node is in this state.", [*_NODE, "state"], "livemax"
        )
        self._shard_lost = self._gauge(
            "shard_lost_bytes", "Log that was written to a shard and is gone.", ["shard"], "livemax"
        )
        self._shard_disagreements = self._gauge(
            "shard_disagreements", "Points in which a shard differs from the map.", ["shard"], "livemax"
        )
        self._shard_identified = self._gauge(
            "shard_identified", "Whether a shard says which it is.", ["shard"], "livemin"
        )
        self._node_changed = self._gauge(
            "node_changed_timestamp_seconds", "When a node's state changed last.", _NODE, "livemax"
        )
        self._node_lag = self._gauge(
            "node_replay_lag_bytes", "How far a replica is behind.", _NODE, "livemax"
        )
        self._node_lag_seconds = self._gauge(
            "node_replay_lag_seconds", "For how long a replica has lacked something.", _NODE, "livemax"
        )
        self._shard_primaries = self._gauge(
            "shard_primaries", "Nodes that say they are the primary.", ["shard"], "livemax"
        )
        self._node_in_flight = self._gauge("node_in_flight", "Statements running.", _NODE, "livesum")
        self._node_waiting = self._gauge("node_waiting", "Statements waiting.", _NODE, "livesum")
        self._node_connections = self._gauge("node_connections", "Open connections.", _NODE, "livesum")
        self._children: dict[tuple[object, ...], Counter | Gauge | Histogram] = {}
        self._nodes: dict[tuple[str, str], NodeStatus] = {}  # as `sample` last saw them
        self._counted: dict[tuple[str, str], float] = {}  # likewise, elsewhere
        self._schema_state: SchemaState | None = None  # as `sample` last saw it
        self.in_flight = 0
        self.keys: Keys | None = None  # whose state is sampled

    def begin(self) -> None:
        self.in_flight += 1

    def end(self, method: str, route: str, reply: Reply, seconds: float) -> None:
        """Count a finished request."""
        self.in_flight -= 1
        self._child(self._requests, method, route, str(reply.status)).inc()
        self._child(self._seconds, method, route).observe(seconds)
        for collection, found in reply.found:
            self._search(collection, found)
        if reply.written is not None:
            self._write(reply.written)

    def reject(self, reason: str) -> None:
        self._child(self._rejected, reason).inc()

    def recall_sampled(self, collection: str, seen: RecallSeen) -> None:
        """With `recall_dropped`, what `router.recall.live.RecallListener` asks for."""
        self._child(self._recall_samples, collection).inc()
        self._child(self._window_sum, collection).set(seen.recall * seen.samples)
        self._child(self._window_samples, collection).set(seen.samples)

    def recall_dropped(self, reason: str) -> None:
        self._child(self._recall_dropped, reason).inc()

    def service_answered(self, kind: str, name: str, seconds: float) -> None:
        """With the next two, what `router.models.embedding.EmbeddingListener` asks for."""
        self._child(self._services, kind, name, "ok").inc()
        self._child(self._service_seconds, kind, name).observe(seconds)

    def service_failed(self, kind: str, name: str, cause: str) -> None:
        self._child(self._services, kind, name, cause).inc()

    def text_embedded(self, name: str, tier: str) -> None:
        self._child(self._texts, name, tier).inc()

    def write(self) -> None:
        """Let scrapes, also those of other workers, see what has been counted."""
        self._unwritten.write()

    def sample(self, backend: Backend) -> None:
        """Bring all metrics up to date."""
        try:
            self._gauges(backend)
        finally:
            self.write()

    def _gauges(self, backend: Backend) -> None:
        self._open.set(self.in_flight)
        with contextlib.suppress(RuntimeError):  # no loop is running
            self._tasks.set(len(asyncio.all_tasks()))
        stats = backend.cache_stats()
        self._l1_bytes.set(float(stats.get("l1_bytes", 0)))
        self._l1_entries.set(float(stats.get("l1_entries", 0)))
        if stats.get("l2_enabled"):
            self._l2(stats)
        self._rankings.set(float(stats.get("rankings", 0)))
        self._ranking_bytes.set(float(stats.get("rankings_bytes", 0)))
        self._raise(
            {
                (self._ranking_lookups, name.removeprefix(_FOUND)): count
                for name, count in stats.items()
                if name.startswith(_FOUND)
            }
        )
        self.process.sample()
        self._keys_outdated.set(self.keys is not None and self.keys.outdated)
        self._map_version.set(backend.shard_map.version)
        nodes = {(node.shard, node.name): node for node in backend.nodes()}
        claims = collections.Counter(
            node.shard for node in nodes.values() if node.role == "primary" and _answers(node)
        )
        lost = {node.shard: node.lost_bytes for node in nodes.values() if node.lost_bytes}
        differing = collections.Counter(shard for shard, _ in backend.disagreements())
        silent = set(backend.unidentified())
        for shard, ready in backend.ready()[1].items():
            self._child(self._shard_ready, shard).set(ready)
            self._child(self._shard_lost, shard).set(lost.get(shard, 0))
            self._child(self._shard_disagreements, shard).set(differing[shard])
            self._child(self._shard_identified, shard).set(shard not in silent)
            self._child(self._shard_primaries, shard).set(claims[shard])
        for service in backend.services():
            self._child(self._service_open, service.kind, service.name).set(service.circuit != "closed")
        self._schema_of(backend)
        for gone in self._nodes.keys() - nodes.keys():
            self._forget(gone)
        for labels, node in nodes.items():
            # There may be a thousand, of which few have changed.
            if node != self._nodes.get(labels):
                self._node(labels, node)
        self._nodes = nodes

    def render(self, backend: Backend) -> bytes:
        """The text format, for all workers."""
        self.sample(backend)
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            collect = self.registry.collect
        else:
            collect = MultiProcessCollector(None).collect  # type: ignore[no-untyped-call]
        whole = CollectorRegistry()
        whole.register(_WithRecall(collect))
        return generate_latest(whole)

    def _schema_of(self, backend: Backend) -> None:
        """Two gauges of each shard, set when something has changed: there may be a thousand shards."""
        state = backend.schema()
        if state is self._schema_state:
            return
        self._schema_state = state
        counts = collections.Counter((one.shard, one.severity) for one in state.findings)
        for shard in backend.shard_map.shards:
            for severity in (Severity.ERROR, Severity.WARNING):
                self._child(self._schema_findings, shard, severity.value).set(counts[shard, severity])

    def _search(self, collection: str, found: Found) -> None:
        self._child(self._searches, collection, found.tier).inc()
        coverage = "full" if found.answer.coverage.full else "partial"
        self._child(self._coverage, collection, coverage).inc()
        for report in found.answer.reports:
            self._child(self._shard_seconds, report.shard).observe(report.total_ms / 1000)
            self._child(self._shard_results, report.shard, str(report.state)).inc()
            if report.hedge is not None:
                self._child(self._hedges, report.shard, str(report.hedge)).inc()
            retries = report.attempts - 1 - report.hedged
            if retries > 0:
                self._child(self._retries, report.shard).inc(retries)
            if report.node is not None:
                self._child(self._answers, report.shard, report.node).inc()
            if report.choice is not None:
                way = "vector_index_short" if report.again == "short" else str(report.choice.way)
                self._child(self._ways, collection, way).inc()

    def _write(self, written: Written) -> None:
        if written.stored:
            self._child(self._stored, written.collection).inc(written.stored)
        if written.deleted:
            self._child(self._deleted, written.collection).inc(written.deleted)
        if written.patched:
            self._child(self._patched, written.collection).inc(written.patched)
        for reason, count in written.failed.items():
            self._child(self._failed, written.collection, reason).inc(count)

    def _l2(self, stats: Mapping[str, int | float | str]) -> None:
        on, writable = bool(stats.get("l2_on")), bool(stats.get("l2_writable"))
        self._child(self._l2_on, "reads").set(on)
        self._child(self._l2_on, "writes").set(on and writable)
        counts = {(self._l2_lookups, outcome): stats.get(name, 0) for outcome, name in _L2_OUTCOMES.items()}
        errors = {name: count for name, count in stats.items() if name.startswith(_L2_ERRORS)}
        counts |= {(self._l2_errors, name.removeprefix(_L2_ERRORS)): n for name, n in errors.items()}
        self._raise(counts)

    def _raise(self, counts: Mapping[tuple[Counter, str], int | float | str]) -> None:
        """Bring counters up to what has been counted elsewhere, by label."""
        for (counter, label), count in counts.items():
            key = (str(counter), label)
            self._child(counter, label).inc(max(0.0, float(count) - self._counted.get(key, 0.0)))
            self._counted[key] = float(count)

    def _node(self, labels: tuple[str, str], node: NodeStatus) -> None:
        self._child(self._node_up, *labels).set(node.state not in ("down", "unknown"))
        self._child(self._node_ejected, *labels).set(node.state == "ejected")
        self._child(self._node_changed, *labels).set(node.since)
        before = self._nodes.get(labels)
        if before is not None and before.state != node.state:
            self._child(self._node_state, *labels, before.state).set(0)
        self._child(self._node_state, *labels, node.state).set(1)
        for counter, count, counted in (
            (self._ejections, node.ejections, before.ejections if before else 0),
            (self._role_changes, node.role_changes, before.role_changes if before else 0),
        ):
            self._child(counter, *labels).inc(max(0, count - counted))
        self._child(self._node_primary, *labels).set(node.role == "primary" and node.state != "foreign")
        self._child(self._node_lag, *labels).set(node.replay_lag_bytes or 0)
        self._child(self._node_lag_seconds, *labels).set(node.replay_lag_s or 0)
        self._child(self._node_in_flight, *labels).set(node.in_flight)
        self._child(self._node_waiting, *labels).set(node.waiting)
        self._child(self._node_connections, *labels).set(node.connections)

    def _forget(self, labels: tuple[str, str]) -> None:
        for metric, *rest in list(self._children):
            if metric is self._node_state and tuple(rest[:2]) == labels:
                self._child(self._node_state, *map(str, rest)).set(0)
                self._node_state.remove(*map(str, rest))
                del self._children[metric, *rest]
        for gauge in (
            self._node_up,
            self._node_ejected,
            self._node_changed,
            self._node_primary,
            self._node_lag,
            self._node_lag_seconds,
            self._node_in_flight,
            self._node_waiting,
            self._node_connections,
        ):
            # With several workers, the value stays in the worker's file after it is removed, so it is set to
            # 0.
            self._child(gauge, *labels).set(0)
            gauge.remove(*labels)
            del self._children[gauge, *labels]

    def _child(self, metric: M, *labels: str) -> M:
        """`metric.labels(*labels)`, kept, because each call takes a lock and a microsecond.

        The number of labels is bounded: they are templates of paths, names of the map, and fixed words.
        """
        child = self._children.get((metric, *labels))
        if child is None:
            child = self._children[metric, *labels] = metric.labels(*labels)
            if isinstance(child, TallyCounter | TallyHistogram):
                child.unwritten = self._unwritten
        return child  # type: ignore[return-value]

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        counter = TallyCounter(f"pgscatter_{name}", text, labels, registry=self.registry)
        counter.unwritten = self._unwritten
        return counter

    def _histogram(self, name: str, text: str, labels: list[str], buckets: tuple[float, ...]) -> Histogram:
        histogram = TallyHistogram(f"pgscatter_{name}", text, labels, registry=self.registry, buckets=buckets)
        histogram.unwritten = self._unwritten
        return histogram

    def _gauge(self, name: str, text: str, labels: list[str], mode: str) -> Gauge:
        return Gauge(
            f"pgscatter_{name}",
            text,
            labels,
            registry=self.registry,
            multiprocess_mode=mode,  # type: ignore[arg-type]
        )


def _answers(node: NodeStatus) -> bool:
    """Whether it is one of its shard's nodes that answer probes."""
    return node.state not in ("down", "foreign")
