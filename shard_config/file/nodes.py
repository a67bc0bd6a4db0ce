"""Reads the `shards` part of a map; keeps that a server stands in one replica set, once."""

from __future__ import annotations

from shard_config import dsn, limits
from shard_config.file.reader import Cursor
from shard_config.model import Node, Shard

_NAME = "a name: a lower-case letter, then letters, digits, - and _, 63 at most"
_DSN = "postgresql://USER:PASSWORD@HOST:5432/DATABASE"


def read_shards(cursor: Cursor) -> dict[str, Shard]:
    """All shards that the file names, those with findings included."""
    entries = cursor.entries()
    if cursor.is_mapping and not entries:
        cursor.fail("expected at least one shard, such as `s0: {nodes: [{name: s0-a, dsn: ...}]}`")
    if len(entries) > limits.SHARDS:
        cursor.fail(f"{len(entries)} shards exceed {limits.SHARDS}")
    taken = _Taken()
    return {name: _shard(name, entry, taken) for name, entry in entries}


def check_name(name: str, cursor: Cursor) -> None:
    """Find fault with a key of the document that is no name."""
    if not limits.is_name(name):
        cursor.fail(f"expected {_NAME}, got {name[:70]!r}")


class _Taken:
    """Where each node name and each server was seen first."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.servers: dict[dsn.Server, str] = {}


def _shard(name: str, cursor: Cursor, taken: _Taken) -> Shard:
    check_name(name, cursor)
    nodes = cursor.section(("nodes",)).required("nodes", "[{name: s0-a, dsn: ...}]")
    items = nodes.items("nodes")
    if nodes.is_sequence and not items:
        nodes.fail("expected at least one node")
    return Shard(name=name, nodes=tuple(_node(item, taken) for item in items))


def _node(cursor: Cursor, taken: _Taken) -> Node:
    section = cursor.section(("name", "dsn", "zone", "patroni"))
    name_at = section.required("name", "s0-a")
    name = name_at.matching(limits.NAME, _NAME)
    if name is not None:
        first = taken.names.setdefault(name, name_at.path)
        if first != name_at.path:
            name_at.fail(f"the name {name_at.shown()} is taken by {first}")
    zone = section["zone"].matching(limits.ZONE, "a zone such as a or eu-1a")
    patroni = section["patroni"].matching(limits.PATRONI, "Patroni's REST API, such as http://10.0.0.11:8008")
    dsn = _dsn(section.required("dsn", _DSN), taken)
    return Node(name=name or "", dsn=dsn, zone=zone, patroni=patroni)


def _dsn(cursor: Cursor, taken: _Taken) -> str:
    text = cursor.string()
    if text is None:
        return ""
    try:
        server = dsn.server(text)
    except ValueError as exc:
        cursor.fail(str(exc))
        return ""
    first = taken.servers.setdefault(server, cursor.path)
    if first != cursor.path:
        cursor.fail(f"the same server as {first}; a server belongs to one replica set, once")
    return text
