"""Waiting until replicas have replayed what their primary has committed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from router.postgres.connection import NodeError
from router.postgres.wal import FLUSHED, REPLAYED
from router.schema.primary import Primary
from router.schema.session import connect, node_errors
from shard_config.model import Node, Shard

__all__ = ["Lag", "wait_replayed"]

_POLL = 0.1
_ANSWER_TIMEOUT = 5.0
_WRITTEN = f"SELECT {FLUSHED}"
_REPLAYED = f"SELECT {REPLAYED}"


class Lag(msgspec.Struct, frozen=True):
    """A node that has not replayed everything; `reason` says how far it is, or why it cannot be asked.

    `reachable`: whether it answers, and so might be read from by a router.
    """

    shard: str
    node: str
    reason: str
    reachable: bool


async def wait_replayed(
    shard: Shard, primary: Primary, timeout: float, on_lag: Callable[[str, int], None] = lambda _, __: None
) -> list[Lag]:
    """Wait at most `timeout` seconds for every other node of `shard`; returns those that are not there yet.

    A node that cannot be reached is not waited for: it replays before a router reads from it again.
    `on_lag` is told each node's bytes to go.

    Raises:
        NodeError: the primary does not say how far it is.
    """
    with node_errors():
        async with asyncio.timeout(_ANSWER_TIMEOUT):
            target: int = await primary.connection.fetchval(_WRITTEN)
    deadline = asyncio.get_running_loop().time() + timeout
    others = [node for node in shard.nodes if node != primary.node]
    found = await asyncio.gather(*(_wait(shard.name, node, target, deadline, on_lag) for node in others))
    return [lag for lag in found if lag is not None]


async def _wait(
    shard: str, node: Node, target: int, deadline: float, on_lag: Callable[[str, int], None]
) -> Lag | None:
    try:
        connection = await connect(node, "pgscatter replay")
    except NodeError as exc:
        return Lag(shard, node.name, str(exc), reachable=False)
    missing: int | None = None
    try:
        with node_errors():
            async with asyncio.timeout_at(deadline):
                if not await connection.fetchval("SELECT pg_is_in_recovery()"):
                    # A primary that was replaced replays nothing, however long one waits.
                    return Lag(shard, node.name, f"{node.name} is not a replica", reachable=False)
                while (replayed := await connection.fetchval(_REPLAYED)) is None or replayed < target:
                    missing = target - (replayed or 0)
                    on_lag(node.name, missing)
                    await asyncio.sleep(_POLL)
        on_lag(node.name, 0)
        return None
    except NodeError as exc:
        if missing is None:
            return Lag(shard, node.name, f"{node.name}: {exc}", reachable=False)
        return Lag(shard, node.name, f"{node.name} has {missing} bytes of log to replay", reachable=True)
    finally:
        connection.terminate()
