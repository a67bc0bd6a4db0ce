"""`pgscatter load`: a file of vectors or documents into a collection."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

from router.bulk.errors import LoadError
from router.bulk.load import Options, Summary, load
from router.bulk.sources import is_hdf5
from router.commands.numbers import natural, positive, real
from router.commands.schema import add_build_flags, build_limits, collections_of
from router.terminal import Display
from shard_config.file import codec
from shard_config.file.problems import MapError

__all__ = ["add_parser"]

_AGAIN = "what was loaded stays; the same command goes on from there"


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "load",
        help="load a file into a collection",
        description="Load a file into a collection by parallel COPY. Interrupted, whatever by, the same"
        " command goes on where it was. The index of an empty table is built after its rows are in.",
    )
    parser.add_argument(
        "source", metavar="SOURCE", type=Path, help="a file: .npy, .hdf5, .h5, .jsonl, .ndjson or .parquet"
    )
    parser.add_argument("--map", required=True, metavar="FILE", help="the shard map")
    parser.add_argument("--collection", required=True, metavar="C")
    parser.add_argument(
        "--chunk-rows", type=positive, metavar="N", help="rows read and committed together (default: by size)"
    )
    parser.add_argument(
        "--jobs",
        type=positive,
        default=Options().jobs,
        metavar="N",
        help="connections per shard (default: %(default)s)",
    )
    parser.add_argument("--dataset", metavar="NAME", help=f"of an HDF5 file (default: {Options().dataset})")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N rows")
    parser.add_argument(
        "--skip-bad", type=natural, default=0, metavar="N", help="leave out up to N bad rows (default: 0)"
    )
    parser.add_argument(
        "--embed-timeout",
        type=real("seconds", 1, 86_400),
        default=Options().embed_patience,
        metavar="SECONDS",
        help="end when the service that makes vectors of texts has failed for so long (default: %(default)g)",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="forget what was loaded of this file, for instance after deleting it",
    )
    parser.add_argument("--no-index", action="store_true", help="leave the index to `pgscatter schema apply`")
    add_build_flags(parser)
    parser.set_defaults(run=run_load, parser=parser)


def run_load(args: argparse.Namespace) -> int:
    if args.dataset is not None and not is_hdf5(args.source):
        args.parser.error(f"--dataset: only HDF5 files (.hdf5, .h5) have some, and {args.source} is none")
    options = Options(
        chunk_rows=args.chunk_rows,
        jobs=args.jobs,
        dataset=Options().dataset if args.dataset is None else args.dataset,
        limit=args.limit,
        skip_bad=args.skip_bad,
        embed_patience=args.embed_timeout,
        restart=args.restart,
        index=not args.no_index,
        build=build_limits(args),
    )
    try:
        shard_map = codec.load(args.map)
        (collection,) = collections_of(shard_map, args.collection)
    except (MapError, LookupError) as exc:
        return _failed(str(exc) if isinstance(exc, MapError) else exc.args[0])
    try:
        with Display() as display:
            summary = asyncio.run(load(shard_map, collection, args.source, options, display))
    except LoadError as exc:
        return _failed(*exc.lines, *([_AGAIN] if exc.begun else []))
    except KeyboardInterrupt:
        _failed(f"interrupted; {_AGAIN}")
        return 130
    return _report(summary)


def _failed(*lines: str) -> int:
    for line in lines:
        print(line, file=sys.stderr)
    return 1


def _report(summary: Summary) -> int:
    for line in summary.notes:
        print(f"note: {line}")
    if summary.skipped:
        print(f"left out {summary.skipped:,} bad rows")
        for line in summary.skipped_lines:
            print(f"  {line}")
    reachable = [lag for lag in summary.late if lag.reachable]
    for lag in summary.late:
        if not lag.reachable:
            print(f"note: {lag.shard}: not waited for: {lag.reason}")
    print(_result(summary))
    for lag in reachable:
        print(f"{lag.shard}: {lag.reason}: searches there do not see all rows yet", file=sys.stderr)
    return 1 if reachable else 0


def _result(summary: Summary) -> str:
    if summary.idle:
        return f"nothing to do: all {summary.earlier:,} rows were loaded before"
    speed = summary.rows / max(summary.copy_seconds, 1e-6)
    shards = ", ".join(f"{shard} {rows:,}" for shard, rows in summary.copied.items())
    more = f"; {summary.earlier:,} were there from before" if summary.earlier else ""
    return (
        f"loaded {summary.rows:,} rows in {summary.copy_seconds:.1f} s ({speed:,.0f} rows/s),"
        f" ready after {summary.seconds:.1f} s: {shards}{more}"
    )
