"""`pgscatter map`: validate, show and ask a shard map without any server, and check it against its shards."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from router.postgres.dsn_files import file_complaints
from router.terminal import Display
from shard_config import partition, values
from shard_config.dsn import redact
from shard_config.file import codec
from shard_config.file.schema import json_schema
from shard_config.file.view import as_runs
from shard_config.metadata_path import spelled
from shard_config.model import Collection, HashSharding, ListSharding, RangePart, RangeSharding, ShardMap

__all__ = ["add_parser"]

_LISTED = 8  # values or ranges of one shard that a cell of the table lists


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("map", help="check, show and ask a shard map")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    validate = verbs.add_parser("validate", help="report everything that is wrong with a map")
    validate.set_defaults(run=_validate)
    show = verbs.add_parser("show", help="show shards, nodes, collections and placement")
    show.add_argument("--json", action="store_true", help="the whole map as JSON, without passwords")
    show.set_defaults(run=_show)
    locate = verbs.add_parser("locate", help="say which shard holds a key or a document")
    locate.add_argument("--collection", required=True, metavar="C")
    what = locate.add_mutually_exclusive_group(required=True)
    what.add_argument("--key", metavar="VALUE", help="a value of the sharding key")
    what.add_argument("--id", metavar="VALUE", help="the id of a document")
    locate.set_defaults(run=_locate)
    for verb in (validate, show, locate):
        verb.add_argument("file", metavar="FILE", help="the shard map")
    check = verbs.add_parser(
        "check",
        help="compare a map with what lies on its shards",
        description="Ask every node which shard it is, and read every row's key on the shards: the exit"
        " status is 1 if a node or a row is not where the map says. Changes nothing; a role that may SELECT"
        " will do.",
    )
    check.add_argument("--map", dest="file", required=True, metavar="FILE", help="the shard map")
    check.set_defaults(run=_check)
    schema = verbs.add_parser("schema", help="print the JSON Schema of the format, for editors")
    schema.set_defaults(run=_schema)


def _validate(args: argparse.Namespace) -> int:
    shard_map = _load(args.file)
    if shard_map is None:
        return 1
    for found in codec.about_dsns(codec.read(args.file), args.file, shard_map, file_complaints):
        # They may be there where the router runs.
        print(msgspec.structs.replace(found, path=f"warning: {found.path}"), file=sys.stderr)
    counts = (
        _count(len(shard_map.shards), "shard"),
        _count(sum(len(shard.nodes) for shard in shard_map.shards.values()), "node"),
        _count(len(shard_map.collections), "collection"),
    )
    print(f"{args.file}: valid; version {shard_map.version}, {', '.join(counts)}")
    return 0


def _show(args: argparse.Namespace) -> int:
    shard_map = _load(args.file)
    if shard_map is None:
        return 1
    if args.json:
        print(json.dumps(codec.to_json(shard_map), indent=2))
        return 0
    # A file or a pipe has no width to fit in, and a cut-off DSN is of no use there.
    console = Console() if sys.stdout.isatty() else Console(width=240)
    console.print(f"Shard map, version {shard_map.version}", highlight=False)
    console.print(_nodes_table(shard_map))
    for collection in shard_map.collections.values():
        console.print(f"\n{_summary(collection)}", markup=False, highlight=False)
        console.print(_placement_table(collection))
    return 0


def _schema(args: argparse.Namespace) -> int:
    print(json.dumps(json_schema(), indent=2))
    return 0


def _locate(args: argparse.Namespace) -> int:
    shard_map = _load(args.file)
    if shard_map is None:
        return 1
    collection = shard_map.collections.get(args.collection)
    if collection is None:
        known = ", ".join(shard_map.collections) or "none"
        return _failed(f"no collection {args.collection!r} in {args.file}; it has {known}")
    sharding = collection.sharding
    if args.id is not None and not collection.sharded_by_id:
        return _failed(
            f"an id alone does not say where a document of {collection.name} is: "
            f"documents are placed by {sharding.key.name}, so give --key"
        )
    try:
        value = values.from_text(sharding.key.type, args.id if args.key is None else args.key)
        shard = partition.locate(sharding, value)
    except ValueError as exc:
        return _failed(str(exc))
    print(f"shard: {shard}")
    if isinstance(sharding, HashSharding):
        print(f"bucket: {partition.bucket(sharding, value)} of {sharding.buckets}")
    return 0


def _check(args: argparse.Namespace) -> int:
    # Imported here, because no other verb talks to servers.
    from router.schema.placed import check

    shard_map = _load(args.file)
    if shard_map is None:
        return 1
    with Display() as display:
        findings = asyncio.run(check(shard_map, display))
    for finding in findings:
        for line in finding.lines:
            print(f"{finding.shard}: {line}")
        for line in finding.errors:
            print(f"{finding.shard}: {line}", file=sys.stderr)
    if any(finding.errors for finding in findings):
        return 1
    print(f"every row that {args.file} speaks of is where it says")
    return 0


def _load(path: str) -> ShardMap | None:
    try:
        return codec.load(path)
    except codec.MapError as exc:
        _failed(str(exc))
        return None


def _failed(reason: str) -> int:
    print(reason, file=sys.stderr)
    return 1


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _nodes_table(shard_map: ShardMap) -> Table:
    table = Table("shard", "node", "zone", "server")
    for shard in shard_map.shards.values():
        for node in shard.nodes:
            table.add_row(shard.name, node.name, node.zone or "", escape(redact(node.dsn)))
    return table


def _summary(collection: Collection) -> str:
    vector, sharding = collection.vector, collection.sharding
    match sharding:
        case HashSharding():
            placed = f"{sharding.buckets} buckets by the hash of"
        case ListSharding():
            placed = "placed by the listed values of"
        case RangeSharding():
            placed = "placed by ranges of"
    return (
        f"Collection {collection.name}: table {collection.table}, "
        f"{vector.type}({vector.dimensions}) by {vector.metric}, "
        f"quantization {collection.index.quantization}, {placed} {sharding.key.name}{_indexed(collection)}"
    )


def _indexed(collection: Collection) -> str:
    """What filters have indexes on."""
    named = [column.name for column in collection.columns.values() if column.index]
    named += [f"metadata.{spelled(path)} ({kind})" for path, kind in collection.metadata_indexes.items()]
    return f", indexes on {', '.join(named)}" if named else ""


def _placement_table(collection: Collection) -> Table:
    table = Table("shard", "holds")
    for shard, holds in _placement(collection).items():
        more = f" and {len(holds) - _LISTED} more" if len(holds) > _LISTED else ""
        table.add_row(shard, escape("; ".join(holds[:_LISTED]) + more))
    return table


def _placement(collection: Collection) -> dict[str, list[str]]:
    """What each shard holds, in words."""
    sharding = collection.sharding
    held: dict[str, list[str]] = {name: [] for name in partition.shard_names(sharding)}
    match sharding:
        case HashSharding():
            for name, runs in held.items():
                runs += as_runs(at for at, owner in enumerate(sharding.placement) if owner == name)
        case ListSharding():
            for value, name in sharding.values.items():
                held[name].append(str(value))
            if sharding.default is not None:
                held[sharding.default].insert(0, "all others")
        case RangeSharding():
            for part in sharding.parts:
                held[part.shard].append(_interval(part))
    return held


def _interval(part: RangePart) -> str:
    ends = [] if part.lower is None else [f"from {part.lower}"]
    ends += [] if part.upper is None else [f"below {part.upper}"]
    return ", ".join(ends) or "everything"
