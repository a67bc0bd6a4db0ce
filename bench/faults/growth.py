"""Connections broken again and again, and what the router holds afterwards."""

from __future__ import annotations

import asyncio
import random

from bench.faults.load import FIRST_ID, running
from bench.faults.proxies import Proxies
from bench.scrape import UNITS, state
from bench.world import Router, World
from router.terminal import Meter

__all__ = ["break_connections"]

_PAUSE = 0.05
_IDS = FIRST_ID + FIRST_ID // 2
_SETTLE = 3.0


async def break_connections(
    world: World, router: Router, proxies: Proxies, count: int, meter: Meter
) -> dict[str, tuple[float, str]]:
    """End all connections to one node or another, `count` times, while searches and writes go on.

    Returns by name how much more there is afterwards, and in what unit.
    """
    rng = random.Random(1)
    names = list(proxies.addresses)
    async with running(world, router, _IDS):
        # The first tenth is for what grows until it is as large as it gets.
        for number in range(count):
            if number == count // 10:
                before = await _settled(world, router)
            name = rng.choice(names)
            await asyncio.to_thread(proxies.refuse, name)
            await asyncio.to_thread(proxies.restore, name)
            await asyncio.sleep(_PAUSE)
            meter.reach(number + 1)
        after = await _settled(world, router)
    more = {name: value - before[name] for name, value in after.items()}
    watched = ("tasks", "connections to nodes", "open files")
    return {
        # L1 fills all the while.
        "router's memory beside L1": (more["router's memory"] - more["of it L1"], "MiB"),
        **{name: (more[name], UNITS[name]) for name in watched},
    }


async def _settled(world: World, router: Router) -> dict[str, float]:
    await asyncio.sleep(_SETTLE)
    return await asyncio.to_thread(state, world, router)
