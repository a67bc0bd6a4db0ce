"""Connections broken again and again, and what the router holds afterwards."""

from __future__ import annotations

import asyncio
import random

from bench.faults.broken import Broken
from bench.faults.caller import FIRST_ID
from bench.faults.load import running
from bench.scrape import UNITS, state
from router.terminal import Meter

__all__ = ["break_connections"]

_PAUSE = 0.05
_IDS = FIRST_ID + FIRST_ID // 2
_SETTLE = 3.0
_WATCHED = ("tasks", "connections to nodes", "open files")


async def break_connections(broken: Broken, count: int, meter: Meter) -> dict[str, tuple[float, str]]:
    """End all connections to one node or another, `count` times, while searches and writes go on.

    Returns by name how much more there is afterwards, and in what unit.
    """
    rng = random.Random(1)
    proxies = broken.proxies
    names = list(proxies.addresses)
    async with running(broken, _IDS):
        # The first tenth is for what grows until it is as large as it gets.
        for number in range(count):
            if number == count // 10:
                before = await _settled(broken)
            name = rng.choice(names)
            await asyncio.to_thread(proxies.refuse, name)
            await asyncio.to_thread(proxies.restore, name)
            await asyncio.sleep(_PAUSE)
            meter.reach(number + 1)
        after = await _settled(broken)
    more = {name: value - before[name] for name, value in after.items()}
    return {
        # L1 fills all the while.
        "router's memory beside L1": (more["router's memory"] - more["of it L1"], "MiB"),
        **{name: (more[name], UNITS[name]) for name in _WATCHED},
    }


async def _settled(broken: Broken) -> dict[str, float]:
    await asyncio.sleep(_SETTLE)
    return await asyncio.to_thread(state, broken.world, broken.router)
