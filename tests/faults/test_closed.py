"""Servers that take no new connections while those that are open go on: they are down until they take one."""

from __future__ import annotations

import asyncio
import os
import signal

import msgspec

from deploy.local import Cluster
from tests.faults.test_failover import FAST, filled, node, until
from tests.integration.worlds import World


async def searched(w: World, seconds: float) -> set[str]:
    """The states of the primary while many search, so that connections are opened wherever they may be."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    states = set()
    while loop.time() < end:
        found = await asyncio.gather(*(w.search([float(i)] * 8, 5, cache=False) for i in range(6)))
        assert all(one.answer.coverage.full for one in found)
        states.add(node(w, "s0-a").state)
        await asyncio.sleep(0.01)
    return states


async def test_a_server_that_shuts_down_smartly_is_left_alone_so_that_it_can_end(pair: Cluster) -> None:
    # Connections are opened all the time, also where those that are there would do.
    async with filled(pair, msgspec.structs.replace(FAST, connection_max_age=0.5)) as w:
        # It lets nobody in, and ends when those who are there have left.
        os.kill(pair.node("s0-a").pid, signal.SIGTERM)
        await searched(w, 0.5)
        await until(w, "s0-a", state="down")
        assert await searched(w, 1.0) == {"down"}
        await until(w, "s0-a", reason="connection refused")
        await asyncio.to_thread(pair.start, "s0-a")
        await until(w, "s0-a", state="up")
