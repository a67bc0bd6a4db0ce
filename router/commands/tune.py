"""`pgscatter tune`: measures recall and writes the ef_search that reaches a target into the map."""

from __future__ import annotations

import argparse
import asyncio
import sys
from datetime import date
from pathlib import Path
from typing import Any

import msgspec

from router.query.errors import RouterError
from router.schema.progress import Display, Meter
from router.settings import Settings
from router.topology import Topology
from router.tuning import Measured, TuningError, tune
from shard_config import MapError, load, parse
from shard_config.edit import Option, raise_version, set_search_options
from shard_config.model import Tuned

__all__ = ["add_parser"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "tune",
        help="find the ef_search that reaches a recall, and write it into the map",
        description="Takes rows of the collection as queries, computes their exact answers, and searches for"
        " the smallest ef_search whose recall reaches the target with 95 %% confidence.",
    )
    parser.add_argument("--map", required=True, type=Path, metavar="FILE", help="the shard map; it is edited")
    parser.add_argument("--collection", required=True, metavar="C")
    parser.add_argument("--target-recall", required=True, type=_share, metavar="R", help="such as 0.99")
    parser.add_argument("--k", type=_count, default=10, metavar="K", help="recall at K (default 10)")
    parser.add_argument("--queries", type=_count, default=500, metavar="N", help="(default 500)")
    parser.add_argument("--dry-run", action="store_true", help="leave the map as it is")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    try:
        measured = asyncio.run(_tune(args))
        said = (
            f"recall@{args.k} {measured.recall:.4f}, at least {measured.bound:.4f} with 95 % confidence,"
            f" over {measured.queries} queries"
        )
        if not args.dry_run:
            _write(args, _options(args, measured))
    except (MapError, TuningError, RouterError, OSError, ValueError) as exc:
        print(f"pgscatter tune: {exc}", file=sys.stderr)
        return 1
    where = "not written" if args.dry_run else f"written to {args.map}"
    print(f"{args.collection}: ef_search {measured.ef_search} ({said}), {where}")
    return 0


def _options(args: argparse.Namespace, measured: Measured) -> dict[str, Option]:
    shard_map = load(args.map)
    tuned = Tuned(
        args.target_recall,
        round(measured.recall, 4),
        round(measured.bound, 4),
        args.k,
        measured.queries,
        0,
        len(shard_map.shards_of(shard_map.collections[args.collection])),
        date.today(),
    )
    return {
        "ef_search": measured.ef_search,
        "target_recall": args.target_recall,
        "tuned": msgspec.structs.asdict(tuned),
    }


async def _tune(args: argparse.Namespace) -> Measured:
    shard_map = load(args.map)
    collection = shard_map.collections.get(args.collection)
    if collection is None:
        raise TuningError(f"no collection {args.collection} in {args.map}")
    topology = Topology(shard_map, Settings())
    await topology.open()
    try:
        with Display() as display:
            meters: dict[str, Meter] = {}

            def progress(what: str, done: int) -> None:
                if what not in meters:
                    meters[what] = display.meter(what, args.queries, "queries")
                meters[what].reach(done)

            return await tune(
                topology,
                collection,
                k=args.k,
                target=args.target_recall,
                queries=args.queries,
                progress=progress,
            )
    finally:
        await topology.close()


def _write(args: argparse.Namespace, options: dict[str, Option]) -> None:
    """Replace the map in one step, after the new text has proved to be a map."""
    text = raise_version(set_search_options(args.map.read_text(), args.collection, options))
    parse(text, str(args.map))
    fresh = args.map.with_name(args.map.name + ".new")
    fresh.write_text(text)
    fresh.replace(args.map)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 100_000:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 100000, got {text}")
    return value
