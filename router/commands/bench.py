"""`pgscatter bench`: measures what this version does on this machine."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from router.commands.integers import between, positive
from shard_config import limits

__all__ = ["add_parser"]

_COMPARE, _COLLECT, _LIST, _ALL = "compare", "collect", "list", "all"
# What `collect` and `all` write into the folder of the results.
_COLLECTED = "results.md"
# The flags that a report repeats in the command that makes the same measurement again.
_NAMED = (
    *("dataset", "rows", "queries", "shards", "seconds", "rounds", "clients", "ef_search", "k", "recall"),
    *("open_loop", "duration"),
)
_DATASET = "clustered:n=50000,d=128,seed=1"
_QUICK_DATASET = "clustered:n=20000,d=64,seed=1"
_NEEDS = "pgscatter bench needs what is not installed ({}): pip install 'pgscatter[bench,cluster]'"


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure searches on a cluster of this machine's own",
        description="Runs a scenario on a temporary cluster and writes a report, its data and its plots."
        " `all` runs every scenario, `list` names them, `compare BEFORE AFTER` shows two results,"
        " `collect DIR` makes one text of those in a folder."
        " A missed target is reported, and is no failure.",
    )
    parser.add_argument("scenario", metavar="SCENARIO", help="a scenario, or all, list, compare or collect")
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        default=[],  # without a default, argparse's messages call it required
        metavar="FILE",
        help="of compare: two .json results; of collect: a folder with some",
    )
    parser.add_argument("--dataset", metavar="SPEC", help="what to search, see the documentation")
    parser.add_argument("--rows", type=positive, metavar="N", help="only its first N rows")
    parser.add_argument(
        "--queries", type=positive, metavar="N", help="how many of its queries (default 1000)"
    )
    parser.add_argument("--shards", type=positive, metavar="N", help="(default 4; scaling goes up to 8)")
    parser.add_argument("--seconds", type=_seconds, metavar="S", help="of each measurement (default 5)")
    parser.add_argument("--rounds", type=positive, metavar="N", help="of each variant (default 3)")
    parser.add_argument("--clients", type=_numbers, metavar="N,…", help="numbers of clients")
    parser.add_argument("--ef-search", type=_widths, metavar="N,…", help="widths of scans (scenario recall)")
    parser.add_argument("--k", type=positive, default=10, metavar="K", help="rows of an answer (default 10)")
    parser.add_argument(
        "--recall", type=_share, default=0.99, metavar="R", help="that variants are tuned to (default 0.99)"
    )
    parser.add_argument(
        "--open-loop",
        type=_rates,
        metavar="RATE,…",
        help="searches/s that arrive whatever becomes of them (concurrency, soak; default: by capacity)",
    )
    parser.add_argument(
        "--duration", type=_duration, metavar="S", help="of the long run (scenario soak; default 600)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where results go (default ./bench-results); of collect: the file to write",
    )
    parser.add_argument("--quick", action="store_true", help="small and short: shows that it works")
    parser.set_defaults(run=_run, parser=parser)


def _run(args: argparse.Namespace) -> int:
    if args.scenario not in (_COMPARE, _COLLECT) and args.files:
        args.parser.error(f"{args.files[0]}: only compare and collect take files")
    if args.scenario == _COMPARE and len(args.files) != 2:
        args.parser.error(f"compare takes two results, got {len(args.files)}")
    if args.scenario == _COLLECT and len(args.files) != 1:
        args.parser.error(f"collect takes one folder, got {len(args.files)}")
    if args.scenario not in (_COMPARE, _COLLECT, _LIST):
        _check_folder(args)
    try:
        # Its dependencies are an extra, and slow to import.
        from bench import scenarios
        from bench.errors import BenchError
    except ModuleNotFoundError as exc:
        print(_NEEDS.format(exc.name), file=sys.stderr)
        return 1
    names = scenarios.names()
    if args.scenario not in (_COMPARE, _COLLECT, _LIST, _ALL, *names):
        args.parser.error(f"no scenario {args.scenario!r}; there are {', '.join(names)}")
    try:
        if args.scenario == _LIST:
            for name in names:
                print(f"{name:14}{scenarios.summary(name)}")
        elif args.scenario == _COMPARE:
            _compare(*args.files)
        elif args.scenario == _COLLECT:
            _collect(args.files[0], args.out)
        elif args.scenario == _ALL:
            return _measure_all(names, args)
        else:
            _measure(args.scenario, args)
    except (BenchError, OSError) as exc:
        print(f"pgscatter bench: {exc}", file=sys.stderr)
        return 1
    return 0


def _compare(before: Path, after: Path) -> None:
    from bench.compare import compare
    from bench.results import load_run

    print(compare(load_run(before), load_run(after)), end="")


def _collect(folder: Path, out: Path | None) -> None:
    from bench.collect import collected, load_runs

    beside = out is not None and out.resolve().parent == folder.resolve()
    text = collected(load_runs(folder), folder, plots=beside)
    if out is None:
        print(text, end="")
    else:
        out.write_text(text)


def _measure_all(names: list[str], args: argparse.Namespace) -> int:
    """Every scenario, also where one of them cannot be run; what there is, is collected after each."""
    from bench.errors import BenchError

    failed = []
    for name in names:
        print(f"-- {name}", file=sys.stderr)
        try:
            _measure(name, args)
        except BenchError as exc:
            failed.append(name)
            print(f"pgscatter bench: {name}: {exc}", file=sys.stderr)
            continue
        _collect(_folder(args), _folder(args) / _COLLECTED)
    if failed:
        print(f"pgscatter bench: could not be run: {', '.join(failed)}", file=sys.stderr)
        return 1
    print(f"all: {_folder(args) / _COLLECTED}", file=sys.stderr)
    return 0


def _folder(args: argparse.Namespace) -> Path:
    return args.out or Path("bench-results")


def _check_folder(args: argparse.Namespace) -> None:
    """Leave with status 2 if the folder cannot be made: after hours of measuring it would be too late."""
    for folder in (_folder(args), *_folder(args).absolute().parents):
        if folder.is_dir():
            return
        if folder.exists():
            args.parser.error(f"--out: {folder} is no folder")


def _command(name: str, args: argparse.Namespace) -> str:
    """The command that makes the same measurement again, without the folder of the results."""
    words = ["pgscatter", "bench", name]
    for flag in _NAMED:
        value = getattr(args, flag)
        if value is not None and value != args.parser.get_default(flag):
            shown = ",".join(f"{one:g}" for one in value) if isinstance(value, list) else str(value)
            words += [f"--{flag.replace('_', '-')}", shown]
    return shlex.join([*words, "--quick"] if args.quick else words)


def _measure(name: str, args: argparse.Namespace) -> None:
    from bench import report
    from bench.context import Options
    from bench.suite import run_scenario, write
    from router.terminal import Display

    quick: bool = args.quick
    options = Options(
        dataset=args.dataset or (_QUICK_DATASET if quick else _DATASET),
        rows=args.rows,
        queries=args.queries or (200 if quick else 1000),
        shards=args.shards,
        seconds=args.seconds or (1.0 if quick else 5.0),
        warmup=0.5 if quick else 1.0,
        rounds=args.rounds or (2 if quick else 3),
        clients=args.clients,
        ef_search=args.ef_search,
        k=args.k,
        recall=args.recall,
        open_loop=args.open_loop,
        duration=args.duration,
        quick=quick,
    )
    with Display() as display:
        run = run_scenario(name, options, display, _command(name, args))
    *_, text = write(run, _folder(args))
    print(report.markdown(run))
    print(f"{name}: {text} and what lies beside it", file=sys.stderr)


def _numbers(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def _widths(text: str) -> list[int]:
    width = between(limits.EF_SEARCH)
    return [width(part) for part in text.split(",")]


def _rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0.1 <= rate <= 1e6 for rate in rates):
        raise argparse.ArgumentTypeError(f"expected searches/s from 0.1 to 1000000, got {text!r}")
    return rates


def _duration(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 4 <= value <= 604_800:
        raise argparse.ArgumentTypeError(f"expected a number of seconds from 4 to 604800, got {text!r}")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"expected a number of seconds from 0.1 to 3600, got {text!r}")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text!r}")
    return value
