"""`pgscatter cluster`: a cluster of real servers on this machine."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.local import MOST_REPLICAS, MOST_SHARDS, Cluster, ClusterError, CollectionsError
from router.commands.numbers import between

__all__ = ["add_parser"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("cluster", help="run PostgreSQL shards and Redis on this machine")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    up = verbs.add_parser("up", help="create or restart a cluster; returns when all is ready")
    up.add_argument("--shards", type=between((1, MOST_SHARDS)), required=True, metavar="N")
    up.add_argument(
        "--replicas",
        type=between((0, MOST_REPLICAS)),
        required=True,
        metavar="R",
        help="streaming replicas per shard",
    )
    up.add_argument(
        "--collections",
        type=Path,
        metavar="FILE",
        help="YAML with the `collections` of the map, and its `models` and `rerankers` if there are any",
    )
    up.set_defaults(run=_up)
    down = verbs.add_parser("down", help="stop every server; the data stays")
    down.set_defaults(run=_down)
    status = verbs.add_parser("status", help="show every server")
    status.add_argument("--json", action="store_true", help="print cluster.json as it is now")
    status.set_defaults(run=_status)
    for verb, text in (
        ("stop", "shut one server down cleanly"),
        ("start", "start one server again"),
        ("kill", "kill one server with SIGKILL"),
    ):
        one = verbs.add_parser(verb, help=text)
        one.add_argument("node", metavar="NODE", help="a node's name, or redis")
        one.set_defaults(run=_one)
    for verb_parser in verbs.choices.values():
        verb_parser.add_argument(
            "--dir", type=_directory, required=True, metavar="DIR", help="the cluster's directory"
        )


def _up(args: argparse.Namespace) -> int:
    started = time.monotonic()
    try:
        cluster = Cluster(args.dir, report=lambda line: print(line, file=sys.stderr))
        fresh = cluster.up(args.shards, args.replicas, args.collections)
    except CollectionsError as exc:
        print(exc, file=sys.stderr)
        return 2
    except (ClusterError, OSError) as exc:
        return _failed(exc)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from there", file=sys.stderr)
        return 130
    what = f"ready after {time.monotonic() - started:.1f} s" if fresh else "already running"
    print(f"{args.shards} shards with {args.replicas} replicas each, {what}: {cluster.map_path}")
    return 0


def _down(args: argparse.Namespace) -> int:
    try:
        Cluster(args.dir).down()
    except (ClusterError, OSError) as exc:
        return _failed(exc)
    return 0


def _status(args: argparse.Namespace) -> int:
    try:
        state = Cluster(args.dir).status()
    except (ClusterError, OSError) as exc:
        return _failed(exc)
    if args.json:
        print(json.dumps(asdict(state), indent=2))
        return 0
    servers = [(node.name, node.role, f"{node.host}:{node.port}", node.pid) for node in state.nodes]
    redis = state.redis
    for name, role, address, pid in (*servers, ("redis", "cache", f"{redis.host}:{redis.port}", redis.pid)):
        print(f"{name:8} {role:8} {address}  {f'pid {pid}' if pid else 'not running'}")
    return 0


def _one(args: argparse.Namespace) -> int:
    try:
        cluster = Cluster(args.dir)
        {"stop": cluster.stop, "start": cluster.start, "kill": cluster.kill}[args.verb](args.node)
    except (ClusterError, OSError) as exc:
        return _failed(exc)
    return 0


def _directory(text: str) -> Path:
    if not text:
        # Path("") is the current directory, which nobody means.
        raise argparse.ArgumentTypeError("expected a directory, got ''")
    return Path(text)


def _failed(exc: ClusterError | OSError) -> int:
    said = str(exc)
    if isinstance(exc, OSError) and exc.filename is not None:
        # Of a directory that is another account's, or on a disk that is full.
        said = f"{exc.filename}: {exc.strerror}"
    print(f"pgscatter cluster: {said}", file=sys.stderr)
    return 1
