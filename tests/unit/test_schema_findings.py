"""What is wrong with a shard's tables, and how badly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from router.postgres.rights import Held
from router.schema.check import _of_primaries
from router.schema.ddl import stored_types
from router.schema.findings import (
    Finding,
    NodeFacts,
    Severity,
    Versions,
    redacted,
    shard_findings,
    version_findings,
)
from router.schema.inspect import Found
from router.schema.minima import LEAST_PGVECTOR, LEAST_POSTGRESQL, WANTED_POSTGRESQL, shown
from shard_config.model import Collection
from tests.unit.shard_config_maps import document, parse
from tests.unit.test_schema_shape import HNSW, PRIMARY_KEY, collection, column, table

NEW = Versions(180004, "0.8.5", "0.8.5")
RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")


def held(*rights: str, **changes: Any) -> Held:
    base = Held(
        role="router",
        owner="boss",
        owns=False,
        analyzes=False,
        table=frozenset(rights),
        columns={name: frozenset(rights) for name in stored_types(collection())},
        schemas={"public": True},
        progress={},
    )
    return msgspec.structs.replace(base, **changes)


def facts(
    found: Found,
    node: str = "a",
    *,
    role: Held | None = None,
    versions: Versions = NEW,
    standby: bool = False,
) -> NodeFacts:
    return NodeFacts(
        node, standby, versions, {"documents": found}, {"documents": held(*RIGHTS) if role is None else role}
    )


def found(*nodes: NodeFacts, of: Collection | None = None) -> list[Finding]:
    return shard_findings("s0", [of or collection()], nodes, nodes=2)


def test_a_shard_as_the_map_says_has_no_findings() -> None:
    assert found(facts(table()), facts(table(), "b", standby=True)) == []


GONE = table(kind=None, columns={}, indexes=())


@pytest.mark.parametrize(
    ("nodes", "severity", "searchable", "says"),
    [
        ([facts(GONE)], Severity.ERROR, False, "lacks table public.documents"),
        ([facts(table(without="embedding"))], Severity.ERROR, False, "column embedding is missing"),
        ([facts(table(without="doc_id"))], Severity.ERROR, False, "column doc_id is missing"),
        ([facts(table(column("embedding", "vector(3)")))], Severity.ERROR, False, "embedding is vector(3)"),
        ([facts(table(column("embedding", "real[]")))], Severity.ERROR, False, "column embedding is real[]"),
        ([facts(table(column("embedding", "vector")))], Severity.ERROR, True, "column embedding is vector;"),
        ([facts(table(column("embedding", "halfvec(384)")))], Severity.ERROR, True, "is halfvec(384)"),
        ([facts(table(without="price"))], Severity.ERROR, True, "column price is missing"),
        ([facts(table(indexes=(HNSW,)))], Severity.ERROR, True, "no unique index of its own"),
        (
            [facts(table(indexes=(PRIMARY_KEY,)))],
            Severity.WARNING,
            True,
            "lacks index documents_embedding_hnsw",
        ),
        (
            [facts(table(indexes=(PRIMARY_KEY, msgspec.structs.replace(HNSW, options={"m": "8"}))))],
            Severity.WARNING,
            True,
            "index anything has m 8 instead of 16",
        ),
        (
            [
                facts(
                    table(
                        indexes=(
                            PRIMARY_KEY,
                            HNSW,
                            msgspec.structs.replace(HNSW, name="other", opclass="vector_l2_ops"),
                        )
                    )
                )
            ],
            Severity.WARNING,
            True,
            "index other (hnsw, vector_l2_ops) serves no search, for which it would be over embedding"
            " vector_cosine_ops",
        ),
        (
            [
                facts(
                    table(
                        indexes=(PRIMARY_KEY, HNSW, msgspec.structs.replace(HNSW, name="o", method="ivfflat"))
                    )
                )
            ],
            Severity.WARNING,
            True,
            "index o (ivfflat, vector_cosine_ops) may be scanned instead of the map's",
        ),
        (
            [facts(table(indexes=(PRIMARY_KEY, HNSW, msgspec.structs.replace(HNSW, name="o", valid=False))))],
            Severity.WARNING,
            True,
            "index o is left over from a build that failed",
        ),
        (
            [facts(table(indexes=(PRIMARY_KEY,), loading=True))],
            Severity.NOTE,
            True,
            "lacks index documents_embedding_hnsw while a load is at work on the table",
        ),
        ([facts(table(policed=True))], Severity.NOTE, True, "policies may hide rows of public.documents"),
        ([facts(table(), role=held("SELECT"))], Severity.NOTE, True, "role router may read, but not write"),
        (
            [facts(table(), role=held(*RIGHTS[:3]))],
            Severity.ERROR,
            True,
            "the role lacks a right: GRANT DELETE ON public.documents TO router",
        ),
        (
            [facts(table(), versions=Versions(120009, "0.8.5", "0.8.5"))],
            Severity.ERROR,
            True,
            "PostgreSQL 12.9; right would be 13 or newer",
        ),
        (
            [facts(table(), versions=Versions(130009, "0.8.5", "0.8.5"))],
            Severity.WARNING,
            True,
            "PostgreSQL 13.9 goes on with statements of a router that is gone",
        ),
        (
            [facts(table(vector="0.7.4"), versions=Versions(170000, "0.7.4", "0.7.4"))],
            Severity.ERROR,
            True,
            "version 0.7.4; right would be 0.8 or newer",
        ),
        (
            [facts(table(), versions=Versions(170000, "0.8.0", "0.8.5"))],
            Severity.WARNING,
            True,
            "version 0.8.0, and the server has the files of 0.8.5; run: ALTER EXTENSION vector UPDATE",
        ),
        (
            [facts(table(), versions=Versions(170000, "0.8.5", None))],
            Severity.ERROR,
            True,
            "but the server has no files of it",
        ),
    ],
)
def test_each_fault_has_its_severity_and_says_whether_searches_go_on(
    nodes: list[NodeFacts], severity: Severity, searchable: bool, says: str
) -> None:
    (finding,) = found(*nodes)
    assert (finding.severity, finding.searchable) == (severity, searchable)
    assert says in finding.message


def test_a_role_that_may_not_read_what_every_search_reads_cannot_search() -> None:
    one, *_ = found(facts(table(), role=held()))
    assert (one.severity, one.searchable) == (Severity.ERROR, False)
    assert "GRANT SELECT ON public.documents TO router" in one.message
    role = held("SELECT")
    without_price = msgspec.structs.replace(role, columns={**role.columns, "price": frozenset()})
    one = found(facts(table(), role=without_price))[0]
    assert (one.searchable, one.message) == (
        True,
        "the role lacks a right: GRANT SELECT (price) ON public.documents TO router",
    )
    hidden = held(*RIGHTS, schemas={"public": False})
    assert not found(facts(table(), role=hidden))[0].searchable


def test_what_all_nodes_have_is_said_once_and_else_the_nodes_are_named() -> None:
    wrong, fine = table(without="price"), table()
    (everywhere,) = found(facts(wrong), facts(wrong, "b", standby=True))
    assert everywhere.nodes == ()
    (somewhere,) = found(facts(fine), facts(wrong, "b", standby=True))
    assert somewhere.nodes == ("b",)
    assert str(somewhere).startswith("error: documents: column price is missing")
    assert str(somewhere).endswith("(on b)")


def test_what_is_at_work_on_the_primary_excuses_the_replicas() -> None:
    """A replica knows neither of the lock of a load nor of a build that is under way."""
    lacking = (PRIMARY_KEY,)
    (note,) = found(
        facts(table(indexes=lacking, loading=True)), facts(table(indexes=lacking), "b", standby=True)
    )
    assert (note.severity, note.nodes) == (Severity.NOTE, ())
    begun = msgspec.structs.replace(HNSW, valid=False)
    building = msgspec.structs.replace(begun, building=True)
    (note,) = found(
        facts(table(indexes=(PRIMARY_KEY, building))),
        facts(table(indexes=(PRIMARY_KEY, begun)), "b", standby=True),
    )
    assert (note.severity, note.nodes) == (Severity.NOTE, ())
    assert note.message == "index anything is being built by another session"


def test_a_text_key_that_is_not_compared_by_code_point_is_noted() -> None:
    sharding = {"strategy": "list", "key": "tenant", "placement": {"s0": ["a"], "s1": ["b"]}}
    by_tenant = parse(document(**sharding)).collections["documents"]
    tenants = msgspec.structs.replace(PRIMARY_KEY, name="t", keys=("tenant_id",), unique=False)
    for collation, said in (("C", []), (None, []), ("en_US", ["note"])):
        key = msgspec.structs.replace(column("tenant_id", "text"), collation=collation)
        notes = found(facts(table(key, indexes=(PRIMARY_KEY, HNSW, tenants))), of=by_tenant)
        assert [str(one.severity) for one in notes] == said


def test_versions_that_differ_between_nodes_are_told_of_the_older() -> None:
    old = Versions(170009, "0.8.0", "0.8.5")
    minor = Versions(180001, "0.8.5", "0.8.5")
    told = version_findings({("s0", "a"): NEW, ("s1", "b"): old, ("s2", "c"): minor})
    assert [(one.shard, one.nodes, str(one.severity), one.message) for one in told] == [
        ("s1", ("b",), "warning", "PostgreSQL 17.9, where other nodes run 18.4"),
        ("s1", ("b",), "warning", "the extension vector is of version 0.8.0, where other nodes have 0.8.5"),
        ("s2", ("c",), "note", "PostgreSQL 18.1, where other nodes run 18.4"),
    ]
    assert version_findings({("s0", "a"): NEW, ("s1", "b"): NEW}) == []


def test_what_is_told_without_detail_names_no_table_and_no_node() -> None:
    several = found(facts(table()), facts(table(without="price"), "node-b")) + found(
        facts(table(without="embedding")), facts(table(without="embedding"), "node-b")
    )
    told = redacted(several)
    assert [(one.shard, one.severity, one.collection, one.searchable) for one in told] == [
        ("s0", Severity.ERROR, "documents", True),
        ("s0", Severity.ERROR, "documents", False),
    ]
    assert not any(word in str(told) for word in ("price", "embedding", "node-b"))


def test_the_oldest_servers_are_documented_as_they_are_checked() -> None:
    text = (Path(__file__).parents[2] / "docs" / "postgresql.md").read_text()
    assert f"PostgreSQL {LEAST_POSTGRESQL} or newer, better {WANTED_POSTGRESQL}" in text
    assert f"pgvector {shown(LEAST_PGVECTOR)} or newer" in text


def test_a_shard_has_one_primary() -> None:
    one, other = facts(table()), facts(table(), "b")
    standbys = [facts(table(), name, standby=True) for name in "ab"]
    assert _of_primaries("s0", [one, standbys[1]]) == _of_primaries("s0", []) == []
    (two,) = _of_primaries("s0", [one, other])
    assert (two.severity, two.nodes) == (Severity.ERROR, ("a", "b"))
    assert two.message == "more than one node says that it is the primary"
    (none,) = _of_primaries("s0", standbys)
    assert (none.severity, none.message) == (
        Severity.ERROR,
        "no primary among the nodes that could be asked",
    )
