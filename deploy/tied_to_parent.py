"""Runs a command that ends when the process that started it does, even if that one is killed.

    python -m deploy.tied_to_parent COMMAND ARGUMENT...

This module runs as a process between the two, the watcher. Its standard input is a pipe that the parent
holds open. The kernel closes the pipe when the parent ends, in whatever way; the watcher then sends the
command SIGTERM and, after a grace period, SIGKILL.
"""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

__all__ = ["main", "tied_to_parent"]

_POLL = 0.1
_GRACE = 15.0


@contextlib.contextmanager
def tied_to_parent(
    command: Sequence[str], log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` during the block, in a session of its own, so that Ctrl-C reaches only the parent.

    It gets our environment, or `env`. What is yielded is the watcher, whose child is the command; it ends
    when the command does, with the same status.
    """
    with log.open("ab") as output:
        watcher = subprocess.Popen(
            [sys.executable, "-m", __name__, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=env,
        )
    assert watcher.stdin is not None
    try:
        yield watcher
    finally:
        watcher.stdin.close()
        try:
            watcher.wait(_GRACE + 5)
        except subprocess.TimeoutExpired:
            watcher.kill()
            watcher.wait(5)


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Signals are for the parent to act on. A handler that does nothing, not SIG_IGN, which the command
        # would inherit.
        signal.signal(number, lambda *_: None)
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    while process.poll() is None:
        if select.select([sys.stdin], [], [], _POLL)[0]:
            return _end(process)
    return process.returncode


def _end(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    try:
        return process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(5)


if __name__ == "__main__":
    sys.exit(main())
