"""How large a router becomes when its cache is full: distinct searches until it says that it is."""

from __future__ import annotations

import numpy as np

from bench.context import Context
from bench.datasets import Dataset, Vectors
from bench.generators import Closed
from bench.sample import Sample
from bench.scrape import scrape
from bench.world import Router, World
from router.settings import Settings

__all__ = ["distinct", "fill_l1"]

# An entry takes 1,500 bytes and its hits, so this many fill the default cache with k=10.
_DISTINCT = 40_000
_STEP_SECONDS = 10.0
_MOST_STEPS = 60
_FULL = 0.98


def distinct(dataset: Dataset, count: int, seed: int = 0) -> Vectors:
    """As many different queries as wanted, (count, d)."""
    rng = np.random.default_rng(seed)
    rows = np.resize(dataset.queries, (count, dataset.dimensions)).astype(np.float32)
    # Near enough to the queries to cost the same, far enough to be none of them.
    rows *= 1 + 1e-4 * rng.standard_normal((count, 1), dtype=np.float32)
    return rows


def fill_l1(context: Context, world: World, router: Router, clients: int) -> tuple[Sample, float]:
    """Search with `clients` until the cache is full; the last sample, and how full it is from 0 to 1."""
    path = world.folder / "distinct.npy"
    np.save(path, distinct(world.dataset, _DISTINCT))
    spec = world.http(router, queries=str(path), cache=True, ef_search=context.options.k)
    with context.display.meter("filling L1", Settings().l1_bytes, "bytes") as meter:
        for turn in range(_MOST_STEPS):
            load = Closed(clients, _STEP_SECONDS, 0.0, seed=turn)
            sample = context.sample(world, spec, load, judged=False, queries=_DISTINCT)
            size = scrape(router)["pgscatter_l1_bytes"]
            meter.reach(int(size))
            if size >= _FULL * Settings().l1_bytes:
                break
    path.unlink()
    return sample, size / Settings().l1_bytes
