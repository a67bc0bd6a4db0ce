"""What the nodes of one shard are taken for, by what probes of all of them say."""

from __future__ import annotations

import asyncio
from math import inf
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from bench.simulation.virtual_time import run
from router.freshness.freshness import Freshness
from router.nodes.group import Before, Group, Registry
from router.nodes.node import Node
from router.nodes.prober import Prober
from router.policy.limit import Limit
from router.policy.selection import Health, NodeState, Role
from router.postgres.connection import ErrorKind, NodeError
from router.query.types import Position
from router.settings import Settings
from router.stages.replicas import ReplicaSet
from shard_config import model
from shard_config.identity import Identity
from tests.unit import queries


class Shard:
    """Nodes that say what they are told to, probed one after the other."""

    def __init__(
        self,
        *names: str,
        shard: str = "s0",
        registry: Registry | None = None,
        freshness: Freshness | None = None,
    ) -> None:
        self.nodes = {name: Node(model.Node(name, ""), shard, Settings(), Limit(1, 1)) for name in names}
        self.group = Group(list(self.nodes.values()), registry, freshness)
        self.now = 0.0

    def probe(
        self,
        name: str,
        role: Role,
        lsn: int,
        *,
        timeline: int = 0,
        started: float = 1.0,
        at_once: bool = False,
        **more: Any,
    ) -> None:
        self.now += 1
        state = NodeState(
            Health.UP, role, lsn, timeline=timeline, started=started, **{"written": lsn, "age": 0.0, **more}
        )
        # At once with the probes before, it began when nothing was known of them.
        before = Before() if at_once else self.group.before()
        self.group.observe(self.nodes[name], state, self.now, before)
        self.nodes[name].probed = self.now

    def down(self, name: str) -> None:
        node = self.nodes[name]
        state = msgspec.structs.replace(node.state, health=Health.DOWN)
        self.group.observe(node, state, self.now, self.group.before())

    def states(self) -> dict[str, str]:
        return {name: node.status(None).state for name, node in self.nodes.items()}

    def lost(self) -> int:
        return max(node.state.lost for node in self.nodes.values())

    def deposed(self) -> set[str]:
        return {name for name, node in self.nodes.items() if node.state.deposed}


def test_a_replica_that_is_too_far_behind_to_be_read_says_so_until_it_has_caught_up() -> None:
    shard = Shard("a", "b")
    shard.probe("a", Role.PRIMARY, 50, timeline=1)
    shard.probe("b", Role.REPLICA, 50)
    shard.probe("a", Role.PRIMARY, 60, timeline=1)
    for _ in range(int(shard.nodes["b"].max_lag) + 1):
        assert shard.nodes["b"].state.reason is None
        shard.probe("b", Role.REPLICA, 50)
    assert shard.nodes["b"].state.lag > shard.nodes["b"].max_lag
    why = "it has lacked for more than 10 s (max_lag) what its primary wrote"
    assert shard.nodes["b"].state.reason == why
    assert shard.nodes["b"].status(60).cause == "lagging"
    shard.probe("b", Role.REPLICA, 60)
    assert shard.nodes["b"].state.reason is None


def test_a_replica_beyond_its_primary_is_deposed_until_it_is_started_again() -> None:
    shard = Shard("b", "c")
    shard.probe("c", Role.REPLICA, 88)
    shard.probe("b", Role.PRIMARY, 68, timeline=2)
    assert shard.deposed() == {"c"}
    shard.probe("b", Role.PRIMARY, 90, timeline=2)
    shard.probe("c", Role.REPLICA, 88)
    assert shard.deposed() == {"c"}
    shard.probe("c", Role.REPLICA, 90, started=2.0)
    assert shard.deposed() == set()


def test_a_replica_of_a_primary_that_nobody_has_seen_yet_is_not_deposed_for_good() -> None:
    shard = Shard("a", "b", "c")
    shard.probe("c", Role.REPLICA, 80)
    # A primary that was replaced by b, which is away.
    shard.probe("a", Role.PRIMARY, 50, timeline=1)
    assert shard.deposed() == {"c"}
    shard.probe("b", Role.PRIMARY, 85, timeline=2)
    assert shard.deposed() == {"a"}
    shard.probe("c", Role.REPLICA, 85)
    assert shard.deposed() == {"a"}


def test_a_replica_that_has_replayed_since_its_primary_was_asked_is_well() -> None:
    shard = Shard("a", "b")
    shard.probe("a", Role.PRIMARY, 50, timeline=1)
    shard.probe("b", Role.REPLICA, 50)
    before = shard.group.before()
    shard.probe("b", Role.REPLICA, 60)
    state = NodeState(Health.UP, Role.PRIMARY, 55, timeline=1)
    shard.group.observe(shard.nodes["a"], state, 10.0, before)
    assert shard.deposed() == set()


def test_the_end_of_the_log_is_known_when_every_node_that_is_up_was_probed_since() -> None:
    shard = Shard("a", "b")
    logs = ReplicaSet("s0", list(shard.nodes.values()))
    assert (logs.timeline, logs.head(0.0)) == (0, None)
    shard.probe("a", Role.PRIMARY, 50, timeline=1)  # at 1
    shard.probe("b", Role.REPLICA, 40)  # at 2
    assert (logs.timeline, logs.head(1.0)) == (1, Position(1, 50))
    # It may have been promoted.
    assert logs.head(1.5) is None
    shard.probe("a", Role.PRIMARY, 55, timeline=1)  # at 3
    assert logs.head(2.0) == Position(1, 55)
    shard.down("b")
    assert logs.head(2.5) == Position(1, 55)
    # Without its primary nobody knows what its successor has written.
    shard.probe("b", Role.REPLICA, 55)
    shard.down("a")
    assert (logs.timeline, logs.head(0.0)) == (1, None)
    shard.probe("b", Role.PRIMARY, 54, timeline=2)
    assert (logs.timeline, logs.head(0.0)) == (2, Position(2, 54))
    # Back as it was, it is no primary any more.
    shard.probe("a", Role.PRIMARY, 99, timeline=1)
    assert logs.head(0.0) == Position(2, 54)
    shard.down("b")
    assert (logs.timeline, logs.head(0.0)) == (2, None)


def test_where_only_replicas_are_known_the_furthest_says_how_long_the_log_is() -> None:
    shard = Shard("b", "c")
    logs = ReplicaSet("s0", list(shard.nodes.values()))
    shard.probe("b", Role.REPLICA, 40)
    shard.probe("c", Role.REPLICA, 30)
    assert logs.head(0.0) == Position(0, 40)
    assert logs.head(1.5) is None


def test_a_replica_that_is_new_and_ahead_waits_until_its_primary_was_asked_again() -> None:
    shard = Shard("a", "b")
    primary = shard.nodes["a"]
    shard.probe("b", Role.REPLICA, 60)
    shard.probe("a", Role.PRIMARY, 50, timeline=1, at_once=True)
    # Perhaps it was only asked later.
    assert shard.deposed() == {"b"}
    assert shard.group.is_doubted(primary)
    shard.probe("a", Role.PRIMARY, 70, timeline=1)
    assert shard.deposed() == set()
    assert not shard.group.is_doubted(primary)
    # It follows: now it may be ahead of what is known.
    shard.probe("b", Role.REPLICA, 80)
    assert shard.deposed() == set()
    # As another server, it may not.
    shard.probe("b", Role.REPLICA, 90, started=2.0)
    assert shard.deposed() == {"b"}
    shard.probe("a", Role.PRIMARY, 85, timeline=1)
    assert (shard.deposed(), shard.group.is_doubted(primary)) == ({"b"}, False)


def test_a_node_of_another_system_has_no_say_in_who_is_the_primary() -> None:
    shard = Shard("a", "b", "x")
    shard.probe("a", Role.PRIMARY, 50, timeline=1, system=1)
    shard.probe("b", Role.REPLICA, 50, system=1, started=2.0)
    shard.probe("x", Role.PRIMARY, 900, timeline=7, system=2)
    assert shard.states() == {"a": "up", "b": "up", "x": "foreign"}
    assert "its system identifier is 2" in (shard.nodes["x"].state.reason or "")
    shard.down("a")
    assert shard.states() == {"a": "down", "b": "up", "x": "foreign"}
    # It was the wrong address for a while.
    shard.probe("x", Role.REPLICA, 50, system=1, started=3.0)
    assert shard.states() == {"a": "down", "b": "up", "x": "up"}


def test_a_shard_that_is_built_anew_says_so_and_what_is_cached_of_the_old_one_is_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    freshness = Freshness(queries.shard_map())
    shard = Shard("a", shard="s0", freshness=freshness)
    shard.probe("a", Role.PRIMARY, 500, timeline=3, system=1, identity=Identity("s0", 1, ""))
    freshness.committed("documents", "s0", Position(3, 500))
    version = freshness.version("documents")
    # An empty server at its address.
    shard.probe("a", Role.PRIMARY, 40, timeline=1, system=2, started=2.0)
    assert shard.states() == {"a": "foreign"}
    assert (freshness.version("documents"), len(caplog.records)) == (version, 0)
    # A dump was restored, or `schema apply` run.
    shard.probe("a", Role.PRIMARY, 50, timeline=1, system=2, started=2.0, identity=Identity("s0", 1, ""))
    assert shard.states() == {"a": "up"}
    assert freshness.version("documents") > version
    assert (shard.lost(), freshness.acknowledged.newest("s0")) == (0, None)
    (record,) = caplog.records
    assert (record.levelname, record.message) == ("ERROR", "shard was built anew")


def test_one_server_under_two_names_of_two_shards_is_found_whichever_is_asked_first() -> None:
    for first, second in (("a", "b"), ("b", "a")):
        registry = Registry()
        shards = {
            "a": Shard("a", shard="s0", registry=registry),
            "b": Shard("b", shard="s1", registry=registry),
        }
        for name in (first, second):
            shards[name].probe(name, Role.PRIMARY, 50, timeline=1, system=1)
        assert shards["a"].states() == {"a": "up"}
        assert shards["b"].states() == {"b": "foreign"}


def test_a_log_that_lacks_what_was_acknowledged_is_lost_until_the_end() -> None:
    freshness = Freshness(queries.shard_map())
    shard = Shard("a", shard="s0", freshness=freshness)
    shard.probe("a", Role.PRIMARY, 50, timeline=1)
    freshness.committed("documents", "s0", Position(1, 80))
    before = freshness.version("documents")
    shard.probe("a", Role.PRIMARY, 80, timeline=1)
    assert shard.lost() == 0
    freshness.committed("documents", "s0", Position(1, 90))
    assert freshness.version("documents") == before
    shard.probe("a", Role.PRIMARY, 60, timeline=1, started=2.0)
    assert shard.lost() == 30
    # What caches keep shows rows that are gone.
    assert freshness.version("documents") > before
    freshness.committed("documents", "s0", Position(1, 65))
    shard.probe("a", Role.PRIMARY, 70, timeline=1, started=2.0)
    assert shard.lost() == 30


def test_a_loss_is_said_once_also_where_commits_wait_for_replicas(caplog: pytest.LogCaptureFixture) -> None:
    freshness = Freshness(queries.shard_map())
    shard = Shard("a", shard="s0", freshness=freshness)
    shard.probe("a", Role.PRIMARY, 50, timeline=1, synchronous=True)
    freshness.committed("documents", "s0", Position(1, 90))
    for lsn in (90, 60, 61, 62):
        shard.probe("a", Role.PRIMARY, lsn, timeline=1, synchronous=True)
    assert shard.lost() == 30
    assert [record.message for record in caplog.records] == ["shard has lost log"]


def test_what_another_worker_has_found_to_be_lost_is_shown_by_all() -> None:
    freshness = Freshness(queries.shard_map())
    shard = Shard("a", shard="s0", freshness=freshness)
    shard.probe("a", Role.PRIMARY, 50, timeline=2)
    freshness.counters.note_lost("s0", 7)
    shard.probe("a", Role.PRIMARY, 50, timeline=2)
    assert shard.lost() == 7


def test_what_is_acknowledged_while_a_probe_is_under_way_is_not_lost() -> None:
    freshness = Freshness(queries.shard_map())
    shard = Shard("a", shard="s0", freshness=freshness)
    before = shard.group.before()
    freshness.committed("documents", "s0", Position(1, 80))
    state = NodeState(Health.UP, Role.PRIMARY, 70, timeline=1, written=70)
    shard.group.observe(shard.nodes["a"], state, 1.0, before)
    assert shard.lost() == 0


def test_where_commits_wait_for_replicas_only_what_had_time_to_come_there_can_be_lost() -> None:
    freshness = Freshness(queries.shard_map())
    shard = Shard("a", "b", shard="s0", freshness=freshness)
    shard.probe("a", Role.PRIMARY, 50, timeline=1, synchronous=True)
    freshness.committed("documents", "s0", Position(1, 80))
    shard.down("a")
    # The last one left waits for nobody.
    shard.probe("b", Role.PRIMARY, 90, timeline=2, recovered=70, synchronous=False)
    assert shard.lost() == 0
    freshness.committed("documents", "s0", Position(2, 95))
    shard.probe("b", Role.PRIMARY, 92, timeline=2)
    assert shard.lost() == 3


def test_what_a_successor_has_that_is_away_is_lost_until_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    freshness = Freshness(queries.shard_map())
    freshness.acknowledged.note("s0", Position(2, 80))  # as Redis tells it
    shard = Shard("a", "b", shard="s0", freshness=freshness)
    shard.probe("a", Role.PRIMARY, 60, timeline=1)
    shard.probe("a", Role.PRIMARY, 90, timeline=1)
    assert shard.lost() == 20
    assert len(caplog.records) == 1
    assert freshness.acknowledged.newest("s0") == Position(2, 80)
    shard.probe("b", Role.PRIMARY, 85, timeline=2, recovered=50)
    shard.probe("a", Role.PRIMARY, 90, timeline=1)
    assert (shard.lost(), shard.deposed()) == (0, {"a"})
    assert freshness.counters.lost("s0") == 0


def test_a_replica_that_nobody_sends_the_log_says_so_when_it_is_behind() -> None:
    shard = Shard("a", "b")
    shard.probe("a", Role.PRIMARY, 50, timeline=1)
    shard.probe("b", Role.REPLICA, 50, receiving=False)
    assert shard.nodes["b"].state.reason is None
    shard.probe("a", Role.PRIMARY, 60, timeline=1)
    shard.probe("b", Role.REPLICA, 50, receiving=False)
    lag = shard.nodes["b"].state.lag
    shard.probe("b", Role.REPLICA, 50, receiving=False)
    assert shard.nodes["b"].state.lag > lag > 0
    assert "nothing is sending it any" in (shard.nodes["b"].state.reason or "")


@pytest.mark.parametrize("ahead", [-60.0, 0.0, 60.0])
@pytest.mark.parametrize("first", ["a", "b"])
def test_how_far_a_replica_is_behind_at_the_start_does_not_depend_on_the_servers_clocks(
    ahead: float, first: str
) -> None:
    shard = Shard("a", "b")

    def probe(name: str) -> None:
        if name == "a":
            shard.probe("a", Role.PRIMARY, 50, timeline=1, clock=1000.0)
        else:
            # What it has replayed last was committed 30 seconds ago.
            shard.probe("b", Role.REPLICA, 40, age=30.0 + ahead, clock=1000.0 + ahead)

    for name in (first, "a" if first == "b" else "b"):
        probe(name)
    assert shard.nodes["b"].state.lag == pytest.approx(30.0)
    # What it lacks is known not to be older, once it has replayed what the primary had then.
    shard.probe("a", Role.PRIMARY, 60, timeline=1, clock=1000.0)
    shard.probe("b", Role.REPLICA, 50, age=30.0 + ahead, clock=1000.0 + ahead)
    assert shard.nodes["b"].state.lag == pytest.approx(1.0)


class Replica:
    """A server that answers at once."""

    expires = inf
    process = 1
    way = SimpleNamespace(moved=False)

    def get_server_pid(self) -> int:
        return self.process

    async def fetchrow(self, statement: str) -> dict[str, object]:
        return {
            **{"standby": True, "lsn": 50, "timeline": None, "started": 1.0, "age": 0.0, "vector": True},
            **{"system": 1, "database": "x", "readable": False, "written": None, "recovered": None},
            **{"synchronous": False, "clock": 0.0, "receiving": True, "process": self.process},
        }

    def terminate(self) -> None:
        pass


@pytest.mark.parametrize("up", [True, False])
def test_whoever_asks_for_probes_gets_them_soon_and_not_more_than_the_interval_allows(
    up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def open_connection(dsn: str, **options: object) -> Replica:
        if not up:
            raise NodeError(ErrorKind.UNREACHABLE, "connection refused")
        return Replica()

    monkeypatch.setattr("router.nodes.prober.open_connection", open_connection)
    began: list[float] = []

    async def world() -> None:
        node = Node(model.Node("a", "postgresql://a/x"), "s0", Settings(), Limit(1, 1))
        prober = Prober([node], Settings(probe_interval=1.0))
        observe, loop = node.observe, asyncio.get_running_loop()

        def observed(state: NodeState) -> None:
            began.append(loop.time())
            observe(state)

        node.observe = observed  # type: ignore[method-assign]
        await prober.start()
        try:
            end = loop.time() + 0.7
            while loop.time() < end:
                prober.probe_soon("s0")
                prober.probe_soon("elsewhere")
                if not up:
                    prober.expect("s0", 100 + int(1000 * loop.time()))
                await asyncio.sleep(0.005)
        finally:
            await prober.close()
            await node.close()

    run(world())
    # One that is down has a pause of its own, which nobody may cut short.
    assert began == (pytest.approx([0.0, 0.2, 0.4, 0.6], abs=0.02) if up else [0.0])
