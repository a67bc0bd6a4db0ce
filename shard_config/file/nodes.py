"""The `shards` part of a map; its reader keeps that a server stands in one replica set, once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shard_config import dsn, limits
from shard_config.file.fields import Field, schema_of, shown, text, text_of, values
from shard_config.file.reader import Cursor, repeated
from shard_config.file.view import escaped
from shard_config.model import Node, Shard

_NAME = "a name: a lower-case letter, then letters, digits, - and _, 63 at most"


def _read_dsn(cursor: Cursor) -> str | None:
    text = cursor.string()
    if text is None:
        return None
    wrong = dsn.complaints(text)
    for complaint in wrong:
        cursor.fail(complaint)
    return None if wrong else text


def _read_nodes(cursor: Cursor) -> tuple[Node, ...]:
    items = cursor.items("nodes")
    if cursor.is_sequence and not items:
        cursor.fail("expected at least one node")
    return tuple(Node(**values(item, NODE)) for item in items)


NODE = {
    "name": text(limits.NAME, _NAME, "Unique over the whole map.").required("s0-a"),
    "dsn": Field(
        _read_dsn,
        text_of(r"postgres(?:ql)?://.+"),
        help="postgresql://USER:${PASSWORD}@HOST:PORT/DATABASE",
        show=lambda value: escaped(dsn.redact(value)),
    ).required("postgresql://USER:PASSWORD@HOST:5432/DATABASE"),
    "zone": text(
        limits.ZONE, "a zone such as a or eu-1a", "Where the node runs; readers prefer their own zone."
    ),
    "patroni": text(
        limits.PATRONI,
        "Patroni's REST API, such as http://10.0.0.11:8008",
        "The REST API of the node's Patroni: a second word on who leads.",
    ),
}
SHARD = {
    "nodes": Field(
        _read_nodes,
        {"type": "array", "items": schema_of(NODE), "minItems": 1},
        show=lambda nodes: [shown(node, NODE) for node in nodes],
    ).required("[{name: s0-a, dsn: ...}]"),
}


def read_shards(cursor: Cursor) -> dict[str, Shard]:
    """All shards that the file names, those with findings included."""
    entries = cursor.entries()
    if cursor.is_mapping and not entries:
        cursor.fail("expected at least one shard, such as `s0: {nodes: [{name: s0-a, dsn: ...}]}`")
    if len(entries) > limits.SHARDS:
        cursor.fail(f"{len(entries)} shards exceed {limits.SHARDS}")
    shards = {name: _shard(name, entry) for name, entry in entries}
    nodes = [
        (node, at)
        for name, entry in entries
        for node, at in zip(shards[name].nodes, entry["nodes"].items(), strict=False)
    ]
    for _, at, first in repeated((node.name, at["name"]) for node, at in nodes):
        at.fail(f"the name {at.shown()} is taken by {first}")
    servers = ((node.dsn and dsn.server(node.dsn), at["dsn"]) for node, at in nodes)
    for _, at, first in repeated(servers):
        at.fail(f"the same server as {first}; a server belongs to one replica set, once")
    return shards


def show_shards(shards: Mapping[str, Shard]) -> dict[str, Any]:
    """As the file has them."""
    return {name: shown(shard, SHARD) for name, shard in shards.items()}


def check_name(name: str, cursor: Cursor) -> None:
    """Find fault with a key of the document that is no name."""
    if not limits.is_name(name):
        cursor.fail(f"expected {_NAME}, got {name[:70]!r}")


def _shard(name: str, cursor: Cursor) -> Shard:
    check_name(name, cursor)
    return Shard(name, **values(cursor, SHARD))
