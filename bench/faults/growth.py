"""Connections broken again and again, and what the router holds afterwards."""

from __future__ import annotations

import asyncio
import random

import msgspec

from bench.faults.load import FIRST_ID, running
from bench.faults.proxies import Proxies
from bench.scrape import State, state
from bench.world import Router, World
from router.terminal import Meter

__all__ = ["Growth", "break_connections"]

_PAUSE = 0.05
_IDS = FIRST_ID + FIRST_ID // 2
_SETTLE = 3.0
_MIB = float(1 << 20)


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
    try:
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
    finally:
        meter.end()
    return Growth(
        count,
        {
            # L1 fills all the while.
            "router's memory beside L1": (
                (after.router_bytes - after.l1_bytes - before.router_bytes + before.l1_bytes) / _MIB,
                "MiB",
            ),
            "tasks": (after.tasks - before.tasks, ""),
            "connections to nodes": (after.node_connections - before.node_connections, ""),
            "open files": (float(after.files - before.files), ""),
        },
    )


async def _settled(world: World, router: Router) -> State:
    await asyncio.sleep(_SETTLE)
    return await asyncio.to_thread(state, world, router, 0.0)
