"""What a router says of itself at /metrics, and what the system says of its processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from bench.errors import BenchError
from bench.resources import family, usage
from bench.world import Router, World
from router.client import Client, ClientError

__all__ = ["UNITS", "by_label", "scrape", "state"]


_MIB = float(1 << 20)
# Of what `state` reads. Memory is resident: shared pages count in each process. L1 is by the cache's own
# account; tasks are those of the router's loop, sockets, files and threads those of its processes.
UNITS = {
    **{name: "MiB" for name in ("router's memory", "of it L1", "servers' memory")},
    **dict.fromkeys(("tasks", "waiting statements", "connections to nodes"), ""),
    **dict.fromkeys(("sockets", "open files", "threads", "processes of PostgreSQL"), ""),
}


def scrape(router: Router) -> dict[str, float]:
    """Metrics by name, those of all labels added up."""
    found: dict[str, float] = {}
    for sample in _samples(router):
        found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def by_label(router: Router, name: str, label: str) -> dict[str, float]:
    """One metric by one of its labels, those of the others added up."""
    found: dict[str, float] = {}
    for sample in _samples(router):
        if sample.name == name:
            value = sample.labels[label]
            found[value] = found.get(value, 0.0) + sample.value
    return found


def _samples(router: Router) -> Iterator[Sample]:
    try:
        text = Client(router.url).call("GET", "/metrics").decode()
    except ClientError as exc:
        raise BenchError(f"no metrics: {exc}") from exc
    for metric in text_string_to_metric_families(text):
        yield from metric.samples


def state(world: World, router: Router) -> dict[str, float]:
    """A router and its servers at this moment, by the names in `UNITS`."""
    said = scrape(router)
    sockets = files = threads = 0
    for process in family([router.pid]):
        with contextlib.suppress(psutil.NoSuchProcess):
            sockets += len(process.net_connections("tcp"))
            files += process.num_fds()
            threads += process.num_threads()
    try:
        return {
            "router's memory": usage([router.pid]).rss_bytes / _MIB,
            "of it L1": said["pgscatter_l1_bytes"] / _MIB,
            "servers' memory": usage(world.server_pids).rss_bytes / _MIB,
            "tasks": said["pgscatter_tasks"],
            "waiting statements": said["pgscatter_node_waiting"],
            "connections to nodes": said["pgscatter_node_connections"],
            "sockets": sockets,
            "open files": files,
            "threads": threads,
            "processes of PostgreSQL": len(family(world.server_pids)),
        }
    except KeyError as exc:
        raise BenchError(f"the router's metrics have no {exc.args[0]}") from exc
