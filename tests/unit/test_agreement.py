"""A router compares its map with its shards as they come up, and while it runs."""

from __future__ import annotations

import logging

import msgspec
import pytest

from router.nodes.agreement import Agreement
from router.nodes.node import Node
from router.policy.limit import Limit
from router.policy.selection import Health, NodeState, Role
from router.query.errors import UnavailableError
from router.settings import Settings
from shard_config import ShardMap
from shard_config.identity import Identity, identities
from tests.unit.shard_config_maps import document, parse


def mapped(version: int, first: str, second: str) -> ShardMap:
    sharding = {"strategy": "hash", "key": "id", "buckets": 4, "placement": {"s0": [first], "s1": [second]}}
    return parse(document({"version": version}, **sharding))


MAP, SWAPPED = mapped(12, "0-1", "2-3"), mapped(13, "2-3", "0-1")


class Shards:
    def __init__(self, shard_map: ShardMap) -> None:
        self.nodes = {
            name: [Node(node, name, Settings(), Limit(1, 1)) for node in shard.nodes]
            for name, shard in shard_map.shards.items()
        }
        self.agreement = Agreement(shard_map, self.nodes)

    def up(self, shard: str, says: Identity | None, at: int = 0, role: Role = Role.PRIMARY) -> None:
        self.nodes[shard][at].observe(NodeState(Health.UP, role, 1, identity=says))

    def down(self, shard: str, at: int = 0) -> None:
        node = self.nodes[shard][at]
        node.observe(msgspec.structs.replace(node.state, health=Health.DOWN))

    def kinds(self) -> set[tuple[str, str]]:
        return {(shard, point.kind) for shard, point in self.agreement.points()}


def test_a_shard_that_comes_up_late_is_compared_before_it_is_asked() -> None:
    shards = Shards(MAP)
    assert shards.kinds() == set()
    shards.agreement.require("documents")
    shards.up("s0", identities(MAP)["s0"])
    shards.agreement.require("documents")
    shards.up("s1", identities(SWAPPED)["s1"])
    assert shards.kinds() == {("s1", "older"), ("s1", "placement")}
    with pytest.raises(UnavailableError, match="where the rows of documents are"):
        shards.agreement.require("documents")
    # It is not right because it is away again.
    shards.down("s1")
    with pytest.raises(UnavailableError):
        shards.agreement.require("documents")
    shards.up("s1", identities(MAP)["s1"])
    shards.agreement.require("documents")


def test_the_primary_has_the_word_and_without_one_whoever_knows_the_newest_map() -> None:
    shards = Shards(MAP)
    shards.up("s0", identities(SWAPPED)["s0"])
    shards.up("s0", identities(MAP)["s0"], at=1, role=Role.REPLICA)
    assert ("s0", "placement") in shards.kinds()
    shards.up("s0", identities(MAP)["s0"])
    assert shards.kinds() == set()
    shards.down("s0")
    shards.up("s0", identities(SWAPPED)["s0"], at=1, role=Role.REPLICA)
    assert ("s0", "placement") in shards.kinds()
    # One that was replaced, or is behind, may not know of it yet.
    for node in (
        NodeState(Health.UP, Role.PRIMARY, 1, deposed=True, identity=identities(MAP)["s0"]),
        NodeState(Health.UP, Role.REPLICA, 1, identity=identities(MAP)["s0"]),
    ):
        shards.nodes["s0"][0].observe(node)
        assert ("s0", "placement") in shards.kinds()


def test_a_shard_that_says_nothing_is_unidentified_while_it_is_up() -> None:
    shards = Shards(MAP)
    assert shards.agreement.unknown() == []
    shards.up("s0", None)
    assert shards.agreement.unknown() == ["s0"]
    shards.up("s0", identities(SWAPPED)["s0"])
    assert shards.agreement.unknown() == []
    # Of a collection that was never applied nobody knows where its rows are.
    word = identities(MAP)["s0"]
    shards.up("s0", msgspec.structs.replace(word, holds={}))
    assert (shards.agreement.unknown(), shards.kinds()) == (["s0"], set())
    shards.up("s0", word)
    assert shards.agreement.unknown() == []
    # The table was emptied: nothing is known, and nothing is claimed.
    shards.up("s0", None)
    assert (shards.agreement.unknown(), shards.kinds()) == (["s0"], set())


def test_what_is_expected_is_made_once_for_all_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    # For each of 500 shards it would be the whole map's placement: 30 s, in which nothing else goes on.
    made: list[ShardMap] = []

    def counted(shard_map: ShardMap) -> dict[str, Identity]:
        made.append(shard_map)
        return identities(shard_map)

    monkeypatch.setattr("router.nodes.agreement.identities", counted)
    shards = Shards(MAP)
    for shard in ("s0", "s1"):
        shards.up(shard, identities(SWAPPED)[shard])
    assert len(shards.agreement.points()) == 4
    assert made == [MAP]


def test_a_change_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    shards = Shards(MAP)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            shards.up("s0", identities(SWAPPED)["s0"])
        shards.up("s0", identities(MAP)["s0"])
        shards.agreement.close()
        shards.up("s0", identities(SWAPPED)["s0"])
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "shard disagrees with the map"),
        ("ERROR", "shard disagrees with the map"),
        ("INFO", "shard agrees with the map"),
    ]
