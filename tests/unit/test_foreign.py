"""Which nodes are none of the shard that they are listed for."""

from __future__ import annotations

from router.policy.foreign import UNKNOWN, Origin, Servers, judge
from router.policy.selection import Health, NodeState, Role
from shard_config.identity import Identity


def node(
    system: int,
    *,
    primary: bool = False,
    says: str | None = None,
    started: float = 0.0,
    database: str = "x",
) -> NodeState:
    identity = None if says is None else Identity(says, 1, "")
    role = Role.PRIMARY if primary else Role.REPLICA
    return NodeState(Health.UP, role, 1, system=system, identity=identity, started=started, database=database)


def of(system: int, database: str = "x") -> Origin:
    return Origin(system, database)


def test_a_node_that_says_it_is_another_shard_is_foreign_even_if_the_system_is_the_same() -> None:
    verdict = judge("s0", [node(1, primary=True, says="s0"), node(1, says="s1")])
    assert verdict.foreign == {1: "it says that it is the shard s1"}
    assert verdict.origin == of(1)


def test_a_node_of_another_system_than_the_primary_is_foreign() -> None:
    for states in ([node(1, primary=True), node(2)], [node(2), node(1, primary=True)]):
        verdict = judge("s0", states)
        (index,) = verdict.foreign
        assert states[index].system == 2
        assert verdict.foreign[index] == "its system identifier is 2, and that of s0 is 1: it is no copy"
        assert verdict.origin == of(1)


def test_of_two_primaries_the_one_that_says_it_is_the_shard_is_right() -> None:
    assert set(judge("s0", [node(1, primary=True), node(2, primary=True, says="s0")]).foreign) == {0}


def test_where_nobody_can_tell_nobody_is_read() -> None:
    both = [node(1, primary=True), node(2, primary=True)]
    assert set(judge("s0", both).foreign) == {0, 1}
    assert set(judge("s0", [node(1), node(2)]).foreign) == {0, 1}
    both = [node(1, primary=True, says="s0"), node(2, primary=True, says="s0")]
    verdict = judge("s0", both)
    assert set(verdict.foreign) == {0, 1}
    assert "different systems, 1 and 2" in verdict.foreign[0]
    # But a router that has seen one of them as the primary before knows.
    assert set(judge("s0", both, known=of(2)).foreign) == {0}


def test_while_the_primary_is_away_a_stranger_is_not_taken_for_the_shard() -> None:
    down = NodeState(Health.DOWN, Role.PRIMARY, system=1)
    assert set(judge("s0", [down, node(2)], known=of(1), members=[0]).foreign) == {1}
    assert set(judge("s0", [down, node(2, primary=True)], known=of(1), members=[0]).foreign) == {1}


def test_a_shard_that_was_built_anew_is_taken_as_it_is_now() -> None:
    assert judge("s0", [node(2, primary=True)], known=of(1), members=[0]) == ({}, of(2))
    assert judge("s0", [node(2, primary=True, says="s0")], known=of(1)) == ({}, of(2))
    # Its old replica is no copy of it, and does not say which is right either.
    assert judge("s0", [node(2, primary=True), node(1)], known=of(1), members=[0, 1]).foreign.keys() == {0}


def test_a_server_that_says_nothing_does_not_take_the_place_of_a_shard_that_said_who_it_is() -> None:
    empty = judge("s0", [node(2, primary=True)], known=of(1), members=[0], identified=True)
    assert empty == ({0: "its system identifier is 2, and that of s0 is 1: it is no copy"}, of(1))
    anew = [node(2, primary=True, says="s0")]
    assert judge("s0", anew, known=of(1), members=[0], identified=True) == ({}, of(2))


def test_another_database_of_the_same_servers_is_foreign() -> None:
    for states in (
        [node(1, primary=True), node(1, database="y")],
        [node(1), node(1, database="y", says="s0"), node(1, primary=True)],
        [node(1, primary=True, says="s0"), node(1, primary=True, database="y")],
    ):
        wrong = next(index for index, state in enumerate(states) if state.database == "y")
        verdict = judge("s0", states)
        assert verdict == ({wrong: "its database is y, and that of s0 is x"}, of(1))
    verdict = judge("s0", [node(1), node(1, database="y")])
    assert set(verdict.foreign) == {0, 1}
    assert "different databases, x and y," in verdict.foreign[0]
    # Renamed, under a pooler that leads there by another name: the log is the same.
    assert judge("s0", [node(1, primary=True, database="y")], known=of(1), members=[0]) == ({}, of(1, "y"))


def test_whose_copies_the_replicas_are_only_a_primary_tells() -> None:
    assert judge("s0", [node(2)]) == ({}, UNKNOWN)
    # So the first to be asked does not decide.
    assert set(judge("s0", [node(2), node(1, primary=True)]).foreign) == {0}


def test_nodes_that_say_nothing_of_their_system_are_not_judged() -> None:
    assert judge("s0", [NodeState(), NodeState(Health.UP, Role.PRIMARY)]) == ({}, UNKNOWN)


def test_the_second_name_of_a_server_is_foreign_until_the_first_is_gone() -> None:
    servers: Servers[str] = Servers()
    servers.saw("a", 0, "s0-a", "s0", node(1, primary=True))
    assert servers.saw("b", 1, "s0-b", "s0", node(1, primary=True)) == {"a"}
    assert servers.twice("a") is None
    assert servers.twice("b") == "it is the server that is listed as s0-a of s0 already"
    assert servers.saw("a", 0, "s0-a", "s0", NodeState(Health.DOWN)) == {"b"}
    assert servers.twice("b") is None
    # It was started again meanwhile, and is asked under one name sooner than under the other.
    servers.saw("a", 0, "s0-a", "s0", node(1, primary=True, started=1.0))
    assert (servers.twice("a"), servers.twice("b")) == (None, None)
    servers.saw("b", 1, "s0-b", "s0", node(1, primary=True, started=1.0))
    assert servers.twice("b") is not None


def test_a_server_under_two_shards_is_the_one_that_it_says() -> None:
    servers: Servers[str] = Servers()
    servers.saw("a", 0, "s0-a", "s0", node(1, primary=True, says="s1"))
    servers.saw("b", 1, "s1-a", "s1", node(1, primary=True, says="s1"))
    assert servers.twice("a") == "it is the server that is listed as s1-a of s1 already"
    assert servers.twice("b") is None


def test_what_changes_a_verdict_is_told_and_what_does_not_is_not() -> None:
    servers: Servers[str] = Servers()
    says_nothing = node(1, primary=True)
    servers.saw("a", 0, "s0-a", "s0", says_nothing)
    servers.saw("b", 1, "s1-a", "s1", says_nothing)
    version = servers.version
    assert servers.saw("a", 0, "s0-a", "s0", says_nothing) == set()
    assert (servers.version, servers.twice("a")) == (version, None)
    # The same server, which says by now that it is the second shard.
    for name, number in (("s0", 0), ("s1", 1)):
        others = servers.saw("ab"[number], number, f"{name}-a", name, node(1, primary=True, says="s1"))
        assert others >= {"ba"[number]}
        assert servers.version > version
        version = servers.version
    assert servers.twice("a") is not None and servers.twice("b") is None


def test_copies_and_other_databases_are_servers_of_their_own() -> None:
    servers: Servers[str] = Servers()
    primary = node(1, primary=True, started=1.0)
    servers.saw("a", 0, "s0-a", "s0", primary)
    servers.saw("b", 1, "s0-b", "s0", node(1, started=2.0))
    servers.saw("c", 2, "s1-a", "s1", NodeState(**{**_fields(primary), "database": "y"}))  # type: ignore[arg-type]
    assert [servers.twice(key) for key in "abc"] == [None, None, None]


def _fields(state: NodeState) -> dict[str, object]:
    return {name: getattr(state, name) for name in state.__struct_fields__}
