"""The `pgscatter` command: finds the sub-command and turns its end into an exit status.

0 is success, 1 failure with the reason on standard error, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from router.commands.ending import asked_to_end

__all__ = ["main"]

_COMMANDS = ("cluster", "map", "schema", "load", "tune", "serve", "search", "models", "bench")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else list(argv)
    args = _parser(arguments).parse_args(arguments)
    if logging.lastResort is not None:
        # Warnings are made for the router's log, where fields stand beside them; a command says all in its
        # own words, and without a log only what went wrong unforeseen.
        logging.lastResort.setLevel(logging.ERROR)
    with asked_to_end() as ending:
        return ending.status(_run(args))


def _run(args: argparse.Namespace) -> int:
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        status = run(args)
        # Here, and not at exit, a reader that has gone can still be answered with a status.
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `pgscatter … | head`: nobody reads on. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class _Version(argparse.Action):
    """Looks the version up when it is asked for, not at each start, of which that would be a tenth."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        sys.stdout.write(f"pgscatter {version('pgscatter')}\n")
        parser.exit()


def _parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    # Importing every command takes two to three times as long as importing one (0.5 s against 0.2 s);
    # only the help and the complaint about an unknown command need all of them.
    named = [name for name in _COMMANDS if arguments[:1] == [name]]
    parser = argparse.ArgumentParser(
        prog="pgscatter", description="Vector search over many PostgreSQL + pgvector nodes."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and leave")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in named or _COMMANDS:
        import_module(f"router.commands.{name}").add_parser(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
