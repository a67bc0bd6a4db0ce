"""A closed loop of searches over HTTP in a process of its own: `python -m bench.simulation.generator`.

Reads a `Wanted` as JSON from its input and writes a `Taken` to its output. What it costs itself is part of
what it tells, since it shares the machine with what it measures.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import uvloop

from bench.simulation.accounting import busy_seconds, cpu_seconds, family

__all__ = ["STEP", "Taken", "Wanted"]

STEP = 0.2  # twenty of the ticks that Linux counts in

_EXPLAIN_EVERY = 20


class Wanted(msgspec.Struct, frozen=True):
    """`queries` is a .npy file; the processes below `router` and `servers` are accounted for."""

    host: str
    port: int
    collection: str
    queries: str
    clients: int
    seconds: float
    warm: float
    k: int
    ef_search: int
    router: list[int]
    servers: list[int]


class Taken(msgspec.Struct, frozen=True):
    """What a run measured; times in seconds, processor times over all of it.

    `statements` is the mean number of statements per search and shard, from every twentieth search's own
    account; `others` is how many processors other processes took in each `STEP` seconds.
    """

    seconds: float
    latencies: list[float]
    statements: float
    client_cpu: float
    router_cpu: float
    server_cpu: float
    others: list[float]


class _Counts(msgspec.Struct):
    latencies: list[float] = []
    shares: list[float] = []


async def _client(wanted: Wanted, requests: list[tuple[bytes, bytes]], first: int, counts: _Counts) -> None:
    reader, writer = await asyncio.open_connection(wanted.host, wanted.port)
    number = first
    try:
        while True:
            explain = number % _EXPLAIN_EVERY == 0
            request = requests[number % len(requests)][explain]
            started = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            body = await reader.readexactly(length)
            counts.latencies.append(time.perf_counter() - started)
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"a search failed: {body[:300]!r}")
            if explain:
                shards = msgspec.json.decode(body)["explain"]["shards"]
                counts.shares += [1 / shard["together"] for shard in shards]
            number += wanted.clients
    finally:
        writer.close()


def _account(wanted: Wanted) -> tuple[float, float, float, float]:
    return (
        time.perf_counter(),
        time.process_time(),
        cpu_seconds(family(wanted.router)),
        cpu_seconds(family(wanted.servers)),
    )


async def _watch(wanted: Wanted, others: list[float]) -> None:
    """What the processors did that was not for us."""
    ours = [*family([*wanted.router, *wanted.servers]), os.getpid()]
    before = (time.perf_counter(), busy_seconds() - cpu_seconds(ours))
    while True:
        await asyncio.sleep(STEP)
        now = (time.perf_counter(), busy_seconds() - cpu_seconds(ours))
        others.append(max(now[1] - before[1], 0.0) / (now[0] - before[0]))
        before = now


async def _run(wanted: Wanted) -> Taken:
    queries = np.load(wanted.queries)
    requests = [
        (_request(wanted, query, explain=False), _request(wanted, query, explain=True)) for query in queries
    ]
    counts, others = _Counts(), list[float]()
    tasks = [asyncio.create_task(_client(wanted, requests, i, counts)) for i in range(wanted.clients)]
    try:
        await asyncio.wait(tasks, timeout=wanted.warm, return_when=asyncio.FIRST_EXCEPTION)
        counts.latencies.clear()
        counts.shares.clear()
        before = _account(wanted)
        watch = asyncio.create_task(_watch(wanted, others))
        tasks.append(watch)
        await asyncio.wait(tasks, timeout=wanted.seconds, return_when=asyncio.FIRST_EXCEPTION)
        spent = [now - then for now, then in zip(_account(wanted), before, strict=True)]
        latencies, shares = list(counts.latencies), list(counts.shares)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    seconds, client, router, servers = spent
    return Taken(seconds, latencies, float(np.mean(shares or [1.0])), client, router, servers, others)


def _request(wanted: Wanted, query: np.ndarray[tuple[int], np.dtype[np.float32]], *, explain: bool) -> bytes:
    body = msgspec.json.encode(
        {
            "vector": query.tolist(),
            "k": wanted.k,
            "ef_search": wanted.ef_search,
            "cache": False,
            "explain": explain,
        }
    )
    head = (
        f"POST /v1/collections/{wanted.collection}/search HTTP/1.1\r\nHost: {wanted.host}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


if __name__ == "__main__":
    wanted = msgspec.json.decode(sys.stdin.buffer.read(), type=Wanted)
    taken = uvloop.run(_run(wanted))
    Path("/dev/stdout").write_bytes(msgspec.json.encode(taken))
