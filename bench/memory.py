"""How large a router becomes when its cache is full: distinct searches until it says that it is."""

from __future__ import annotations

import re
import urllib.request

import msgspec
import numpy as np

from bench.context import Context
from bench.errors import BenchError
from bench.generators import Closed
from bench.sample import Sample, take
from bench.workers import Job
from bench.world import Router, World
from router.settings import Settings

__all__ = ["fill_l1", "l1_bytes"]

# An entry takes 1,500 bytes and its hits, so this many fill the default cache with k=10.
_DISTINCT = 40_000
_STEP_SECONDS = 10.0
_MOST_STEPS = 60
_FULL = 0.98


def l1_bytes(router: Router) -> float:
    """Size of the cache, as the router's metrics have it.

    Raises:
        BenchError
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{router.url}/metrics", timeout=30) as reply:
            text = reply.read().decode()
    except OSError as exc:
        raise BenchError(f"no metrics: {exc}") from exc
    found = re.search(r"^pgscatter_l1_bytes (\S+)$", text, re.MULTILINE)
    if not found:
        raise BenchError("the router's metrics have no pgscatter_l1_bytes")
    return float(found[1])


def fill_l1(context: Context, world: World, router: Router, clients: int) -> tuple[Sample, float]:
    """Search with `clients` until the cache is full; the last sample, and how full it is from 0 to 1.

    Raises:
        BenchError
    """
    path = world.folder / "distinct.npy"
    rng = np.random.default_rng(0)
    rows = np.resize(world.dataset.queries, (_DISTINCT, world.dataset.dimensions)).astype(np.float32)
    # Near enough to the queries to cost the same, far enough to be none of them.
    rows *= 1 + 1e-4 * rng.standard_normal((_DISTINCT, 1), dtype=np.float32)
    np.save(path, rows)
    meter = context.display.meter("filling L1", Settings().l1_bytes, "bytes")
    try:
        for turn in range(_MOST_STEPS):
            spec = world.http(router, cache=True, ef_search=context.options.k)
            spec = msgspec.structs.replace(spec, queries=str(path))
            job = Job(spec, Closed(clients, _STEP_SECONDS, 0.0, seed=turn), _DISTINCT, context.options.k)
            sample = take(job, routers=router.pids)
            size = l1_bytes(router)
            meter.reach(int(size))
            if size >= _FULL * Settings().l1_bytes:
                break
        return sample, size / Settings().l1_bytes
    finally:
        meter.end()
        path.unlink()
