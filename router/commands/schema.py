"""`pgscatter schema apply` and `check`: tables and indexes on every shard."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import to_builtins

from router.commands.numbers import natural, positive
from router.schema.apply import ShardResult, apply
from router.schema.build import BuildLimits
from router.schema.check import check
from router.schema.findings import Severity
from router.terminal import Display
from shard_config.file.codec import load
from shard_config.file.problems import MapError
from shard_config.model import Collection, ShardMap

__all__ = ["add_build_flags", "add_parser", "build_limits", "collections_of"]


def add_parser(subparsers: Any) -> None:
    schema = subparsers.add_parser("schema", help="tables and indexes on the shards")
    verbs = schema.add_subparsers(dest="verb", required=True, metavar="VERB")
    parser = verbs.add_parser(
        "apply",
        help="create what the map's collections lack on their shards",
        description="Create the extension, tables and indexes that are missing on the primary of every shard."
        " A table that exists is used if its shape fits, and refused with all reasons if it does not; as long"
        " as one is refused, nothing is changed anywhere.",
    )
    parser.add_argument("--map", required=True, metavar="FILE", help="the shard map")
    parser.add_argument("--collection", metavar="C", help="only this collection (default: all)")
    parser.add_argument("--no-index", action="store_true", help="leave out the HNSW index")
    add_build_flags(parser)
    parser.set_defaults(run=run_apply)
    parser = verbs.add_parser(
        "check",
        help="say what is wrong with the map's collections on their shards",
        description="Compare every node of the map, primaries and replicas, with the map: tables, columns,"
        " indexes, rights and versions; changes nothing. The exit status is 1 if something is wrong or cannot"
        " be asked.",
    )
    parser.add_argument("--map", required=True, metavar="FILE", help="the shard map")
    parser.add_argument("--collection", metavar="C", help="only this collection (default: all)")
    parser.add_argument("--json", action="store_true", help="print nodes and findings as JSON")
    parser.set_defaults(run=run_check)


def add_build_flags(parser: argparse.ArgumentParser) -> None:
    """What bounds the building of an index over rows that exist."""
    parser.add_argument(
        "--index-memory",
        type=positive,
        default=1024,
        metavar="MIB",
        help="memory that the build of an index may take on a server, if it needs it (default: %(default)s)",
    )
    parser.add_argument(
        "--index-workers",
        type=natural,
        metavar="N",
        help="parallel workers of a build (default: the server's max_parallel_maintenance_workers)",
    )


def build_limits(args: argparse.Namespace) -> BuildLimits:
    return BuildLimits(memory_bytes=args.index_memory << 20, workers=args.index_workers)


def collections_of(shard_map: ShardMap, name: str | None) -> Sequence[Collection]:
    """The one that is named, or all.

    Raises:
        LookupError: the map has no such collection.
    """
    if name is None:
        return list(shard_map.collections.values())
    if name not in shard_map.collections:
        known = ", ".join(shard_map.collections) or "none"
        raise LookupError(f"no collection {name!r} in the map; it has {known}")
    return [shard_map.collections[name]]


def run_apply(args: argparse.Namespace) -> int:
    try:
        shard_map, collections = _read(args)
        with Display() as display:
            results = asyncio.run(
                apply(
                    shard_map, collections, display, with_index=not args.no_index, limits=build_limits(args)
                )
            )
    except (MapError, LookupError) as exc:
        return _refused(exc)
    except KeyboardInterrupt:
        print("interrupted; what was done stays, and running it again does the rest", file=sys.stderr)
        return 130
    return _print_all(results)


def run_check(args: argparse.Namespace) -> int:
    try:
        shard_map, collections = _read(args)
        with Display() as display:
            report = asyncio.run(check(shard_map, collections, display))
    except (MapError, LookupError) as exc:
        return _refused(exc)
    for finding in report.findings:
        if finding.severity is not Severity.NOTE:
            print(f"{finding.shard}: {finding}", file=sys.stderr)
    if args.json:
        print(
            msgspec.json.format(msgspec.json.encode({"ok": not report.wrong, **to_builtins(report)})).decode()
        )
        return int(report.wrong)
    for shard in dict.fromkeys(node.shard for node in report.nodes):
        found = [finding for finding in report.findings if finding.shard == shard]
        for finding in found:
            if finding.severity is Severity.NOTE:
                print(f"{shard}: {finding}")
        if all(finding.severity is Severity.NOTE for finding in found):
            asked = [node for node in report.nodes if node.shard == shard]
            print(f"{shard}: as the map says, on {len(asked)} node{'s' if len(asked) > 1 else ''}")
    return int(report.wrong)


def _read(args: argparse.Namespace) -> tuple[ShardMap, Sequence[Collection]]:
    shard_map = load(args.map)
    return shard_map, collections_of(shard_map, args.collection)


def _refused(exc: MapError | LookupError) -> int:
    print(exc if isinstance(exc, MapError) else exc.args[0], file=sys.stderr)
    return 1


def _print_all(results: Sequence[ShardResult]) -> int:
    for result in results:
        _print(result)
    return 1 if any(result.errors for result in results) else 0


def _print(result: ShardResult) -> None:
    for line in result.done:
        print(f"{result.shard}: {line}")
    for line in result.notes:
        print(f"{result.shard}: note: {line}")
    for line in result.errors:
        print(f"{result.shard}: {line}", file=sys.stderr)
    if not result.done and not result.errors:
        print(f"{result.shard}: nothing to do")
