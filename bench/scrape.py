"""What a router says of itself at /metrics, and what the system says of its processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import msgspec
import psutil
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from bench.errors import BenchError
from bench.resources import family, usage
from bench.world import Router, World
from router.client import Client, ClientError

__all__ = ["State", "by_label", "scrape", "state"]


class State(msgspec.Struct, frozen=True, kw_only=True):
    """A router and its servers at one moment.

    Attributes:
        at: seconds since the run began.
        router_bytes, server_bytes: resident memory; shared pages count in each process.
        l1_bytes: of the router's memory, what its cache holds by its own account.
        tasks, in_flight, waiting: tasks of its loop; requests and statements under way and waiting.
        sockets: that the router's processes have open; `backends` are PostgreSQL's processes.
    """

    at: float
    router_bytes: int
    server_bytes: int
    l1_bytes: float
    tasks: float
    in_flight: float
    waiting: float
    node_connections: float
    sockets: int
    files: int
    threads: int
    backends: int


def scrape(router: Router) -> dict[str, float]:
    """Metrics by name, those of all labels added up.

    Raises:
        BenchError
    """
    found: dict[str, float] = {}
    for sample in _samples(router):
        found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def by_label(router: Router, name: str, label: str) -> dict[str, float]:
    """One metric by one of its labels, those of the others added up.

    Raises:
        BenchError
    """
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


def state(world: World, router: Router, at: float) -> State:
    """
    Raises:
        BenchError
    """
    said = scrape(router)
    sockets = files = threads = 0
    for process in family([router.pid]):
        with contextlib.suppress(psutil.NoSuchProcess):
            sockets += len(process.net_connections("tcp"))
            files += process.num_fds()
            threads += process.num_threads()
    try:
        return State(
            at=at,
            router_bytes=usage([router.pid]).rss_bytes,
            server_bytes=usage(world.server_pids).rss_bytes,
            l1_bytes=said["pgscatter_l1_bytes"],
            tasks=said["pgscatter_tasks"],
            in_flight=said["pgscatter_requests_in_flight"],
            waiting=said["pgscatter_node_waiting"],
            node_connections=said["pgscatter_node_connections"],
            sockets=sockets,
            files=files,
            threads=threads,
            backends=len(family(world.server_pids)),
        )
    except KeyError as exc:
        raise BenchError(f"the router's metrics have no {exc.args[0]}") from exc
