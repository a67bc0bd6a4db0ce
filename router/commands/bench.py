"""`pgscatter bench`: measures what this version does on this machine."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from router.commands.numbers import between, listed, positive, real
from shard_config import limits

__all__ = ["add_parser"]

# The results of a folder as one text; and the flags that are part of the command that a report names.
_COLLECTED = "results.md"
# The flags that a report repeats in the command that makes the same measurement again.
_NAMED = (
    *("dataset", "rows", "queries", "shards", "seconds", "rounds", "clients", "ef_search", "k", "recall"),
    *("open_loop", "duration", "embedder", "reranker"),
)
_DATASET = "clustered:n=50000,d=128,seed=1"
_QUICK_DATASET = "clustered:n=20000,d=64,seed=1"
_EMBEDDER = "wordllama"
_NEEDS = "pgscatter bench needs what is not installed ({}): pip install 'pgscatter[bench,cluster]'"


def add_parser(subparsers: Any) -> None:
    names = _scenarios()
    parser = subparsers.add_parser(
        "bench",
        help="measure searches on a cluster of this machine's own",
        description="Runs a scenario on a temporary cluster and writes a report, its data and its plots."
        " A missed target is reported, and is no failure; what is wrong in a soak under faults is one.",
        epilog=f"Scenarios: {', '.join(names)}.",
    )
    verbs = parser.add_subparsers(dest="scenario", required=True, metavar="SCENARIO")
    listing = verbs.add_parser("list", help="name the scenarios and what they measure")
    listing.set_defaults(run=_guarded(_list))
    comparing = verbs.add_parser("compare", help="show two results beside each other")
    for when in ("before", "after"):
        comparing.add_argument(when, type=Path, metavar=when.upper(), help="a .json result")
    comparing.set_defaults(run=_guarded(_compare))
    collecting = verbs.add_parser("collect", help="make one text of a folder of results")
    collecting.add_argument("folder", type=Path, metavar="DIR")
    collecting.add_argument("--out", type=Path, metavar="FILE", help="the text (default: standard output)")
    collecting.set_defaults(run=_guarded(_collect))
    flags = _flags()
    for name in ("all", *names):
        # A scenario without help is left out of the list, where its name alone would say little.
        told = {"help": "run every scenario"} if name == "all" else {}
        one = verbs.add_parser(name, parents=[flags], **told)
        one.set_defaults(run=_guarded(_measure_all if name == "all" else _measure_one), parser=one)


def _scenarios() -> list[str]:
    """Their names, without importing them: what they need may not be installed, and is slow to import."""
    found = find_spec("bench")
    places = (found and found.submodule_search_locations) or []
    files = [path for place in places for path in Path(place, "scenarios").glob("[!_]*.py")]
    return sorted(path.stem for path in files)


def _flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    seconds = "a number of seconds"
    for flag, type_, shown, text in (
        ("--dataset", str, "SPEC", "what to search, see the documentation"),
        ("--rows", positive, "N", "only its first N rows"),
        ("--queries", positive, "N", "how many of its queries (default 1000)"),
        ("--shards", positive, "N", "(default 4; scaling goes up to 8)"),
        ("--seconds", real(seconds, 0.1, 3600), "S", "of each measurement (default 5)"),
        ("--rounds", positive, "N", "of each variant (default 3)"),
        ("--clients", listed(positive), "N,…", "numbers of clients"),
        ("--ef-search", listed(between(limits.EF_SEARCH)), "N,…", "widths of scans (scenario recall)"),
        (
            *("--open-loop", listed(real("searches/s", 0.1, 1e6)), "RATE,…"),
            "searches/s that arrive whatever becomes of them (concurrency, soak; default: by capacity)",
        ),
        (
            "--duration",
            real(seconds, 4, 604_800),
            "S",
            "of the long run (scenario soak; default 600, with faults 1200)",
        ),
        (
            *("--embedder", str, "BACKEND"),
            f"of pgscatter models serve (scenario relevance; default {_EMBEDDER})",
        ),
        (
            *("--reranker", str, "BACKEND"),
            "ranks hits again, for instance cross-encoder:PATH (scenario relevance; default none)",
        ),
        ("--out", Path, "DIR", "where results go (default ./bench-results)"),
    ):
        parser.add_argument(flag, type=type_, metavar=shown, help=text)
    parser.add_argument("--k", type=positive, default=10, metavar="K", help="rows of an answer (default 10)")
    share = real("a number", 0, 1, open=True)
    parser.add_argument(
        "--recall", type=share, default=0.99, metavar="R", help="that variants are tuned to (default 0.99)"
    )
    parser.add_argument(
        "--faults",
        action="store_true",
        help="break servers, Redis and the router meanwhile, and check every answer (scenario soak)",
    )
    parser.add_argument("--quick", action="store_true", help="small and short: shows that it works")
    return parser


def _guarded(run: Callable[[argparse.Namespace], int | None]) -> Callable[[argparse.Namespace], int]:
    """`run`, with 1 for what stops it."""

    def guarded(args: argparse.Namespace) -> int:
        if "parser" in args:
            _check_folder(args)
        try:
            # Its dependencies are an extra, and slow to import.
            import_module("bench.suite")
            from bench.errors import BenchError
        except ModuleNotFoundError as exc:
            print(_NEEDS.format(exc.name), file=sys.stderr)
            return 1
        try:
            return run(args) or 0
        except (BenchError, OSError) as exc:
            # An error of asyncio's time limits has no text.
            print(f"pgscatter bench: {str(exc) or 'timed out'}", file=sys.stderr)
            return 1

    return guarded


def _list(args: argparse.Namespace) -> None:
    from bench import scenarios

    for name in scenarios.names():
        print(f"{name:14}{scenarios.summary(name)}")


def _compare(args: argparse.Namespace) -> None:
    from bench.compare import compare
    from bench.results import load_run

    print(compare(load_run(args.before), load_run(args.after)), end="")


def _collect(args: argparse.Namespace) -> None:
    from bench.report import collected, load_runs

    folder, out = args.folder, args.out
    beside = out is not None and out.resolve().parent == folder.resolve()
    text = collected(load_runs(folder), folder, plots=beside)
    if out is None:
        print(text, end="")
    else:
        out.write_text(text)


def _measure_one(args: argparse.Namespace) -> int:
    return _measure(args.scenario, args)


def _measure_all(args: argparse.Namespace) -> int:
    """Every scenario, also where one of them cannot be run; what there is, is collected after each."""
    from bench.errors import BenchError

    folder, failed = _folder(args), []
    for name in _scenarios():
        print(f"-- {name}", file=sys.stderr)
        try:
            if _measure(name, args):
                failed.append(name)
        except BenchError as exc:
            failed.append(name)
            print(f"pgscatter bench: {name}: {exc}", file=sys.stderr)
            continue
        _collect(argparse.Namespace(folder=folder, out=folder / _COLLECTED))
    if failed:
        print(f"pgscatter bench: could not be run, or failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    print(f"all: {folder / _COLLECTED}", file=sys.stderr)
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
    return shlex.join([*words, *(f"--{flag}" for flag in ("faults", "quick") if getattr(args, flag))])


def _measure(name: str, args: argparse.Namespace) -> int:
    """1 if what was measured was wrong, and not only slow."""
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
        embedder=args.embedder or _EMBEDDER,
        reranker=args.reranker,
        faults=args.faults,
        quick=quick,
    )
    with Display() as display:
        run = run_scenario(name, options, display, _command(name, args))
    *_, text = write(run, _folder(args))
    print(report.markdown(run))
    print(f"{name}: {text} and what lies beside it", file=sys.stderr)
    for failure in run.outcome.failures:
        print(f"pgscatter bench: {name}: {failure}", file=sys.stderr)
    return 1 if run.outcome.failures else 0
