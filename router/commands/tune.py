"""`pgscatter tune`: measures recall and writes the ef_search that reaches a target into the map."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import msgspec

from router.commands.numbers import between, real
from router.commands.search import json_object
from router.query.errors import RouterError
from router.query.filter import parse as parse_filter
from router.recall.index_gain import Gain, index_gains
from router.recall.reading import TuningError
from router.recall.tuning import Tuned, queries_by_default, said, tune
from router.settings import Settings
from router.terminal import Display, Meter
from router.topology import Parts, Snapshot, Topology
from shard_config import Collection, MapError, ShardMap, limits, load, model, parse
from shard_config.file.edit import Option, raise_version, set_search_options
from shard_config.file.replace import TextFile, check_replaceable

__all__ = ["add_parser"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "tune",
        help="find the ef_search that reaches a recall, and write it into the map",
        description="Takes rows of each collection as queries, computes their exact answers, with filters and"
        " without, and searches for the smallest ef_search whose recall reaches the target with 95 %"
        " confidence.",
    )
    parser.add_argument("--map", required=True, type=Path, metavar="FILE", help="the shard map; it is edited")
    parser.add_argument(
        "--collection",
        metavar="C",
        help="only this one (default: every one with a target in the map, or all with --target-recall)",
    )
    parser.add_argument(
        "--target-recall",
        type=real("a number", *limits.TARGET_RECALL),
        metavar="R",
        help="such as 0.99; written to the map as well (default: search.target_recall of the map)",
    )
    parser.add_argument(
        "--k", type=between(limits.MAX_K), default=10, metavar="K", help="recall at K (default 10)"
    )
    parser.add_argument(
        "--queries",
        type=between(limits.TUNE_QUERIES),
        metavar="N",
        help="(default 500, and more where the target needs them)",
    )
    parser.add_argument(
        "--filter",
        type=json_object,
        action="append",
        default=[],
        metavar="JSON",
        help="a filter with which the target must be reached as well; may be given several times",
    )
    parser.add_argument("--dry-run", action="store_true", help="leave the map as it is")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    """Tune the collections, and write the map once: those that reached no target keep what they had."""
    try:
        shard_map = load(args.map)
        targets = _targets(args, shard_map)
        if not args.dry_run:
            check_replaceable(args.map)  # now, since measuring takes minutes
        tuned, gains, failures = asyncio.run(_tune(args, shard_map, targets))
    except (MapError, TuningError, RouterError, OSError, ValueError) as exc:
        print(f"pgscatter tune: {str(exc) or 'timed out'}", file=sys.stderr)
        return 1
    where = "not written"
    if tuned and not args.dry_run:
        try:
            options = {name: _options(args, shard_map, targets, name, tuned[name]) for name in tuned}
            _write(args.map, shard_map, options)
            where = f"written to {args.map}"
        except (MapError, OSError, ValueError) as exc:
            failures.append(str(exc))
    for name, found in tuned.items():
        print(f"{name}: ef_search {found.ef_search}, {where}")
        for case in found.cases:
            print(f"  recall@{args.k} {case}")
        for gain in gains.get(name, []):
            print(f"  {gain}")
    for failure in failures:
        print(f"pgscatter tune: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _targets(args: argparse.Namespace, shard_map: ShardMap) -> dict[str, float]:
    """The recall to reach, by collection.

    Raises:
        TuningError: there is no such collection, or neither the flag nor the map names a recall.
    """
    if args.collection is not None and args.collection not in shard_map.collections:
        raise TuningError(f"no collection {args.collection} in {args.map}")
    names = [args.collection] if args.collection is not None else list(shard_map.collections)
    targets = {name: args.target_recall or shard_map.collections[name].search.target_recall for name in names}
    wanted = {name: target for name, target in targets.items() if target is not None}
    if not wanted:
        which = f"{names[0]} has no" if args.collection is not None else "no collection has a"
        raise TuningError(f"{which} search.target_recall in {args.map}; give --target-recall")
    return wanted


async def _tune(
    args: argparse.Namespace, shard_map: ShardMap, targets: dict[str, float]
) -> tuple[dict[str, Tuned], dict[str, list[Gain]], list[str]]:
    """What was found for each collection, which indexes would help its filters, and what failed and why."""
    tuned: dict[str, Tuned] = {}
    gains: dict[str, list[Gain]] = {}
    failures: list[str] = []
    settings = Settings(recall_sample_rate=0, hedge_quantile=0, schema_check_interval=0)
    topology = Topology(shard_map, Parts(shard_map, settings))
    await topology.open()
    # Without them, nothing bounds how far a scan with a filter goes.
    await topology.parts.statistics.read()
    try:
        with Display() as display:
            for name, target in targets.items():
                collection, router = shard_map.collections[name], topology.snapshot
                try:
                    tuned[name] = await _tune_one(args, router, settings, collection, target, display)
                    filters = [(said(raw), parse_filter(collection, raw, settings)) for raw in args.filter]
                    display.say(f"{name}: timing filters that have no index")
                    gains[name] = await index_gains(
                        router, collection, filters, args.k, tuned[name].ef_search
                    )
                except (TuningError, RouterError) as exc:
                    failures.append(str(exc))
    finally:
        await topology.close()
    return tuned, gains, failures


async def _tune_one(
    args: argparse.Namespace,
    router: Snapshot,
    settings: Settings,
    collection: Collection,
    target: float,
    display: Display,
) -> Tuned:
    meters: dict[str, Meter] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in meters:
            meters[what] = display.meter(what, total, "queries")
        meters[what].reach(done)
        if done == total:
            meters.pop(what).end()

    return await tune(
        router,
        collection,
        settings,
        k=args.k,
        target=target,
        queries=args.queries or queries_by_default(target),
        filters=args.filter,
        progress=progress,
        tell=display.say,
    )


def _options(
    args: argparse.Namespace, shard_map: ShardMap, targets: dict[str, float], name: str, found: Tuned
) -> dict[str, Option]:
    worst = found.worst
    tuned = model.Tuned(
        target_recall=targets[name],
        recall=round(worst.recall, 4),
        lower_bound=round(worst.bound, 4),
        k=args.k,
        queries=worst.queries,
        filters=len(found.cases) - 1,
        shards=len(shard_map.shards_of(shard_map.collections[name])),
        at=date.today(),
    )
    given = {} if args.target_recall is None else {"target_recall": args.target_recall}
    return {"ef_search": found.ef_search, **given, "tuned": msgspec.structs.asdict(tuned)}


def _write(path: Path, measured: ShardMap, options: dict[str, dict[str, Option]]) -> None:
    """Replace the map in one step, after the new text has proved to be the map that is meant.

    Raises:
        ValueError: the map says something else by now about what was measured, or cannot be edited so.
    """
    file = TextFile(path)
    present = parse(file.text, str(path))
    text = file.text
    for name, changed in options.items():
        found = present.collections.get(name)
        if found != measured.collections[name] or present.shards != measured.shards:
            raise ValueError(f"{path} is left as it is: {name} or its shards were changed since it was read")
        text = set_search_options(text, name, changed)
    fresh = parse(raise_version(text), str(path))
    if _untuned(fresh, options) != _untuned(present, options) or any(
        fresh.collections[name].search.ef_search != changed["ef_search"] for name, changed in options.items()
    ):
        raise ValueError(
            f"{path} is left as it is: more than these collections would change;"
            " do they share a part with others, by an alias? edit it by hand"
        )
    file.replace(raise_version(text))


def _untuned(shard_map: ShardMap, names: Iterable[str]) -> ShardMap:
    """The map without what tuning changes, to compare the rest of two maps."""
    collections = dict(shard_map.collections)
    for name in names:
        found = collections[name]
        search = msgspec.structs.replace(found.search, ef_search=0, target_recall=None, tuned=None)
        collections[name] = msgspec.structs.replace(found, search=search)
    return msgspec.structs.replace(shard_map, version=0, collections=collections)
