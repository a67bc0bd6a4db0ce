"""Connections broken again and again, and what the router holds afterwards."""

from __future__ import annotations

import asyncio
import random

import msgspec

from bench.faults.load import FIRST_ID, running
from bench.faults.proxies import Proxies
from bench.scrape import UNITS, state
from bench.world import Router, World
from router.terminal import Meter

__all__ = ["Growth", "break_connections"]

_PAUSE = 0.05
_IDS = FIRST_ID + FIRST_ID // 2
_SETTLE = 3.0


class Growth(msgspec.Struct, frozen=True):
    """`found` by name: how much more there is, and in what unit."""

    faults: int
    found: dict[str, tuple[float, str]]


async def break_connections(
    world: World, router: Router, proxies: Proxies, count: int, meter: Meter
) -> Growth:
    """End all connections to one node or another, `count` times, while searches and writes go on."""
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
    # L1 fills all the while.
    found = {"router's memory beside L1": (more["router's memory"] - more["of it L1"], "MiB")}
    watched = ("tasks", "connections to nodes", "open files")
    return Growth(count, {**found, **{name: (more[name], UNITS[name]) for name in watched}})


async def _settled(world: World, router: Router) -> dict[str, float]:
    await asyncio.sleep(_SETTLE)
    return await asyncio.to_thread(state, world, router)
