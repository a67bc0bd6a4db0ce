"""How often statistics are read, by a clock that only the pauses move."""

from __future__ import annotations

import asyncio

import pytest

from bench.simulation.virtual_time import run
from router.nodes.node import Node
from router.nodes.statistics import Statistics
from router.policy.limit import Limit
from router.settings import Settings
from shard_config import model
from tests.unit import queries


@pytest.mark.parametrize(("shards", "most"), [(1, 5), (500, 2)])
def test_tables_without_statistics_are_read_again_soon_and_many_of_them_less_so(
    shards: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reading takes the router some milliseconds; it finds nothing here, as of tables that are empty."""
    read: list[float] = []

    async def read_shard(statistics: Statistics, shard: str) -> None:
        read.append(asyncio.get_running_loop().time())

    monkeypatch.setattr(Statistics, "_read_shard", read_shard)

    async def some_time() -> None:
        settings = Settings()
        nodes = [
            Node(model.Node(f"n{number}", "postgresql://n/x"), f"s{number}", settings, Limit(1, 1))
            for number in range(shards)
        ]
        statistics = Statistics(nodes, queries.shard_map().collections.values(), settings)
        await statistics.start()
        await asyncio.sleep(50)
        await statistics.close()
        for node in nodes:
            await node.close()

    run(some_time())
    moments = sorted(set(read))
    assert len(read) == len(moments) * shards
    assert 2 <= len(moments) <= most
    assert moments[1] == pytest.approx(6.0 if shards == 1 else 25.0)
