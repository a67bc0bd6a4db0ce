"""What is said when nodes and shards change, whoever changes them."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from router.freshness.redis_link import RedisLink
from router.nodes import state_log
from router.nodes.node import Node
from router.nodes.state_log import StateLog
from router.policy.changes import Changes
from router.policy.limit import Limit
from router.policy.selection import Health, NodeState, Role
from router.postgres.connection import ErrorKind, NodeError
from router.query.types import Work
from router.settings import Settings
from router.stages.replicas import ReplicaSet
from shard_config import model

Said = tuple[str, str, dict[str, Any]]


class Shard:
    """Two nodes that are told what they are, at a time that a test sets."""

    def __init__(self, caplog: pytest.LogCaptureFixture, most: int = 100) -> None:
        caplog.set_level(logging.INFO, logger="router.nodes.state_log")
        self.caplog = caplog
        self.now = 0.0
        self.log = StateLog(Changes(lambda: self.now, most))
        self.nodes = {
            name: Node(model.Node(name, ""), "s0", Settings(), Limit(1, 1), changed=self.log.node)
            for name in ("a", "b")
        }
        self.set = ReplicaSet("s0", list(self.nodes.values()))

    def begins(self) -> None:
        self.sees("a", Role.PRIMARY)
        self.sees("b", Role.REPLICA)
        self.log.begin(self.nodes.values())

    def sees(self, name: str, role: Role, **changes: Any) -> None:
        self.nodes[name].observe(NodeState(Health.UP, role, 100, **changes))

    async def says(self, lines: int) -> None:
        """Returns when so many have been said."""
        async with asyncio.timeout(20):
            while len(self.caplog.records) < lines:
                await asyncio.sleep(0.001)

    def said(self) -> list[Said]:
        """What was, since this was asked for the last time: level, event, and the rest."""
        names = ("shard", "node", "from", "to", "cause", "reason", "changes")
        lines = [
            (
                record.levelname.lower(),
                record.getMessage(),
                {name: vars(record)[name] for name in names if name in vars(record)},
            )
            for record in self.caplog.records
        ]
        self.caplog.clear()
        return lines


@pytest.fixture
async def shard(caplog: pytest.LogCaptureFixture) -> Shard:
    return Shard(caplog)


async def test_a_start_is_one_line_and_one_for_each_thing_that_is_not_well(shard: Shard) -> None:
    shard.sees("a", Role.PRIMARY)
    shard.nodes["b"].failed(NodeError(ErrorKind.UNREACHABLE, "connection refused"))
    assert shard.said() == []
    shard.log.begin(shard.nodes.values())
    first, second = shard.caplog.records
    assert first.getMessage() == "nodes probed"
    counts = {name: vars(first)[name] for name in ("nodes", "up", "shards", "readable", "primaries")}
    assert counts == {"nodes": 2, "up": 1, "shards": 1, "readable": 1, "primaries": 1}
    assert (second.getMessage(), second.levelname) == ("node state", "WARNING")
    assert vars(second)["reason"] == "connection refused"


async def test_a_failover_is_told_step_by_step_and_repeated_probes_say_nothing(shard: Shard) -> None:
    shard.begins()
    shard.said()
    shard.sees("a", Role.PRIMARY)
    shard.sees("b", Role.REPLICA)
    assert shard.said() == []
    shard.nodes["a"].failed(NodeError(ErrorKind.UNREACHABLE, "connection refused"))
    why = "a is down primary (connection refused); b is up replica"
    assert shard.said() == [
        (
            "warning",
            "node state",
            {
                "shard": "s0",
                "node": "a",
                "from": "up",
                "to": "down",
                "cause": "unreachable",
                "reason": "connection refused",
            },
        ),
        ("warning", "shard primary", {"shard": "s0", "from": "a", "to": None, "reason": why}),
    ]
    shard.now += 1.0
    shard.sees("b", Role.PRIMARY, timeline=2)
    assert shard.said() == [
        ("info", "node role", {"shard": "s0", "node": "b", "from": "replica", "to": "primary"}),
        ("info", "shard primary", {"shard": "s0", "from": None, "to": "b"}),
    ]


async def test_a_shard_that_nobody_can_read_is_told_of_and_its_return_too(shard: Shard) -> None:
    shard.begins()
    for name in ("a", "b"):
        shard.nodes[name].failed(NodeError(ErrorKind.UNREACHABLE, "refused"))
    (line,) = [said for said in shard.said() if said[1] == "shard state"]
    assert line[0] == "warning" and (line[2]["from"], line[2]["to"]) == ("readable", "unreadable")
    assert line[2]["reason"] == "a is down primary (refused); b is down replica (refused)"
    shard.now += 1.0
    shard.sees("b", Role.REPLICA)
    (line,) = [said for said in shard.said() if said[1] == "shard state"]
    assert line == ("info", "shard state", {"shard": "s0", "from": "unreadable", "to": "readable"})


async def test_ejections_returns_and_depositions_are_told_with_why(shard: Shard) -> None:
    shard.begins()
    shard.said()
    node = shard.nodes["b"]
    for _ in range(3):
        node.refused(NodeError(ErrorKind.TRANSIENT, "sorry, too many clients already"), 1.0)
    (line,) = shard.said()
    assert line[2]["to"] == line[2]["cause"] == "ejected" and "too many clients" in line[2]["reason"]
    shard.now += 1.0
    node.answered(Work.NEAREST, 0.01, 2.0)
    assert [said[2] for said in shard.said()] == [{"shard": "s0", "node": "b", "from": "ejected", "to": "up"}]
    shard.now += 1.0
    shard.sees("b", Role.REPLICA, deposed=True, reason="it followed another one")
    (line,) = shard.said()
    assert line[2]["to"] == "deposed" and line[2]["reason"] == "it followed another one"


async def test_a_replica_that_falls_behind_is_told_of_and_again_when_it_has_caught_up(shard: Shard) -> None:
    shard.begins()
    shard.said()
    shard.sees("b", Role.REPLICA, lag=11.0, reason="it lacks much")
    here = {"shard": "s0", "node": "b"}
    behind = here | {"from": "current", "to": "behind", "cause": "lagging", "reason": "it lacks much"}
    assert shard.said() == [("warning", "node lag", behind)]
    shard.now += 1.0
    shard.nodes["b"].failed(NodeError(ErrorKind.UNREACHABLE, "refused"))
    assert [event for _, event, _ in shard.said()] == ["node state"]
    shard.now += 1.0
    shard.sees("b", Role.REPLICA)
    lag = [said for said in shard.said() if said[1] == "node lag"]
    assert lag == [("info", "node lag", here | {"from": "behind", "to": "current"})]


async def test_a_node_that_flaps_is_told_of_once_a_second_and_how_it_ends(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_log, "_FLUSH", 0.01)
    shard.begins()
    shard.said()
    for _ in range(50):
        shard.nodes["b"].failed(NodeError(ErrorKind.UNREACHABLE, "refused"))
        shard.sees("b", Role.REPLICA)
    assert len(shard.said()) == 1
    shard.now += 0.9
    await asyncio.sleep(0.05)
    assert shard.said() == []
    shard.now += 0.1
    await shard.says(1)
    (line,) = shard.said()
    assert (line[2]["to"], line[2]["changes"]) == ("up", 99)
    shard.log.close()


async def test_what_waits_for_its_turn_is_said_though_nothing_else_happens(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_log, "_FLUSH", 0.01)
    shard = Shard(caplog, most=1)
    shard.begins()
    shard.said()
    for name in ("a", "b"):
        shard.nodes[name].failed(NodeError(ErrorKind.UNREACHABLE, "refused " * 1000))
    for lines in (1, 2, 3, 4):
        await shard.says(lines)
        assert len(caplog.records) == lines
        shard.now += 1.0
    said = [record.getMessage() for record in caplog.records]
    assert sorted(said) == ["node state", "node state", "shard primary", "shard state"]
    assert max(len(str(vars(record)["reason"])) for record in caplog.records) == 300
    shard.log.close()


async def test_after_the_end_nothing_is_said(shard: Shard) -> None:
    shard.begins()
    link = RedisLink("redis://127.0.0.1:1/0", budget=0.1, pause=60.0, changed=shard.log.redis)
    shard.log.close()
    shard.said()
    await link.check()
    shard.nodes["a"].failed(NodeError(ErrorKind.UNREACHABLE, "refused"))
    assert not link.on and shard.said() == []
    await link.close()
